"""GLSL 3.30 of the renderer: one lit pass, one mask pass, one sensor pass.

Textures are procedural in object space, so a new scene uploads triangles and a small material
table and nothing else, and a held-out texture is a branch that training scenes never take.
"""

GEOMETRY_VERTEX = """
#version 330
uniform mat4 view_projection;
in vec3 in_position;
in vec3 in_normal;
in vec3 in_local;
in float in_material;
in float in_instance;
out vec3 world;
out vec3 normal;
out vec3 local;
flat out int material;
flat out float instance;
void main() {
    world = in_position;
    normal = in_normal;
    local = in_local;
    material = int(in_material + 0.5);
    instance = in_instance;
    gl_Position = view_projection * vec4(in_position, 1.0);
}
"""

MASK_FRAGMENT = """
#version 330
flat in float instance;
out float instance_out;
void main() { instance_out = instance / 255.0; }
"""

DEPTH_FRAGMENT = """
#version 330
void main() {}
"""

LIT_FRAGMENT = """
#version 330
const int MAX_LIGHTS = 4;
uniform sampler2D materials;
uniform sampler2DShadow shadow_0;
uniform sampler2DShadow shadow_1;
uniform mat4 shadow_matrix[2];
uniform vec3 light_position[MAX_LIGHTS];
uniform vec3 light_colour[MAX_LIGHTS];
uniform int light_shadow[MAX_LIGHTS];
uniform int light_count;
uniform vec3 focus;
uniform vec3 sky;
uniform vec3 ground;
uniform vec3 eye;
in vec3 world;
in vec3 normal;
in vec3 local;
flat in int material;
out vec4 radiance;

float hash(vec3 p) {
    p = fract(p * vec3(0.1031, 0.1030, 0.0973));
    p += dot(p, p.yzx + 33.33);
    return fract((p.x + p.y) * p.z);
}
float noise(vec3 p) {
    vec3 cell = floor(p), f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    vec2 o = vec2(0.0, 1.0);
    vec4 low, high;
    low.xy = vec2(hash(cell + o.xxx), hash(cell + o.yxx));
    low.zw = vec2(hash(cell + o.xyx), hash(cell + o.yyx));
    high.xy = vec2(hash(cell + o.xxy), hash(cell + o.yxy));
    high.zw = vec2(hash(cell + o.xyy), hash(cell + o.yyy));
    vec4 z = mix(low, high, f.z);
    vec2 y = mix(z.xy, z.zw, f.y);
    return mix(y.x, y.y, f.x);
}
float fbm(vec3 p) {
    float sum = 0.0, gain = 0.5;
    for (int octave = 0; octave < 4; octave++) {
        sum += gain * noise(p);
        p = p * 2.03 + 17.1;
        gain *= 0.5;
    }
    return sum;
}
float cells(vec3 p) {
    vec3 cell = floor(p), f = fract(p);
    float first = 8.0, second = 8.0;
    for (int x = -1; x <= 1; x++) for (int y = -1; y <= 1; y++) for (int z = -1; z <= 1; z++) {
        vec3 o = vec3(x, y, z);
        vec3 seed = cell + o;
        vec3 d = o + vec3(hash(seed), hash(seed + 7.7), hash(seed + 3.3)) - f;
        float at = dot(d, d);
        if (at < first) { second = first; first = at; } else second = min(second, at);
    }
    return sqrt(second) - sqrt(first);
}
float pattern(int kind, vec3 p, int axis, float offset) {
    vec3 q = p + offset;
    vec3 r = axis == 0 ? p.yzx : (axis == 1 ? p.zxy : p);
    float wrap = atan(r.y, r.x) / 6.2831853;
    if (kind == 1) return smoothstep(0.3, 0.65, fbm(q));
    if (kind == 2) return smoothstep(0.42, 0.58, abs(fract(r.z * 0.9 + offset) * 2.0 - 1.0));
    if (kind == 3) {
        vec3 c = floor(p * 0.8 + 0.001);
        return mod(c.x + c.y + c.z, 2.0) * (0.85 + 0.15 * noise(q * 6.0));
    }
    if (kind == 4) {
        vec3 w = vec3(q.x * 0.35, q.y * 2.2, q.z * 2.2);
        float board = hash(vec3(floor(p.y * 1.3), offset, 1.0));
        float grain = fract((fbm(w * 0.7 + board * 9.0) * 5.0 + w.y * 0.4));
        float seam = smoothstep(0.0, 0.04, abs(fract(p.y * 1.3) - 0.5) * -2.0 + 1.0);
        return clamp(0.55 * grain + 0.4 * board + (1.0 - seam) * 0.8, 0.0, 1.0);
    }
    if (kind == 5) return step(0.72, noise(q * 5.0)) * 0.9 + 0.15 * noise(q * 23.0);
    if (kind == 6) {
        float line = floor(r.z * 1.6);
        float letter = floor(wrap * 26.0 + hash(vec3(line, offset, 0.0)) * 9.0);
        float word = step(0.32, hash(vec3(letter, line, offset)));
        float row = step(0.3, fract(r.z * 1.6)) * step(0.25, hash(vec3(line, 5.0, offset)));
        float face = step(0.25, fract(wrap * 2.0 + offset));
        return max(word * row * face, step(0.8, hash(vec3(line, 2.0, offset))));
    }
    if (kind == 7) return 0.65 * noise(r * vec3(0.6, 9.0, 9.0) + offset) + 0.35 * noise(q);
    if (kind == 8) return pow(abs(sin(r.x * 1.1 + offset + 7.0 * fbm(q * 0.8))), 0.55);
    if (kind == 9) {
        vec3 c = fract(p * 0.9 + offset) - 0.5;
        return smoothstep(0.34, 0.30, length(c));
    }
    if (kind == 10) return smoothstep(0.04, 0.12, cells(q * 1.2));
    if (kind == 11) {
        float row = floor(p.y * 1.6);
        vec2 brick = vec2(p.x * 0.7 + 0.5 * mod(row, 2.0), p.y * 1.6);
        vec2 joint = abs(fract(brick) - 0.5);
        float tone = hash(vec3(floor(brick), offset));
        return max(smoothstep(0.46, 0.49, max(joint.x, joint.y)), 0.55 * tone);
    }
    if (kind == 12) {
        float zig = abs(fract(wrap * 9.0) - 0.5) * 0.9;
        float wave = step(0.5, fract(r.z * 0.8 + zig + offset));
        vec2 dot_at = vec2(fract(wrap * 3.0) - 0.5, fract(r.z * 0.35 + offset) - 0.5);
        return mix(wave, 1.0 - wave, step(length(dot_at * vec2(1.0, 1.4)), 0.28));
    }
    return 0.6 * fbm(q * 0.6);
}
float lookup(int map, vec3 at) {
    return map == 0 ? texture(shadow_0, at) : texture(shadow_1, at);
}
float shadow(int map, vec3 n) {
    vec4 clip = shadow_matrix[map] * vec4(world + n * 0.006, 1.0);
    vec3 at = clip.xyz / clip.w * 0.5 + 0.5;
    if (clip.w <= 0.0 || any(greaterThan(abs(at - 0.5), vec3(0.5)))) return 1.0;
    float turn = hash(vec3(gl_FragCoord.xy, 1.0)) * 6.2831853, lit = 0.0;
    for (int tap = 0; tap < 8; tap++) {
        float angle = turn + float(tap) * 2.399963, reach = sqrt((float(tap) + 0.5) / 8.0) * 0.0042;
        lit += lookup(map, vec3(at.xy + reach * vec2(cos(angle), sin(angle)), at.z - 0.0004));
    }
    return lit / 8.0;
}
vec3 surroundings(vec3 way, float roughness) {
    vec3 base = mix(ground, sky, smoothstep(-0.4, 0.6, way.z));
    float strips = smoothstep(0.2, 0.5, abs(fract(way.x * 2.0) - 0.5));
    strips *= smoothstep(0.55, 0.95, way.z);
    return base * (1.0 + (1.0 - roughness) * 4.0 * strips);
}
void main() {
    vec4 m0 = texelFetch(materials, ivec2(0, material), 0);
    vec4 m1 = texelFetch(materials, ivec2(1, material), 0);
    vec4 m2 = texelFetch(materials, ivec2(2, material), 0);
    vec4 m3 = texelFetch(materials, ivec2(3, material), 0);
    float amount = pattern(int(m0.a + 0.5), local * m1.a, int(m3.y + 0.5), m3.x) * m2.x;
    vec3 albedo = mix(m0.rgb, m1.rgb, clamp(amount, 0.0, 1.0));
    float roughness = clamp(m2.y + 0.15 * (amount - 0.5), 0.06, 1.0), metallic = m2.z;
    vec3 n = normalize(normal), v = normalize(eye - world);
    if (dot(n, v) < 0.0) n = -n;
    vec3 f0 = mix(vec3(0.04), albedo, metallic);
    float facing = max(dot(n, v), 0.02);
    vec3 fresnel = f0 + (max(vec3(1.0 - roughness), f0) - f0) * pow(1.0 - facing, 5.0);
    vec3 sum = albedo * (1.0 - metallic) * mix(ground, sky, 0.5 + 0.5 * n.z);
    sum += fresnel * surroundings(reflect(-v, n), roughness) * (1.0 - 0.5 * roughness) * 1.6;
    for (int i = 0; i < light_count; i++) {
        vec3 way = light_position[i] - world;
        float reach = length(way), nominal = length(light_position[i] - focus);
        vec3 l = way / reach;
        float facing_light = max(dot(n, l), 0.0);
        if (facing_light <= 0.0) continue;
        float share = reach / nominal;
        vec3 arriving = light_colour[i] * facing_light * 2.0 / (1.0 + share * share);
        if (light_shadow[i] >= 0) arriving *= shadow(light_shadow[i], n);
        vec3 h = normalize(l + v);
        float a = roughness * roughness, nh = max(dot(n, h), 0.0);
        float d = nh * nh * (a * a - 1.0) + 1.0;
        float lobe = min(a * a / (3.14159 * d * d), 40.0);
        float k = (roughness + 1.0) * (roughness + 1.0) / 8.0;
        float mask = 0.25 / ((facing * (1.0 - k) + k) * (facing_light * (1.0 - k) + k));
        vec3 f = f0 + (1.0 - f0) * pow(1.0 - max(dot(h, v), 0.0), 5.0);
        sum += arriving * (albedo * (1.0 - metallic) + f * lobe * mask);
    }
    radiance = vec4(sum + albedo * m2.w, 1.0);
}
"""

FULL_SCREEN_VERTEX = """
#version 330
in vec2 in_position;
out vec2 uv;
void main() {
    uv = in_position * 0.5 + 0.5;
    gl_Position = vec4(in_position, 0.0, 1.0);
}
"""

SENSOR_FRAGMENT = """
#version 330
uniform sampler2D radiance;
uniform sampler2D depth;
uniform mat4 unproject;
uniform mat4 shutter_opens;
uniform mat4 shutter_closes;
uniform vec2 near_far;
uniform float focal_px;
uniform float exposure;
uniform vec3 white_balance;
uniform float read_noise;
uniform float shot_noise;
uniform float vignette;
uniform int noise_seed;
in vec2 uv;
out vec3 pixel;

uint mixed(uint x) {
    x ^= x >> 16; x *= 0x7feb352dU; x ^= x >> 15; x *= 0x846ca68bU; x ^= x >> 16;
    return x;
}
float uniform_at(ivec2 at, int stream) {
    uint key = mixed(uint(at.x) + 4096U * uint(at.y) + mixed(uint(noise_seed * 16 + stream)));
    return float(key >> 8) / 16777216.0;
}
float gaussian_at(ivec2 at, int stream) {
    float radius = sqrt(-2.0 * log(max(uniform_at(at, stream), 1e-7)));
    return radius * cos(6.2831853 * uniform_at(at, stream + 1));
}
float distance_at(vec2 where) {
    float z = texture(depth, where).r * 2.0 - 1.0;
    float near = near_far.x, far = near_far.y;
    return 2.0 * near * far / (far + near - z * (far - near));
}
float openness(ivec2 at) {
    float here = distance_at(uv), reach_m = 0.05 + 0.03 * here;
    vec2 reach = reach_m * focal_px / here / vec2(textureSize(depth, 0));
    float turn = uniform_at(at, 9) * 6.2831853, hidden = 0.0;
    for (int tap = 0; tap < 10; tap++) {
        float angle = turn + float(tap) * 2.399963, far = sqrt((float(tap) + 0.5) / 10.0);
        float closer = here - distance_at(uv + reach * far * vec2(cos(angle), sin(angle)));
        hidden += smoothstep(0.1, 0.6, closer / reach_m) * smoothstep(3.5, 1.5, closer / reach_m);
    }
    return 1.0 - 0.5 * hidden / 10.0;
}
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    vec4 seen = unproject * vec4(vec3(uv, texture(depth, uv).r) * 2.0 - 1.0, 1.0);
    vec4 from_clip = shutter_opens * seen, to_clip = shutter_closes * seen;
    vec2 from = from_clip.xy / from_clip.w * 0.5 + 0.5, to = to_clip.xy / to_clip.w * 0.5 + 0.5;
    vec3 light = vec3(0.0);
    float jitter = uniform_at(at, 8);
    for (int tap = 0; tap < 9; tap++) {
        float part = (float(tap) + jitter) / 9.0;
        light += min(texture(radiance, mix(from, to, part) ).rgb, vec3(8.0));
    }
    light *= openness(at) / 9.0;
    vec2 corner = uv - 0.5;
    light *= exposure * white_balance * (1.0 - vignette * dot(corner, corner) * 2.0);
    light = 1.25 * light * (1.5 * light + 0.03) / (light * (1.46 * light + 0.59) + 0.14);
    vec3 value = pow(clamp(light, 0.0, 1.0), vec3(1.0 / 2.2));
    vec3 spread = sqrt(vec3(read_noise * read_noise) + shot_noise * shot_noise * value);
    value += spread * vec3(gaussian_at(at, 0), gaussian_at(at, 2), gaussian_at(at, 4));
    pixel = clamp(value, 0.0, 1.0);
}
"""

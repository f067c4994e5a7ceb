"""Draws a scene off-screen with OpenGL 3.3: a noisy camera picture and an exact instance mask.

The idea: one interleaved vertex buffer a scene and one draw call a pass, with textures computed in
the fragment shader. A frame is three passes: a mask of instance ids with its depth (single-sampled,
so that boxes are exact), a lit pass (4x multisampled, two soft shadow maps drawn once a scene), and
a sensor pass (contact shadow, motion blur along each pixel's own path while the shutter is open,
exposure, white balance, vignette, noise). How much of an object others hide is counted by the GPU:
its depth is drawn alone, then the samples at exactly that depth are counted by an occlusion query.

Left out: global illumination, transparency, lens distortion, moving objects. The price: glass looks
like plastic, and blur sees only what the shutter's middle saw. EGL gives a context without a
display, on a GPU as in software.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import moderngl
import numpy as np
from numpy.typing import NDArray

from edge_perception.errors import RenderError
from edge_perception.world import shaders
from edge_perception.world.camera import (
    FAR_M,
    NEAR_M,
    Matrix,
    look_at,
    projection,
    shadow_projection,
)
from edge_perception.world.families import build_shape
from edge_perception.world.spec import (
    IMAGE_HEIGHT_PX,
    IMAGE_WIDTH_PX,
    Material,
    ObjectSpec,
    SceneSpec,
)

_SIZE = (IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX)
_SHADOW_MAPS, _SHADOW_SIZE_PX = 2, 1024
_MAX_MATERIALS, _TEXELS, _MAX_INSTANCES, _MAX_LIGHTS = 1024, 4, 255, 4
_LAYOUT = "3f 3f 3f 1f 1f"
_NAMES = ("in_position", "in_normal", "in_local", "in_material", "in_instance")
_FLOATS_A_VERTEX = 11
_SHELL = ("floor", "wall")
"""The room's own surfaces, listed first in a scene: they cast no shadow into it."""


class Renderer:
    """An OpenGL context with the passes compiled and one scene loaded; a context manager.

    One thread only. Raises ``RenderError`` where no off-screen OpenGL 3.3 can be had.
    """

    def __init__(self) -> None:
        self._context = _open_context()
        context = self._context
        self._mask_program = context.program(shaders.GEOMETRY_VERTEX, shaders.MASK_FRAGMENT)
        self._depth_program = context.program(shaders.GEOMETRY_VERTEX, shaders.DEPTH_FRAGMENT)
        self._lit_program = context.program(shaders.GEOMETRY_VERTEX, shaders.LIT_FRAGMENT)
        self._sensor_program = context.program(shaders.FULL_SCREEN_VERTEX, shaders.SENSOR_FRAGMENT)
        self._material_table = context.texture((_TEXELS, _MAX_MATERIALS), 4, dtype="f4")
        self._material_table.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self._shadow_maps = [
            context.depth_texture((_SHADOW_SIZE_PX, _SHADOW_SIZE_PX)) for _ in range(_SHADOW_MAPS)
        ]
        self._shadow_targets = [context.framebuffer([], texture) for texture in self._shadow_maps]
        self._open_targets()
        corners = np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32)
        self._screen = context.vertex_array(
            self._sensor_program, [(context.buffer(corners.tobytes()), "2f", "in_position")]
        )
        self._count = context.query(samples=True)
        self._vertices: moderngl.Buffer | None = None
        self._scene: SceneSpec | None = None
        self._ranges: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the context and everything in it."""
        self._context.release()

    @property
    def device(self) -> str:
        """The name of the GPU, or of the software that stands in for one."""
        return str(self._context.info["GL_RENDERER"])

    def _open_targets(self) -> None:
        context = self._context
        self._mask = context.texture(_SIZE, 1, dtype="f1")
        self._depth = context.depth_texture(_SIZE)
        self._depth.compare_func = ""
        self._mask_target = context.framebuffer([self._mask], self._depth)
        self._lit_target = context.framebuffer(
            [context.renderbuffer(_SIZE, 4, samples=4, dtype="f2")],
            context.depth_renderbuffer(_SIZE, samples=4),
        )
        self._radiance = context.texture(_SIZE, 4, dtype="f2")
        self._radiance.repeat_x = self._radiance.repeat_y = False
        self._resolved = context.framebuffer([self._radiance])
        self._picture = context.framebuffer([context.texture(_SIZE, 3, dtype="f1")])

    def load(self, scene: SceneSpec) -> None:
        """Upload a scene's triangles and materials and draw its shadow maps.

        Triangles and materials of the scene before are kept where both share their objects.
        """
        if self._scene is None or self._scene.objects is not scene.objects:
            self._upload(scene)
        self._scene = scene
        self._set_lights(scene)

    def _upload(self, scene: SceneSpec) -> None:
        self._release_scene()
        vertices, self._ranges = _scene_vertices(scene.objects)
        self._vertices = self._context.buffer(vertices.tobytes())
        table = np.zeros((_MAX_MATERIALS, _TEXELS, 4), np.float32)
        rows = [_material_row(m) for thing in scene.objects for m in thing.materials]
        if len(rows) > _MAX_MATERIALS:
            raise RenderError("A scene with too many surfaces", expected="at most 256 objects")
        table[: len(rows)] = rows
        self._material_table.write(table.tobytes())
        self._arrays = [
            self._context.vertex_array(
                program, [(self._vertices, layout, *names)], skip_errors=True
            )
            for program, layout, names in (
                (self._lit_program, _LAYOUT, _NAMES),
                (self._mask_program, _LAYOUT, _NAMES),
                (self._depth_program, _LAYOUT, _NAMES),
            )
        ]
        shell = [thing for thing in scene.objects if thing.colour_name in _SHELL]
        self._first_caster = sum(
            len(build_shape(thing.family, thing.shape_seed).positions) for thing in shell
        )

    def _release_scene(self) -> None:
        if self._vertices is not None:
            for array in self._arrays:
                array.release()
            self._vertices.release()
            self._vertices = None

    def _set_lights(self, scene: SceneSpec) -> None:
        lights, program = scene.lighting.lights, self._lit_program
        colours, positions = np.zeros((2, _MAX_LIGHTS, 3), np.float32)
        maps = np.full(_MAX_LIGHTS, -1, np.int32)
        matrices = np.zeros((_SHADOW_MAPS, 4, 4), np.float32)
        used = 0
        for index, light in enumerate(lights[:_MAX_LIGHTS]):
            colours[index], positions[index] = light.colour, light.position
            if light.casts_shadow and used < _SHADOW_MAPS:
                matrix = shadow_projection(light.position, scene.focus, scene.radius)
                self._draw_shadow_map(used, matrix)
                matrices[used], maps[index], used = matrix.T, used, used + 1
        _write(program, "light_position", positions.tobytes())
        _write(program, "light_colour", colours.tobytes())
        _write(program, "light_shadow", maps.tobytes())
        _write(program, "shadow_matrix", matrices.tobytes())
        program["light_count"] = min(len(lights), _MAX_LIGHTS)
        program["focus"], program["sky"] = scene.focus, scene.lighting.sky
        program["ground"] = scene.lighting.ground

    def _draw_shadow_map(self, index: int, matrix: Matrix) -> None:
        self._shadow_targets[index].use()
        self._context.enable_only(moderngl.DEPTH_TEST)
        self._shadow_targets[index].clear(depth=1.0)
        _write(self._depth_program, "view_projection", _for_gl(matrix))
        first = self._first_caster
        self._arrays[2].render(first=first, vertices=self._arrays[2].vertices - first)

    def render(self, time_s: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Matrix]:
        """The picture rgb uint8 (480, 640, 3), the instance mask uint8 (480, 640), and the pose.

        The mask is 0 where no labelled object is seen. The pose is world to optical frame,
        float64 (4, 4), in the middle of the exposure at ``time_s`` seconds.
        """
        scene = self._loaded()
        view = look_at(*scene.path.at(time_s))
        lens = projection(scene.intrinsics)
        mask = self._draw_mask(lens @ view)
        self._draw_lit(lens @ view, scene.path.at(time_s)[0])
        shutter = scene.sensor.exposure_time_s / 2
        ends = [lens @ look_at(*scene.path.at(time_s + side * shutter)) for side in (-1, 1)]
        seed = (scene.seed * 7919 + round(time_s * 1e4)) % 100_000_007
        return self._expose(scene, lens @ view, ends, seed), mask, view

    def _loaded(self) -> SceneSpec:
        if self._scene is None:
            raise RenderError("No scene is loaded", mend="Call load() first.")
        return self._scene

    def _draw_mask(self, matrix: Matrix) -> NDArray[np.uint8]:
        self._mask_target.use()
        self._context.enable_only(moderngl.DEPTH_TEST)
        self._mask_target.clear(depth=1.0)
        _write(self._mask_program, "view_projection", _for_gl(matrix))
        self._arrays[1].render()
        data = self._mask_target.read(components=1, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX)

    def _draw_lit(self, matrix: Matrix, eye: NDArray[np.float64]) -> None:
        program = self._lit_program
        self._lit_target.use()
        self._context.enable_only(moderngl.DEPTH_TEST)
        self._lit_target.clear(*self._loaded().lighting.sky, depth=1.0)
        _write(program, "view_projection", _for_gl(matrix))
        program["eye"] = tuple(eye)
        self._material_table.use(0)
        for unit, texture in enumerate(self._shadow_maps, start=1):
            texture.use(unit)
        program["materials"], program["shadow_0"], program["shadow_1"] = 0, 1, 2
        self._arrays[0].render()
        self._context.copy_framebuffer(self._resolved, self._lit_target)

    def _expose(
        self, scene: SceneSpec, matrix: Matrix, ends: Sequence[Matrix], seed: int
    ) -> NDArray[np.uint8]:
        program, sensor = self._sensor_program, scene.sensor
        self._picture.use()
        self._context.enable_only(moderngl.NOTHING)
        self._radiance.use(0)
        self._depth.use(1)
        program["radiance"], program["depth"] = 0, 1
        _write(program, "unproject", _for_gl(np.asarray(np.linalg.inv(matrix), np.float64)))
        _write(program, "shutter_opens", _for_gl(ends[0]))
        _write(program, "shutter_closes", _for_gl(ends[1]))
        program["near_far"] = (NEAR_M, FAR_M)
        program["focal_px"], program["exposure"] = scene.intrinsics.fx, sensor.exposure
        program["white_balance"], program["vignette"] = sensor.white_balance, sensor.vignette
        program["read_noise"], program["shot_noise"] = sensor.read_noise, sensor.shot_noise
        program["noise_seed"] = seed
        self._screen.render(moderngl.TRIANGLE_STRIP)
        data = self._picture.read(components=3, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3)

    def unoccluded_pixels(self, pose: Matrix, instance_ids: Sequence[int]) -> list[int]:
        """How many pixels of the picture each instance would fill if it stood there alone.

        Overwrites the depth of the last picture, so call it after ``render``.
        """
        context, array = self._context, self._arrays[2]
        matrix = projection(self._loaded().intrinsics) @ pose
        _write(self._depth_program, "view_projection", _for_gl(matrix))
        self._mask_target.use()
        context.enable_only(moderngl.DEPTH_TEST)
        counts = []
        for instance in instance_ids:
            first, length = self._ranges[instance]
            self._mask_target.clear(depth=1.0)
            array.render(vertices=length, first=first)
            context.depth_func = "=="
            with self._count:
                array.render(vertices=length, first=first)
            context.depth_func = "<"
            counts.append(int(self._count.samples))
        return counts


def _open_context() -> moderngl.Context:
    try:
        options: dict[str, Any] = {"backend": "egl"}
        return moderngl.create_context(standalone=True, require=330, **options)
    except Exception as error:
        raise RenderError(
            f"No off-screen OpenGL on this machine ({error})",
            expected="EGL with OpenGL 3.3",
            mend="Install libegl1 and libgl1 (and libegl-mesa0 where there is no GPU).",
        ) from error


def _write(program: moderngl.Program, name: str, data: bytes) -> None:
    uniform = program[name]
    assert isinstance(uniform, moderngl.Uniform)
    uniform.write(data)


def _for_gl(matrix: Matrix) -> bytes:
    return np.ascontiguousarray(matrix.T, np.float32).tobytes()


def _material_row(material: Material) -> NDArray[np.float32]:
    return np.array(
        [
            [*material.colour, material.pattern],
            [*material.second_colour, material.scale],
            [material.contrast, material.roughness, material.metallic, material.emission],
            [material.offset, material.axis, 0.0, 0.0],
        ],
        np.float32,
    )


def _scene_vertices(
    objects: Sequence[ObjectSpec],
) -> tuple[NDArray[np.float32], dict[int, tuple[int, int]]]:
    """All triangles in world space, and each labelled instance's (first vertex, count)."""
    blocks, ranges, total = [], {}, 0
    for index, thing in enumerate(objects):
        if thing.instance_id > _MAX_INSTANCES:
            raise RenderError("Too many instances in a scene", expected="at most 255")
        block = _object_vertices(thing, index * _TEXELS)
        blocks.append(block)
        if thing.instance_id:
            ranges[thing.instance_id] = (total, len(block))
        total += len(block)
    return np.concatenate(blocks), ranges


def _object_vertices(thing: ObjectSpec, first_material: int) -> NDArray[np.float32]:
    shape = build_shape(thing.family, thing.shape_seed)
    mesh = shape.scaled(np.asarray(thing.size) / np.maximum(shape.size, 1e-6))
    turned = mesh.rotated(2, thing.yaw)
    block = np.empty((len(mesh.positions), _FLOATS_A_VERTEX), np.float32)
    block[:, 0:3] = turned.positions + np.asarray(thing.position, np.float32)
    block[:, 3:6] = turned.normals
    block[:, 6:9] = mesh.positions
    block[:, 9] = mesh.slots.astype(np.float32) + first_material
    block[:, 10] = thing.instance_id
    return block

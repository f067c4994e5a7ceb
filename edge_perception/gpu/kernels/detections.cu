// A raw detector head's output -> the boxes that survive suppression, in source pixels, best first.
//
// Three launches on one stream. `decode`: one thread an anchor; those at or above the threshold
// whose box lies in the image are appended in no particular order. `rank`: each candidate counts those that come before it
// (higher score, then lower anchor), which is its place; quadratic, but without synchronisation,
// and the same in every run whatever the order of the appends. `suppress`: one block walks the
// ranked candidates; each survivor strikes out what overlaps it within its class.
//
// More than kMaxCandidates pass only at a threshold near 0: the count tells, and the caller decodes
// on the CPU instead, where there is no limit.

enum Head { YOLOV8, YOLOV5, YOLOX };

constexpr int kMaxCandidates = 4096;
constexpr int kMaxLevels = 4;

struct Level { int stride, columns, first_anchor; };

// Mirrored field by field by detections_cuda.py.
struct HeadLayout {
  int head, anchors, classes, levels;
  Level level[kMaxLevels];  // YOLOX only, finest first
};

// Where the source image lies in the network's input, and its size; also mirrored there.
struct Placement { float pad_left, pad_top, scale_x, scale_y, width, height; };

struct Candidate { float x1, y1, x2, y2, score; int class_id, anchor, reserved; };

struct Kept { float x1, y1, x2, y2, score; int class_id; };

struct Counts { int candidates, kept; };

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < __int_as_float(0x7f800000); }

// Best class of an anchor; false if any class score is NaN, as NumPy's argmax would pick it.
__device__ __forceinline__ bool best_class(const float* scores, int classes, long long stride,
                                           float* best, int* best_id) {
  *best = scores[0];
  *best_id = 0;
  bool sound = *best == *best;
  for (int c = 1; c < classes; ++c) {
    const float score = scores[c * stride];
    sound = sound && score == score;
    if (score > *best) {
      *best = score;
      *best_id = c;
    }
  }
  return sound;
}

__device__ __forceinline__ void to_pixels(const HeadLayout& layout, int anchor, float* cx, float* cy,
                                          float* w, float* h) {
  int at = 0;
  while (at + 1 < layout.levels && anchor >= layout.level[at + 1].first_anchor) ++at;
  const Level level = layout.level[at];
  const int cell = anchor - level.first_anchor;
  *cx = (*cx + (float)(cell % level.columns)) * level.stride;
  *cy = (*cy + (float)(cell / level.columns)) * level.stride;
  *w = expf(*w) * level.stride;
  *h = expf(*h) * level.stride;
}

__device__ __forceinline__ float to_source(float value, float pad, float scale, float limit) {
  return fminf(fmaxf((value - pad) / scale, 0.0f), limit);
}

extern "C" __global__ void __launch_bounds__(128)
decode(const float* __restrict__ output, const __grid_constant__ HeadLayout layout,
       const __grid_constant__ Placement placement, float threshold, Candidate* __restrict__ candidates, Counts* counts) {
  const int anchor = blockIdx.x * blockDim.x + threadIdx.x;
  if (anchor >= layout.anchors) return;

  float cx, cy, w, h, score;
  int class_id;
  if (layout.head == YOLOV8) {  // (4 + classes, anchors)
    const long long n = layout.anchors;
    if (!best_class(output + 4 * n + anchor, layout.classes, n, &score, &class_id)) return;
    if (!(score >= threshold)) return;
    cx = output[anchor], cy = output[n + anchor], w = output[2 * n + anchor], h = output[3 * n + anchor];
  } else {  // (anchors, 5 + classes)
    const float* row = output + (long long)anchor * (5 + layout.classes);
    const float objectness = row[4];
    if (!(objectness >= threshold)) return;
    if (!best_class(row + 5, layout.classes, 1, &score, &class_id)) return;
    score *= objectness;
    if (!(score >= threshold)) return;
    cx = row[0], cy = row[1], w = row[2], h = row[3];
    if (layout.head == YOLOX) to_pixels(layout, anchor, &cx, &cy, &w, &h);
  }
  float x1 = cx - w / 2, y1 = cy - h / 2, x2 = cx + w / 2, y2 = cy + h / 2;
  if (!(is_finite(x1) && is_finite(y1) && is_finite(x2) && is_finite(y2) && is_finite(score))) return;
  if (x2 < x1 || y2 < y1) return;
  x1 = to_source(x1, placement.pad_left, placement.scale_x, placement.width);
  y1 = to_source(y1, placement.pad_top, placement.scale_y, placement.height);
  x2 = to_source(x2, placement.pad_left, placement.scale_x, placement.width);
  y2 = to_source(y2, placement.pad_top, placement.scale_y, placement.height);
  if (!((x2 - x1) * (y2 - y1) > 0.0f)) return;
  const int place = atomicAdd(&counts->candidates, 1);
  if (place < kMaxCandidates) candidates[place] = {x1, y1, x2, y2, score, class_id, anchor, 0};
}

extern "C" __global__ void __launch_bounds__(128)
rank(const Candidate* __restrict__ candidates, const Counts* counts, Candidate* __restrict__ ranked) {
  const int count = min(counts->candidates, kMaxCandidates);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Candidate mine = candidates[i];
  int place = 0;
  for (int j = 0; j < count; ++j) {
    const float score = candidates[j].score;
    place += score > mine.score || (score == mine.score && candidates[j].anchor < mine.anchor);
  }
  ranked[place] = mine;
}

__device__ __forceinline__ float overlap(const Candidate& a, const Candidate& b) {
  const float width = fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1);
  const float height = fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1);
  if (width <= 0.0f || height <= 0.0f) return 0.0f;
  const float shared = width * height;
  const float both = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1);
  return shared / (both - shared);
}

// One block.
extern "C" __global__ void __launch_bounds__(1024)
suppress(const Candidate* __restrict__ ranked, float iou, int max_kept, Kept* __restrict__ kept,
         Counts* counts) {
  __shared__ unsigned char struck[kMaxCandidates];
  const int count = min(counts->candidates, kMaxCandidates);
  for (int j = threadIdx.x; j < count; j += blockDim.x) struck[j] = 0;
  int survivors = 0;  // the same in every thread
  for (int i = 0; i < count && survivors < max_kept; ++i) {
    __syncthreads();  // all strikes by earlier survivors are in
    if (struck[i]) continue;
    const Candidate best = ranked[i];
    if (threadIdx.x == 0) {
      kept[survivors] = {best.x1, best.y1, best.x2, best.y2, best.score, best.class_id};
    }
    ++survivors;
    for (int j = i + 1 + threadIdx.x; j < count; j += blockDim.x) {
      if (ranked[j].class_id == best.class_id && overlap(ranked[j], best) > iou) struck[j] = 1;
    }
  }
  if (threadIdx.x == 0) counts->kept = survivors;
}

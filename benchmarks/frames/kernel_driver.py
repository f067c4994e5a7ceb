"""Runs every kernel once on small inputs, for compute-sanitizer.

    compute-sanitizer --tool memcheck python -m benchmarks.frames.kernel_driver

Image buffers are exactly as long as their frames, each in an allocation of its own, so that a
read beyond one is an error that memcheck sees.
"""

from __future__ import annotations

import numpy as np
from cuda.bindings import driver

from edge_perception.core.image import ENCODINGS, ImageFormat
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.gpu.cuda import Stream, checked, get_device
from edge_perception.gpu.detections_cuda import CudaDecoder
from edge_perception.gpu.head_layout import GridLevel, head_layout
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor, DeviceRegion

CLASSES = 5
LEVELS = (GridLevel(8, 12, 0), GridLevel(16, 6, 96), GridLevel(32, 3, 120))
ANCHORS = 126
WHOLE = Letterbox.fit((64, 96), (64, 96), "center")


def upload(values: np.ndarray) -> int:
    """Copy an array into an allocation of its own and wait for it; returns its address."""
    values = np.ascontiguousarray(values)
    address = int(checked(driver.cuMemAlloc(values.nbytes), "allocating"))
    checked(driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes), "uploading")
    get_device().synchronize()
    return address


def run_preprocessing(stream: Stream, rng: np.random.Generator) -> int:
    """Every encoding, reduced and enlarged, whole and cropped, into every dtype and layout."""
    launches = 0
    for dtype, layout in (("float32", "nchw"), ("float16", "nhwc"), ("uint8", "nchw")):
        spec = Preprocessing(40, 56, scale=1.0, dtype=dtype, layout=layout)
        preprocessor = CudaPreprocessor(spec)
        for height, width in ((122, 90), (30, 34)):
            regions = []
            for encoding in ENCODINGS:
                packed = ImageFormat.packed(encoding, height, width)
                fmt = ImageFormat(encoding, height, width, packed.step + 3)
                short = fmt.size_bytes - fmt.step + fmt.row_bytes  # no padding after the last row
                pointer = upload(rng.integers(0, 256, short, np.uint8))
                regions += [DeviceRegion(pointer, fmt), DeviceRegion(pointer, fmt, (5, 3, 30, 28))]
            out = upload(np.zeros((len(regions), 40 * 56 * 3), spec.dtype))
            preprocessor.launch(regions, out, stream.handle)
            launches += 1
    return launches


def run_detections(stream: Stream, rng: np.random.Generator) -> int:
    """Every raw head, once crowded and once beyond the room for candidates."""
    launches = 0
    for head in ("yolov8", "yolov5", "yolox"):
        for anchors in (ANCHORS,) if head == "yolox" else (ANCHORS, 5000):
            sides = (4 + CLASSES, anchors) if head == "yolov8" else (anchors, 5 + CLASSES)
            output = upload(rng.random(sides, np.float32))
            layout = head_layout(head, anchors, CLASSES, LEVELS if head == "yolox" else ())
            decoder = CudaDecoder(layout)
            decoder.launch(output, WHOLE, 0.01, 0.5, stream.handle)
            stream.synchronize()
            if not len(decoder.collect().scores):
                raise SystemExit(f"{head}: nothing was kept")
            launches += 1
    return launches


def main() -> None:
    """Run all and say how much."""
    device = get_device()
    device.make_current()
    stream = Stream(device)
    rng = np.random.default_rng(0)
    launches = run_preprocessing(stream, rng) + run_detections(stream, rng)
    device.synchronize()
    print(f"ran {launches} launches")


if __name__ == "__main__":
    main()

"""Gives damaged JPEGs to the decoder on the GPU, as a camera would; for a process of its own.

    python jpeg_wounds.py COUNT

Prints what became of them. A file that costs the process its GPU ends it, and the seed printed last
says which it was.
"""

from __future__ import annotations

import collections
import sys

import cv2
import numpy as np
from cuda.bindings import driver

from edge_perception.errors import ImageError
from edge_perception.gpu.cuda import Stream, checked, get_device
from edge_perception.gpu.decode_image import read_image_format
from edge_perception.gpu.nvjpeg import NvJpegDecoder

MOST_BYTES = 64 << 20


def good_files() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (320, 240))
    options = [[], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4], [cv2.IMWRITE_JPEG_OPTIMIZE, 1]]
    options.append([cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422])
    return [np.asarray(cv2.imencode(".jpg", image, o)[1]).reshape(-1) for o in options]


def wound(data: np.ndarray, seed: int) -> np.ndarray:
    """Change bytes of the headers, of the coded data or of both, or cut pieces out."""
    rng = np.random.default_rng(seed)
    scan = data.tobytes().index(b"\xff\xda")
    first, last = [(2, scan + 14), (scan + 14, data.size - 2), (2, data.size - 2)][seed % 3]
    hurt = data.copy()
    places = rng.integers(first, last, rng.integers(1, 5))
    hurt[places] = rng.integers(0, 256, places.size)
    if seed % 5 == 0:
        at = int(rng.integers(scan + 14, data.size - 100))
        hurt = np.concatenate([hurt[:at], hurt[at + int(rng.integers(1, 90)) :]])
    return hurt


def main() -> None:
    device = get_device()
    device.make_current()
    stream = Stream(device)
    decoder = NvJpegDecoder()
    target = int(checked(driver.cuMemAlloc(MOST_BYTES), "allocating"))
    became: collections.Counter[str] = collections.Counter()
    files = good_files()
    for seed in range(int(sys.argv[1])):
        data = wound(files[seed % len(files)], seed)
        try:
            image_format = read_image_format(data, MOST_BYTES)
            if not decoder.can_decode(data):
                became["left to the CPU"] += 1
                continue
            decoder.enqueue(data, image_format, target, stream.handle)
        except ImageError:
            became["refused"] += 1
            continue
        try:
            stream.synchronize()
        except BaseException:
            print(f"seed {seed}", flush=True)
            raise
        became["decoded"] += 1
    for data in files:
        decoder.enqueue(data, read_image_format(data, MOST_BYTES), target, stream.handle)
    stream.synchronize()
    decoder.close()
    print(dict(became), flush=True)


if __name__ == "__main__":
    main()

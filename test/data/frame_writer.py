"""A writer process for the tests: prints its descriptor, then writes a frame every 5 ms."""

from __future__ import annotations

import itertools
import time

import numpy as np

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named

FORMAT = ImageFormat.packed("bgr8", 48, 64)

if __name__ == "__main__":
    spec = RingSpec("test", slot_bytes=FORMAT.size_bytes)
    with FrameRing.create(spec, transport_named("shared_memory")) as ring:
        print(ring.descriptor(0).hex(), flush=True)
        for sequence in itertools.count(1):
            noise = np.random.default_rng(sequence).integers(0, 256, FORMAT.size_bytes, np.uint8)
            ring.write(noise, FrameInfo(sequence, 0, "camera", FORMAT, time.monotonic_ns(), 0, 0))
            time.sleep(0.005)

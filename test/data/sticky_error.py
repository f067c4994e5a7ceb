"""A process whose GPU fails under its ring: a kernel is given an address that is none.

Prints what the ring says afterwards, one line each; exits 1 if it hands out a frame.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import CudaError, FrameError
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor, DeviceRegion
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named

FORMAT = ImageFormat.packed("rgb8", 48, 64)


def write(ring: FrameRing, sequence: int) -> None:
    info = FrameInfo(sequence, 0, "camera", FORMAT, time.monotonic_ns(), 0, 0)
    ring.write(np.zeros(FORMAT.size_bytes, np.uint8), info)


if __name__ == "__main__":
    spec = RingSpec("test", slot_bytes=FORMAT.size_bytes)
    with FrameRing.create(spec, transport_named("cuda_in_process")) as ring:
        write(ring, 1)
        stream = Stream(get_device())
        nowhere = DeviceRegion(0x10, FORMAT)
        CudaPreprocessor(Preprocessing(48, 64)).launch([nowhere], 0x10, stream.handle)
        try:
            for sequence in range(2, 1000):
                write(ring, sequence)
                time.sleep(0.001)
        except CudaError as error:
            print(f"sticky {error.sticky}: {error}")
        try:
            sys.exit(1 if ring.acquire_newest() else 2)
        except FrameError as error:
            print(error)
        try:
            write(ring, 2000)
        except FrameError as error:
            print(error)
        print(f"failure {ring.failure is not None}")

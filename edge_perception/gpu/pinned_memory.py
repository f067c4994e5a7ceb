"""Page-locked host memory, which the GPU copies to and from without the CPU."""

from __future__ import annotations

import ctypes

import numpy as np
from cuda.bindings import driver

from edge_perception.core.image import UInt8Array
from edge_perception.gpu.cuda import checked


def view_host(address: int, size_bytes: int) -> UInt8Array:
    """View host memory that CUDA allocated as uint8 ``(n,)``."""
    raw = (ctypes.c_uint8 * size_bytes).from_address(address)
    return np.ctypeslib.as_array(raw)


def allocate_pinned(size_bytes: int) -> int:
    """Return the address of page-locked host memory, to be freed by ``cuMemFreeHost``."""
    return int(checked(driver.cuMemHostAlloc(size_bytes, 0), f"pinning {size_bytes} bytes"))

"""Device and pinned memory for the length of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import driver

from edge_perception.gpu.cuda import Stream, checked
from edge_perception.gpu.pinned_memory import allocate_pinned, view_host


@contextmanager
def device_memory(size: int) -> Iterator[int]:
    """Address of device memory."""
    address = int(checked(driver.cuMemAlloc(size), f"allocating {size} bytes"))
    try:
        yield address
    finally:
        checked(driver.cuMemFree(address), "freeing memory")


@contextmanager
def pinned_copy(values: np.ndarray) -> Iterator[np.ndarray]:
    """A copy of an array in page-locked memory."""
    address = allocate_pinned(values.nbytes)
    try:
        copy = view_host(address, values.nbytes).view(values.dtype).reshape(values.shape)
        copy[...] = values
        yield copy
    finally:
        checked(driver.cuMemFreeHost(address), "freeing pinned memory")


def upload(target: int, values: np.ndarray, stream: Stream) -> None:
    """Queue a copy to the device."""
    result: tuple[Any, ...] = driver.cuMemcpyHtoDAsync(
        target, values.ctypes.data, values.nbytes, stream.handle
    )
    checked(result, "uploading")

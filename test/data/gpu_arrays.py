"""Arrays on the GPU for the tests; each in an allocation of its own, freed with the process."""

from __future__ import annotations

import numpy as np
from cuda.bindings import driver

from edge_perception.gpu.cuda import checked, get_device


def upload(values: np.ndarray) -> int:
    """Copy an array to the GPU; returns its address.

    Waits for the device: the driver returns from pageable memory before the last bytes are there,
    and streams of ours do not wait for its own.
    """
    device = get_device()
    device.make_current()
    values = np.ascontiguousarray(values)
    address = int(checked(driver.cuMemAlloc(values.nbytes), "allocating"))
    checked(driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes), "uploading")
    device.synchronize()
    return address


def download(address: int, like: np.ndarray) -> np.ndarray:
    """Copy an array of the shape and dtype of ``like`` back."""
    values = np.empty_like(like)
    checked(driver.cuMemcpyDtoH(values.ctypes.data, address, values.nbytes), "downloading")
    return values

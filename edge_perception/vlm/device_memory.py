"""Telling that memory is short apart from everything else that torch raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edge_perception.errors import DeviceMemoryError


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise ``DeviceMemoryError`` where torch finds no memory on the device that it works on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise DeviceMemoryError(f"the GPU's memory is full ({error})") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise DeviceMemoryError(f"memory is full ({error})") from error
        raise

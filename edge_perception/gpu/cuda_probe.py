"""What this machine's GPU can do with frames, found out by doing it."""

from __future__ import annotations

from cuda.bindings import driver

from edge_perception.errors import EdgePerceptionError
from edge_perception.gpu.cuda import get_device
from edge_perception.gpu.memory import Transport

_PROBE_BYTES = 4096


def is_integrated() -> bool:
    """Tell whether the GPU shares the host's memory (Jetson)."""
    return bool(get_device().attribute(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED))


def why_not_allocated(transport: Transport) -> str:
    """Make and export a small ring's memory; returns "" or what went wrong."""
    try:
        memory = transport.allocate(slots=1, slot_bytes=_PROBE_BYTES)
        try:
            if transport.crosses_processes:
                memory.export()
        finally:
            memory.close()
    except EdgePerceptionError as error:
        return str(error)
    return ""

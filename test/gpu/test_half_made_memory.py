"""Memory of a GPU whose making fails midway: what was acquired before is given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cuda.bindings")
from edge_perception.errors import CudaError
from edge_perception.gpu import cuda_memory, mapped_memory
from edge_perception.gpu.cuda_memory import DeviceMemory
from edge_perception.gpu.mapped_memory import MappedMemory

DEVICE: Any = SimpleNamespace(make_current=lambda: None, synchronize=lambda: None)


def test_device_slots_are_freed_where_an_event_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back: list[str] = []
    events = iter(range(2))

    class Stream:
        def __init__(self, *_: object, **__: object) -> None: ...
        def close(self) -> None:
            given_back.append("stream")

    class Event:
        def __init__(self, **_: object) -> None:
            if next(events, None) is None:
                raise CudaError("making an event")

        def close(self) -> None:
            given_back.append("event")

    monkeypatch.setattr(cuda_memory, "_allocate", lambda *_: (1, 2))
    monkeypatch.setattr(cuda_memory, "_free", lambda *_: given_back.append("memory"))
    monkeypatch.setattr(cuda_memory, "Stream", Stream)
    monkeypatch.setattr(cuda_memory, "Event", Event)
    with pytest.raises(CudaError, match="making an event"):
        DeviceMemory(DEVICE, slots=3, slot_bytes=8, shared=False)
    assert given_back == ["event", "event", "stream", "memory"]


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("registering shared memory with CUDA", ["file"]),
        ("mapping memory", ["registration", "file"]),
    ],
)
def test_shared_memory_that_cannot_be_mapped_is_closed(
    monkeypatch: pytest.MonkeyPatch, failing: str, expected: list[str]
) -> None:
    given_back: list[str] = []
    host: Any = SimpleNamespace(
        extent=lambda: (4096, 4096), close=lambda: given_back.append("file")
    )

    def checked(_: object, doing: str) -> int:
        if doing == failing:
            raise CudaError(doing)
        return 0

    driver = SimpleNamespace(
        cuMemHostRegister=lambda *_: None,
        cuMemHostGetDevicePointer=lambda *_: None,
        CU_MEMHOSTREGISTER_DEVICEMAP=0,
    )
    monkeypatch.setattr(mapped_memory, "driver", driver)
    monkeypatch.setattr(mapped_memory, "checked", checked)
    monkeypatch.setattr(mapped_memory, "_unregister", lambda *_: given_back.append("registration"))
    with pytest.raises(CudaError, match=failing):
        MappedMemory(host, DEVICE)
    assert given_back == expected

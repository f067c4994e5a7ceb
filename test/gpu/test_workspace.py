"""Memory, stream and CUDA graphs of one network, on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver")
pytestmark = pytest.mark.gpu

from edge_perception.errors import CudaError
from edge_perception.gpu.workspace import Workspace

SIZE = 1 << 16


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    made = Workspace()
    yield made
    made.close()


def filled(workspace: Workspace, value: int) -> np.ndarray:
    pinned = workspace.allocate_pinned(SIZE)
    pinned[:] = value
    return pinned


def test_bytes_come_back_as_they_went(workspace: Workspace) -> None:
    address = workspace.allocate(SIZE)
    sent, received = filled(workspace, 7), filled(workspace, 0)
    sent[::3] = 9
    workspace.upload(address, sent)
    workspace.download(received, address)
    workspace.synchronize()
    assert np.array_equal(received, sent)


def test_captured_graph_runs_when_launched_and_as_often_as_launched(workspace: Workspace) -> None:
    address = workspace.allocate(SIZE)
    sent, received = filled(workspace, 7), filled(workspace, 0)

    def copy_there_and_back() -> None:
        workspace.upload(address, sent)
        workspace.download(received, address)

    graph = workspace.capture(copy_there_and_back)
    workspace.synchronize()
    assert not received.any(), "captured, not run"
    for value in (3, 4):
        sent[:] = value
        graph.launch(workspace.stream)
        workspace.synchronize()
        assert (received == value).all()


def test_stream_works_on_after_a_capture_that_failed(workspace: Workspace) -> None:
    def fails() -> None:
        raise ValueError("not this time")

    with pytest.raises(ValueError, match="not this time"):
        workspace.capture(fails)
    address, received = workspace.allocate(SIZE), filled(workspace, 0)
    workspace.upload(address, filled(workspace, 5))
    workspace.download(received, address)
    workspace.synchronize()
    assert (received == 5).all()


def test_waiting_inside_a_capture_is_told(workspace: Workspace) -> None:
    with pytest.raises(CudaError):
        workspace.capture(workspace.synchronize)


def test_closing_twice_is_harmless_and_missing_gpu_is_told() -> None:
    made = Workspace()
    made.close()
    made.close()
    with pytest.raises(CudaError, match="GPU 63"):
        Workspace(63)

"""What is given back when the GPU is gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fake_tensorrt import HEADER, FakeWorkspace, fake_tensorrt
from tiny_models import write_model

from edge_perception.backends.tensorrt import Engine
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.errors import CudaError
from edge_perception.gpu.lost_gpu import giving_back


def cuda_error(*, sticky: bool) -> CudaError:
    error = CudaError("CUDA failed while freeing the ring", got="CUDA_ERROR_ILLEGAL_ADDRESS")
    error.sticky = sticky
    return error


def test_sticky_error_ends_the_freeing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), giving_back("memory of ring 'front'"):
        raise cuda_error(sticky=True)
    assert "memory of ring 'front': lost with the GPU: CUDA failed while" in caplog.text


def test_other_errors_are_raised() -> None:
    with pytest.raises(CudaError, match="freeing the ring"), giving_back("a ring"):
        raise cuda_error(sticky=False)


@pytest.mark.parametrize("sticky", [True, False])
def test_backend_closes_on_a_lost_gpu_and_tells_other_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sticky: bool
) -> None:
    write_model(tmp_path / "model.onnx", "yolov8")
    trt, workspace = fake_tensorrt("10.3.0"), FakeWorkspace()
    plan = HEADER + b"10.3.0\n" + (tmp_path / "model.onnx").read_bytes()
    engine = Engine(trt, plan)
    backend = DeviceBackend("tensorrt", engine, workspace)

    def fail() -> None:
        raise cuda_error(sticky=sticky)

    monkeypatch.setattr(workspace, "synchronize", fail)
    if sticky:
        backend.close()
        assert workspace.closed
    else:
        with pytest.raises(CudaError, match="freeing the ring"):
            backend.close()
    backend.close()  # once is enough

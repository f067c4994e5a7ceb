"""Which runtime runs a model, chosen by parameters: the only place where one is opened by name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_perception.backends.base import Backend
from edge_perception.backends.build import BuildOptions
from edge_perception.backends.engine_store import BUILD_POLICIES, Progress, tell_nobody
from edge_perception.backends.engines import (
    AUTO,
    IMPORTERS,
    EngineRequest,
    obtain_engine,
)
from edge_perception.backends.tensorrt import Engine
from edge_perception.backends.tensorrt_rtx import RtxEngine
from edge_perception.core.engine import PRECISIONS, EngineSpec, Gpu
from edge_perception.core.manifest import Manifest
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from edge_perception.gpu.workspace import Workspace

BACKENDS = ("onnxruntime", *IMPORTERS)
ENGINE_PRECISIONS = (AUTO, *PRECISIONS)
_GPU_MEND = "Install the gpu extra (scripts/setup.sh --extra gpu), or take backend onnxruntime."


@dataclass(frozen=True)
class RuntimeChoice:
    """How to run a model.

    ``backend`` is one of ``BACKENDS``. ``threads`` are the CPU's, 0 meaning one a physical core.
    The rest is for engines: ``device`` is the GPU's ordinal, ``build`` one of ``BUILD_POLICIES``,
    ``precision`` one of ``ENGINE_PRECISIONS``, ``store`` None the user's own engine store.
    """

    backend: str = "onnxruntime"
    threads: int = 0
    device: int = 0
    build: str = "if_missing"
    precision: str = AUTO
    store: Path | None = None
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        choices = {"backend": BACKENDS, "build": BUILD_POLICIES, "precision": ENGINE_PRECISIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"parameter {name}",
                    expected=f"one of {', '.join(allowed)}",
                    got=getattr(self, name),
                )

    def engine_request(self, options: BuildOptions | None = None) -> EngineRequest:
        """Return which engine this asks for."""
        return EngineRequest(
            self.backend, self.precision, self.build, self.store, options or BuildOptions()
        )


def open_backend(
    manifest_path: Path,
    manifest: Manifest,
    model: Path,
    choice: RuntimeChoice,
    on_progress: Progress = tell_nobody,
) -> Backend:
    """Open a model, warmed up; its engine is built first where that is needed and allowed.

    Raises:
        EngineError: the model cannot be loaded or built, or its engine is refused.
        CudaError: no GPU, or its memory is full.
    """
    if choice.backend == "onnxruntime":
        return _open_on_cpu(model, choice.threads)
    workspace = _open_workspace(choice.device)
    try:
        return _open_engine(manifest_path, manifest, model, choice, workspace, on_progress)
    except BaseException:
        workspace.close()
        raise


def measure_latency(backend: Backend, runs: int = 200) -> dict[str, float]:
    """Time inference on zeros, arrays of the host in and out; return percentiles in ms."""
    tensors = [np.zeros(spec.shape, spec.dtype) for spec in backend.inputs]
    times_ms = []
    for _ in range(runs + runs // 10):  # the first tenth warms up
        started = time.perf_counter_ns()
        backend.infer(tensors)
        times_ms.append((time.perf_counter_ns() - started) / 1e6)
    p50, p99 = np.percentile(times_ms[runs // 10 :], [50, 99])
    return {"latency_p50_ms": round(float(p50), 4), "latency_p99_ms": round(float(p99), 4)}


def local_gpu(device: int) -> Gpu:
    """Return what a GPU of this machine is.

    Raises:
        EngineError: the CUDA bindings are not installed.
        CudaError: no driver, or no such GPU.
    """
    workspace = _open_workspace(device)
    try:
        return _describe(workspace)
    finally:
        workspace.close()


def _open_on_cpu(model: Path, threads: int) -> Backend:
    from edge_perception.backends.onnxruntime import OnnxRuntimeBackend

    backend = OnnxRuntimeBackend(model, threads)
    try:
        backend.warm_up()
    except BaseException:
        backend.close()
        raise
    return backend


def _open_workspace(device: int) -> Workspace:
    try:
        from edge_perception.gpu.workspace import Workspace
    except ImportError as error:
        raise EngineError(f"the CUDA bindings are missing: {error}", mend=_GPU_MEND) from error
    return Workspace(device)


def _describe(workspace: Workspace) -> Gpu:
    major, minor = workspace.device.compute_capability
    return Gpu(f"{major}.{minor}", workspace.device.name)


def _open_engine(
    manifest_path: Path,
    manifest: Manifest,
    model: Path,
    choice: RuntimeChoice,
    workspace: Workspace,
    on_progress: Progress,
) -> DeviceBackend:
    request, gpu = choice.engine_request(), _describe(workspace)
    stored = obtain_engine(manifest_path, manifest, model, request, gpu, on_progress)
    trt = IMPORTERS[choice.backend]()
    if choice.backend == "tensorrt":
        return DeviceBackend(
            choice.backend, Engine(trt, stored.plan), workspace, cuda_graph=choice.cuda_graph
        )
    store = request.open_store()
    spec: EngineSpec = stored.record.spec
    engine = RtxEngine(trt, stored.plan, store.runtime_cache(spec))
    backend = DeviceBackend(choice.backend, engine, workspace, cuda_graph=choice.cuda_graph)
    store.keep_runtime_cache(spec, engine.runtime_cache())
    return backend

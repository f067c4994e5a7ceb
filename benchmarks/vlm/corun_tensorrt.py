"""TensorRT 8.5's INT8 engine as the detector of ``corun``, in a process of its own.

    $TRT_PYTHON -m benchmarks.vlm.corun_tensorrt MODELS STORE MODEL

It takes an engine that ``benchmarks.int8.tensorrt_h100`` has built, in that bundle's Python 3.9
with NumPy alone. So a frame's latency is less than the product's path has: from the network's input
in host memory to its raw outputs there, without letterbox and suppression.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.int8.cudart import CudaRuntime
from benchmarks.int8.tensorrt_h100 import Runner, find_jobs, obtain
from benchmarks.vlm.corun_process import Run, serve_runs, sleep_until
from edge_perception.backends.tensorrt import import_tensorrt

_WARM_UP, _PICTURES = 50, 8


class TensorRtDetector:
    """Infers on pictures that come at a steady rate; one that comes during another is skipped."""

    def __init__(self, models: Path, store: Path, model: str) -> None:
        trt, cuda = import_tensorrt(), CudaRuntime()
        (job,) = [j for j in find_jobs(models) if (j.model, j.precision) == (model, "int8")]
        plan = obtain(job, trt, cuda.device(), store, "never").plan
        self._runner = Runner(trt, cuda, plan)
        (image,) = self._runner.engine.inputs
        shape = (_PICTURES, *image.shape)
        self._pictures = np.random.default_rng(0).random(shape, np.float32).astype(image.dtype)
        for number in range(_WARM_UP):
            self._runner.infer(self._pictures[number % _PICTURES])

    def run(self, rate_hz: float, frames: int) -> Run:
        """Infer on ``frames`` pictures that come at ``rate_hz``."""
        latencies_ms = []
        start_s = time.perf_counter() + 0.05
        for number in range(frames):
            due_s = start_s + number / rate_hz
            if time.perf_counter() > due_s + 1 / rate_hz:
                continue  # a newer one is there
            sleep_until(due_s)
            self._runner.infer(self._pictures[number % _PICTURES])
            latencies_ms.append((time.perf_counter() - due_s) * 1e3)
        return Run(latencies_ms, frames - len(latencies_ms))


if __name__ == "__main__":
    serve_runs(TensorRtDetector(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).run)

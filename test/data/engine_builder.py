"""A process that builds an engine with a fake builder, to be killed, raced and waited for.

    python engine_builder.py build FOLDER SECONDS     builds once, prints the plan's hash
    python engine_builder.py die_at_line FOLDER N     dies by SIGKILL at the store's N-th line

The second prints nothing when it dies and "survived" when the build has fewer lines than that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from edge_perception.backends import engine_store
from edge_perception.backends.engine_store import BuiltPlan, EngineStore
from edge_perception.core.engine import EngineSpec
from edge_perception.core.manifest import TensorSpec

PLAN = bytes(range(256)) * 512


def spec(**changes: Any) -> EngineSpec:
    """The spec of a small engine, with changes."""
    values: dict[str, Any] = {
        "model": "tiny",
        "onnx_sha256": "a" * 64,
        "precision": "int8",
        "inputs": (TensorSpec("images", (1, 3, 64, 64)),),
        "outputs": (TensorSpec("output", (1, 7, 64)),),
        "runtime": "tensorrt",
        "runtime_version": "10.3.0",
        "compute_capability": "8.7",
        "gpu_name": "Orin",
        "calibration_sha256": "c" * 64,
        "flags": ("typing=weak", "workspace_mib=1024"),
    }
    return EngineSpec(**{**values, **changes})


def build(folder: Path, seconds: float = 0.0, policy: str = "if_missing") -> str:
    """Obtain the engine; note each real build by a line in ``FOLDER/../builds``."""

    def make(timing_caches: Sequence[bytes]) -> BuiltPlan:
        with (folder.parent / "builds").open("a") as builds:
            builds.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return BuiltPlan(PLAN, b"".join(timing_caches) + b"t")

    return EngineStore(folder).obtain(spec(), make, policy=policy).record.plan_sha256


def die_at_line(number: int) -> None:
    """Arrange for SIGKILL when the store's code reaches its ``number``-th line from now on."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != engine_store.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    mode, folder, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if mode == "die_at_line":
        die_at_line(int(number))
        build(folder, policy="always")
        print("survived")
    else:
        print(build(folder, float(number)))

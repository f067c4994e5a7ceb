"""Latency of candidate shapes of the detector on this CPU, with random weights.

    python -m training.detector.latency --out shapes.json [--threads 2] [--runs 60]

What a shape costs does not depend on what it has learnt, so this comes before any training.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from training.detector.config import ModelConfig
from training.detector.export import export_onnx
from training.detector.model import NanoDetector
from training.detector.record import describe_machine

_CLASSES = tuple(f"class{i}" for i in range(12))
_SHAPES = {
    "default": ModelConfig(_CLASSES),
    "default with SiLU": ModelConfig(_CLASSES, activation="silu"),
    "head of 64 channels": ModelConfig(_CLASSES, head_width=64),
    "narrow top": ModelConfig(_CLASSES, widths=(16, 32, 64, 128, 192)),
    "wide middle": ModelConfig(_CLASSES, widths=(16, 32, 80, 128, 208)),
}


def multiply_adds(model: NanoDetector) -> int:
    """Multiply-adds of all convolutions for one image."""
    total = 0

    def count(conv: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += conv.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model(torch.zeros(1, 3, model.config.height, model.config.width))
    for hook in hooks:
        hook.remove()
    return total


def time_onnx(path: Path, config: ModelConfig, threads: int, runs: int) -> list[float]:
    """Milliseconds of ``runs`` inferences after five to warm up."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    images = {"images": np.full((1, 3, config.height, config.width), 114, np.float32)}
    times = []
    for _ in range(runs + 5):
        began = time.perf_counter()
        session.run(None, images)
        times.append((time.perf_counter() - began) * 1e3)
    return times[5:]


def measure(config: ModelConfig, threads: int, runs: int) -> dict[str, Any]:
    """Size and latency of one shape."""
    model = NanoDetector(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shape.onnx"
        export_onnx(model, path)
        times = time_onnx(path, config, threads, runs)
        megabytes = path.stat().st_size / 1e6
    return {
        "megabytes": round(megabytes, 2),
        "gflops": round(2 * multiply_adds(model) / 1e9, 2),
        "latency_ms": {
            "min": round(min(times), 1),
            "p50": round(float(np.median(times)), 1),
            "n": runs,
        },
    }


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="latency of candidate shapes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    shapes = {name: measure(shape, args.threads, args.runs) for name, shape in _SHAPES.items()}
    report = {
        "schema": 1,
        "machine": describe_machine() | {"cores": os.cpu_count(), "threads": args.threads},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "shapes": shapes,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, row in shapes.items():
        print(
            f"{name:24s} {row['gflops']:5.2f} GFLOPs {row['megabytes']:5.2f} MB {row['latency_ms']}"
        )


if __name__ == "__main__":
    main()

"""How large a model is in float, FP16 and INT8: as ONNX, and as a plan for an RTX 3090.

    python -m benchmarks.int8.sizes --frames IMAGES --out docs/benchmarks/int8_sizes.json \
        demo_yolo=engines/demo_yolox_nano.yaml yolov8m=random/yolov8m.yaml

Plans are built by TensorRT for RTX, which needs no GPU for that. Scales are of a few frames only:
they have no influence on a size. Layers are left float as the quantiser does by default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_perception.backends.engine_store import write_atomically
from edge_perception.backends.engines import EngineRequest, obtain_engine
from edge_perception.backends.half import to_half
from edge_perception.backends.store import load_manifest
from edge_perception.core.engine import Gpu
from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.quantization.int8.job import quantize_detector
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.trust.frames import Frame, Frames

RTX_3090 = "8.6"
_FRAMES = 4
_ANY_LOSS = 1e9


def measure(path: Path, frames: Sequence[Frame], folder: Path) -> dict[str, Any]:
    """Return the bytes of one model in every form."""
    manifest, model = load_manifest(path)
    onnx = {
        "float32": model.stat().st_size,
        "float16": len(to_half(model.read_bytes())),
    }
    quantised = {}
    for name, compact in (("int8_qdq", False), ("int8_compact", True)):
        recipe = Recipe(frames=_FRAMES - 1, judging=1, max_drop=_ANY_LOSS, compact=compact)
        outcome = quantize_detector(path, frames, recipe, folder / f"{manifest.name}.{name}.onnx")
        quantised[name] = outcome
        onnx[name] = outcome.model.stat().st_size
    plans = {
        "float32": _plan_bytes(path, "float32", folder),
        "float16": _plan_bytes(path, "float16", folder),
        "int8": _plan_bytes(quantised["int8_qdq"].manifest, "auto", folder),
    }
    share = quantised["int8_qdq"].report["int8_mac_share"]
    return {"onnx_bytes": onnx, "plan_bytes": plans, "int8_mac_share": share}


def _plan_bytes(path: Path, precision: str, folder: Path) -> int:
    manifest, model = load_manifest(path)
    request = EngineRequest("tensorrt_rtx", precision, store=folder / "engines")
    record = obtain_engine(path, manifest, model, request, Gpu(RTX_3090)).record
    return record.plan_bytes


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="sizes of INT8 models")
    parser.add_argument("models", nargs="+", metavar="NAME=MANIFEST")
    parser.add_argument("--frames", required=True, help="bag, folder of images or video")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    frames = list(itertools.islice(Frames(options.frames), _FRAMES))
    report: dict[str, Any] = {
        "date": utc_now(),
        "code": describe_code(),
        "machine": describe_machine(),
        "plans": f"TensorRT for RTX, compute capability {RTX_3090}, built without a GPU",
        "models": {},
    }
    for entry in options.models:
        name, _, path = entry.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            report["models"][name] = measure(Path(path), frames, Path(folder))
        write_atomically(options.out, (json.dumps(report, indent=2) + "\n").encode())
        print(name, json.dumps(report["models"][name]), flush=True)


if __name__ == "__main__":
    main()

"""An Ultralytics model to ONNX and a manifest, by Ultralytics in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_perception.core.manifest import Manifest, Preprocessing
from edge_perception.errors import EngineError
from edge_perception.export.package import Export, Reference, write_package

_PROCESS = Path(__file__).with_name("ultralytics_process.py")
_LICENSE = "AGPL-3.0 (Ultralytics), unless you hold another"


@dataclass(frozen=True)
class UltralyticsRequest:
    """What to export: a ``.pt``, or a ``.yaml`` (random weights) by path or by Ultralytics' name.

    ``size`` is the input's (height, width) in px; ``python`` the interpreter that has Ultralytics.
    """

    model: str
    name: str
    size: tuple[int, int] = (640, 640)
    opset: int = 17
    seed: int = 0
    python: str = sys.executable


def export_ultralytics(request: UltralyticsRequest, model_path: Path) -> Manifest:
    """Write ``model_path`` and its manifest beside it.

    Raises:
        EngineError: the export failed, or the graph does not give what torch gives.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run(request, work)
        facts = json.loads((work / "facts.json").read_text(encoding="utf-8"))
        images, outputs = (
            np.load(work / name, allow_pickle=False) for name in ("images.npy", "reference.npy")
        )
        export = Export(
            name=request.name,
            head="yolo_end_to_end" if outputs.shape[-1] == 6 else "yolov8",
            class_names=tuple(facts["class_names"]),
            preprocessing=Preprocessing(*request.size),
            license=_LICENSE,
            source=f"Ultralytics, {Path(request.model).name}",
            provenance=_provenance(request, facts),
        )
        return write_package(work / "model.onnx", export, Reference(images, [outputs]), model_path)


def _run(request: UltralyticsRequest, work: Path) -> None:
    """Export inside ``work``: Ultralytics writes beside the model it is given."""
    model = request.model
    if Path(model).is_file():
        model = str(shutil.copy(model, work))
    told = {
        "model": model,
        "out": str(work),
        "size": request.size,
        "opset": request.opset,
        "seed": request.seed,
    }
    command = [request.python, str(_PROCESS), json.dumps(told)]
    environment = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(work),
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
    }
    try:
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise EngineError(f"cannot start {request.python!r}: {error}") from error
    if done.returncode or not (work / "facts.json").exists():
        raise EngineError(
            f"Ultralytics could not export {request.model!r}: {_last_line(done.stderr)}",
            mend="Install ultralytics and onnx into a virtual environment of yours and name its"
            " interpreter by --python.",
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _provenance(request: UltralyticsRequest, facts: dict[str, Any]) -> dict[str, Any]:
    weights = "random" if request.model.endswith((".yaml", ".yml")) else Path(request.model).name
    return {
        "exporter": f"ultralytics {facts['ultralytics']}, torch {facts['torch']}",
        "weights": weights,
        "opset": request.opset,
    }

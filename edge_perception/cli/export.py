"""``edge-perception export``: a model of another project to ONNX and a manifest."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_perception.core.manifest import Manifest


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="export an Ultralytics or transformers model to ONNX and a manifest",
        description="MODEL is a folder of transformers (RT-DETR, DETR, YOLOS, image classifiers),"
        " or a .pt or .yaml for Ultralytics, which runs in a process of its own. The graph is"
        " checked against torch's output by ONNX Runtime (docs/families.md).",
    )
    parser.add_argument("model", help="folder, .pt or .yaml (random weights)")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx; a .yaml goes beside it")
    parser.add_argument("--name", help="name in the manifest; default: that of --out")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in px")
    parser.add_argument("--opset", type=int, default=17, help="16 for TensorRT 8.5; %(default)s")
    parser.add_argument("--license", default="unknown", help="of a transformers checkpoint")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter that has ultralytics; default: this"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights and test input")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, check, and say where the result is."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    manifest = _export(options)
    print(
        f"{options.out}: {manifest.name}, head {manifest.head}, {len(manifest.class_names)}"
        f" classes, differs from torch by {manifest.provenance['difference_from_origin']:g}"
    )
    return 0


def _export(options: argparse.Namespace) -> Manifest:
    name = options.name or options.out.stem
    size = tuple(options.size) if options.size else None
    if Path(options.model).is_dir():
        from edge_perception.cli._toolkit import require_toolkit

        require_toolkit()
        from edge_perception.export.from_transformers import (
            TransformersRequest,
            export_transformers,
        )

        folder = Path(options.model)
        return export_transformers(
            TransformersRequest(folder, name, options.license, size, options.opset, options.seed),
            options.out,
        )
    from edge_perception.export.from_ultralytics import UltralyticsRequest, export_ultralytics

    request = UltralyticsRequest(
        options.model, name, size or (640, 640), options.opset, options.seed, options.python
    )
    return export_ultralytics(request, options.out)

r"""Export a checkpoint to ONNX and write the manifest that names it.

    python -m training.detector.export --weights ema.safetensors --onnx demo_yolox_nano.onnx \
        [--manifest demo_yolox_nano.yaml --metrics metrics.json]

The graph follows YOLOX's ONNX convention: input ``images`` float32 (1, 3, H, W), BGR 0..255;
output ``output`` float32 (1, cells, 5 + classes) with offsets and log sizes in strides, not
decoded, objectness and classes after the sigmoid. Normalisation is folded into the convolutions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from torch import Tensor, nn

from training.detector.checkpoint import load_checkpoint
from training.detector.config import STRIDES, ModelConfig
from training.detector.evaluate import activate
from training.detector.model import NanoDetector, fuse_batch_norm

_OPSET = 16  # 17 writes layer norms as one node, which TensorRT 8.5 does not read
_TOLERANCE = 1e-3


class _ExportedDetector(nn.Module):
    def __init__(self, model: NanoDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return activate(self.model(images))


def export_onnx(model: NanoDetector, path: Path) -> None:
    """Write ``model`` (on the CPU, in eval mode; its normalisation is folded in place).

    Raises ValueError where ONNX Runtime's output is not torch's.
    """
    config = model.config
    exported = _ExportedDetector(fuse_batch_norm(model)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((1, 3, config.height, config.width), generator=generator) * 255
    torch.onnx.export(
        exported,
        (images,),
        str(path),
        input_names=["images"],
        output_names=["output"],
        opset_version=_OPSET,
        dynamo=False,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    difference = compare_with_torch(exported, path, images)
    if not difference <= _TOLERANCE:
        raise ValueError(f"ONNX Runtime differs from torch by {difference:.2e}: do not ship this")


def compare_with_torch(model: nn.Module, path: Path, images: Tensor) -> float:
    """Largest absolute difference between the exported graph and ``model`` on ``images``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    return float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max())


def manifest_of(
    config: ModelConfig,
    path: Path,
    *,
    provenance: dict[str, Any],
    accuracy: dict[str, Any],
) -> dict[str, Any]:
    """The mapping of the manifest for the exported model at ``path`` (core/manifest.py)."""
    cells = sum((config.height // s) * (config.width // s) for s in STRIDES)
    classes = len(config.class_names)
    return {
        "schema": 1,
        "name": path.stem,
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "license": "Apache-2.0",
        "source": "trained from scratch on the rendered world by training/detector",
        "head": "yolox",
        "class_names": list(config.class_names),
        "inputs": [_tensor("images", [1, 3, config.height, config.width])],
        "outputs": [_tensor("output", [1, cells, 5 + classes])],
        "preprocessing": {
            "height": config.height,
            "width": config.width,
            "color": "bgr",
            "scale": 1.0,
            "pad_value": 114,
            "pad_align": "top_left",
        },
        "precision": "float32",
        "provenance": provenance,
        "accuracy": accuracy,
    }


def _tensor(name: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32"}


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="export the demo detector")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--metrics", type=Path, help="JSON with 'accuracy' and 'provenance'")
    args = parser.parse_args()
    model = load_checkpoint(args.weights)
    export_onnx(model, args.onnx)
    print(f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.2f} MB")
    if args.manifest:
        facts = json.loads(args.metrics.read_text()) if args.metrics else {}
        manifest = manifest_of(
            model.config,
            args.onnx,
            provenance=facts.get("provenance", {}),
            accuracy=facts.get("accuracy", {}),
        )
        args.manifest.write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main()

"""A checkpoint folder of transformers to ONNX: DETR-like detectors and image classifiers.

The folder is local and holds config.json and safetensors: no hub, no pickle, no code of others.
What decides everything downstream, the input's size and normalisation, is read from the folder's
preprocessor_config.json, since an image processor would bring torchvision and PIL along.

transformers resizes detectors' images to a shortest edge, so that the input's size varies; an
engine has one size. Where the folder names no fixed one, the caller must, and images are then
letterboxed to the upper left, as batches are padded in training. The price: DETR, which is told
by a mask where the padding lies, is not told here.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from edge_perception.core.manifest import Manifest, Preprocessing
from edge_perception.errors import EngineError
from edge_perception.export.package import Export, Reference, write_package

# Detection models by their configuration's type; every one is exported and decoded in a test.
HEAD_OF_MODEL_TYPE: Mapping[str, str] = {
    "rt_detr": "rtdetr",
    "detr": "detr",
    "yolos": "detr",
}
_LETTERBOX_GREY = 114  # within a grey level of ImageNet's mean, which is zero once normalised
DEFAULT_OPSET = 17


@dataclass(frozen=True)
class TransformersRequest:
    """What to export: a folder, under which name and licence.

    ``size`` is the input's (height, width) in px, None for the folder's own; ``opset`` 16 keeps
    LayerNormalization in the operators that TensorRT 8.5 knows.
    """

    folder: Path
    name: str
    license: str
    size: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET
    seed: int = 0


def export_transformers(request: TransformersRequest, model_path: Path) -> Manifest:
    """Write ``model_path`` and its manifest beside it.

    Raises:
        EngineError: the folder is no checkpoint that can be trusted or exported, or the graph
            does not give what torch gives.
    """
    config = _read_config(request.folder)
    head = _head_of(config)
    preprocessing = read_preprocessing(request.folder, request.size)
    model = _Outputs(_load_model(request.folder, head, preprocessing), head).eval()
    images = _random_images(preprocessing, request.seed)
    with torch.inference_mode():
        outputs = [output.numpy() for output in model(images)]
    labels = config.get("id2label") or _default_labels(model)
    export = Export(
        name=request.name,
        head=head,
        class_names=tuple(str(labels[key]) for key in sorted(labels, key=int)),
        preprocessing=preprocessing,
        license=request.license,
        source=f"transformers checkpoint {request.folder.name!r}, {config['model_type']}",
        provenance={
            "exporter": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "opset": request.opset,
        },
    )
    reference = Reference(images.numpy(), outputs)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        _write_graph(model, images, graph, request.opset)
        return write_package(graph, export, reference, model_path)


class _Outputs(nn.Module):
    """A model of transformers whose outputs are a tuple of tensors, in the decoder's order."""

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model = model
        self.names = ("logits",) if head == "classifier" else ("logits", "pred_boxes")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values=images)
        return tuple(getattr(found, name) for name in self.names)


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if "auto_map" in config:
        raise EngineError(
            f"checkpoint {str(folder)!r} wants code of its own to be run",
            expected="a model that transformers itself knows",
            got=config["auto_map"],
        )
    if not list(folder.glob("*.safetensors")):
        raise EngineError(
            f"checkpoint {str(folder)!r} holds no safetensors",
            got=sorted(path.name for path in folder.iterdir()),
            mend="Pickled weights are never read: convert them by save_pretrained elsewhere.",
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{str(path)!r} cannot be read: {error}", expected="a folder that transformers wrote"
        ) from error
    if not isinstance(content, dict):
        raise EngineError(f"{str(path)!r} is no mapping", got=type(content).__name__)
    return content


def _head_of(config: Mapping[str, Any]) -> str:
    architecture = str((config.get("architectures") or ["unknown"])[0])
    if architecture.endswith("ForImageClassification"):
        return "classifier"
    head = HEAD_OF_MODEL_TYPE.get(str(config.get("model_type")))
    if head is None or not architecture.endswith("ForObjectDetection"):
        raise EngineError(
            "no decoder for this architecture",
            expected=f"an image classifier, or object detection by {', '.join(HEAD_OF_MODEL_TYPE)}",
            got=architecture,
        )
    return head


def read_preprocessing(folder: Path, size: tuple[int, int] | None) -> Preprocessing:
    """Return what preprocessor_config.json asks for, at ``size`` (height, width) if given.

    Raises:
        EngineError: the file is missing, or neither it nor the caller names a fixed size.
    """
    told = _read_json(folder / "preprocessor_config.json")
    fixed = _fixed_size(told.get("size"))
    height, width = size or fixed or (0, 0)
    if not height:
        raise EngineError(
            "the input's size varies with the image in this checkpoint; an engine has one",
            got=told.get("size"),
            mend="Name one, such as --size 480 640.",
        )
    normalised = told.get("do_normalize", True)
    return Preprocessing(
        height=height,
        width=width,
        color="rgb",
        scale=float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0,
        mean=tuple(told.get("image_mean") or (0.0,) * 3) if normalised else (0.0,) * 3,
        std=tuple(told.get("image_std") or (1.0,) * 3) if normalised else (1.0,) * 3,
        pad_value=_LETTERBOX_GREY,
        pad_align="stretch" if fixed else "top_left",
    )


def _fixed_size(size: Any) -> tuple[int, int] | None:
    """Height and width where the processor resizes to exactly those; None for a shortest edge."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def _load_model(folder: Path, head: str, preprocessing: Preprocessing) -> nn.Module:
    kind = (
        transformers.AutoModelForImageClassification
        if head == "classifier"
        else transformers.AutoModelForObjectDetection
    )
    given: dict[str, Any] = {}
    if head == "rtdetr":  # its anchors become constants of the graph
        given["anchor_image_size"] = [preprocessing.height, preprocessing.width]
    try:
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
            **given,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise EngineError(
            f"transformers cannot load {str(folder)!r}: {error}",
            expected="config.json and safetensors of the same model",
        ) from error


def _random_images(preprocessing: Preprocessing, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(preprocessing.input_shape, generator=generator)


def _write_graph(model: _Outputs, images: torch.Tensor, path: Path, opset: int) -> None:
    with warnings.catch_warnings():  # tracing warns of every shape that becomes a constant
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits", "boxes"][: len(model.names)],
            opset_version=opset,
            dynamo=False,
        )


def _default_labels(model: _Outputs) -> dict[int, str]:
    return dict(model.model.config.id2label)

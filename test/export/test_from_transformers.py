"""Each architecture from a checkpoint to detections, against transformers' own post-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tiny_checkpoints import HEIGHT, WIDTH, write_checkpoint

from edge_perception.cli import main
from edge_perception.core.boxes import box_areas
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Preprocessing
from edge_perception.detection.classifier import Classifier, make_model
from edge_perception.detection.detector import DetectionSettings, open_by, open_detector
from edge_perception.detection.runtimes import RuntimeChoice
from edge_perception.errors import EngineError
from edge_perception.export.from_transformers import (
    TransformersRequest,
    export_transformers,
    read_preprocessing,
)
from edge_perception.gpu.preprocess import Preprocessor

FORMAT = ImageFormat.packed("rgb8", 90, 160)
PIXELS = np.random.default_rng(3).integers(0, 256, 90 * 160 * 3, np.uint8)
PROCESSORS = {
    "rt_detr": "RTDetrImageProcessorPil",
    "detr": "DetrImageProcessorPil",
    "yolos": "YolosImageProcessorPil",
}


def export(folder: Path, kind: str, *arguments: str) -> tuple[Any, Path]:
    model = write_checkpoint(folder / kind, kind)
    out = folder / "out" / f"{kind}.onnx"
    size = [] if kind in ("rt_detr", "vit") else ["--size", str(HEIGHT), str(WIDTH)]
    status = main(["export", str(folder / kind), "--out", str(out), *size, *arguments])
    assert status == 0
    return model, out.with_suffix(".yaml")


def original_detections(
    kind: str, model: Any, spec: Preprocessing, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in source pixels, scores and labels by torch and transformers alone, best first."""
    tensor, letterbox = Preprocessor(spec)(PIXELS, FORMAT)
    with torch.inference_mode():
        outputs = model(pixel_values=torch.from_numpy(tensor))
    processor = getattr(transformers, PROCESSORS[kind])()
    found = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=[(spec.height, spec.width)]
    )[0]
    boxes = letterbox.to_source(found["boxes"].numpy())
    seen = np.flatnonzero(box_areas(boxes) > 0)
    order = seen[np.argsort(-found["scores"].numpy()[seen], kind="stable")]
    return boxes[order], found["scores"].numpy()[order], found["labels"].numpy()[order]


def widest_gap(scores: np.ndarray) -> float:
    """A threshold among the middle scores that no rounding can carry one across."""
    ordered = np.sort(scores)[len(scores) // 4 : -len(scores) // 4]
    at = int(np.argmax(np.diff(ordered)))
    return float(ordered[at : at + 2].mean())


@pytest.mark.parametrize("kind", PROCESSORS)
def test_detections_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    model, manifest = export(tmp_path, kind)
    detector = open_detector(manifest, threads=1)
    spec = detector.manifest.preprocessing
    every = original_detections(kind, model, spec, 0.0)
    threshold = widest_gap(every[1])
    some = original_detections(kind, model, spec, threshold)
    assert 0 < len(some[1]) < len(every[1])
    for least, (boxes, scores, labels) in ((0.0, every), (threshold, some)):
        settings = DetectionSettings(score_threshold=least)
        found = detector.detect(PIXELS, FORMAT, settings, SpanRecorder())
        assert found.scores == pytest.approx(scores, abs=1e-4)
        # Nearly equal scores may stand in either order: each one's row is looked up.
        for box, score, label in zip(boxes, scores, labels, strict=True):
            same = (np.abs(found.scores - score) < 2e-4) & (found.class_ids == label)
            assert (same & (np.abs(found.boxes_xyxy - box) < 0.1).all(axis=1)).any()
    detector.close()


def test_classification_is_that_of_transformers(tmp_path: Path) -> None:
    model, manifest = export(tmp_path, "vit", "--license", "MIT")
    classifier = open_by(make_model, manifest, RuntimeChoice(threads=1))
    assert isinstance(classifier, Classifier)
    assert classifier.manifest.license == "MIT"
    tensor, _ = Preprocessor(classifier.manifest.preprocessing)(PIXELS, FORMAT)
    with torch.inference_mode():
        scores = model(pixel_values=torch.from_numpy(tensor)).logits.softmax(-1)[0].numpy()
    settings = DetectionSettings(score_threshold=0.0)
    found = classifier.classify(PIXELS, FORMAT, settings, SpanRecorder())
    assert found.class_ids.tolist() == np.argsort(-scores).tolist()
    assert found.scores == pytest.approx(np.sort(scores)[::-1], abs=1e-5)
    classifier.close()


def test_opset_16_leaves_no_layer_normalization(tmp_path: Path) -> None:
    import onnx

    _, manifest = export(tmp_path, "yolos", "--opset", "16")
    graph = onnx.load(manifest.with_suffix(".onnx")).graph
    assert "LayerNormalization" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize(
    ("told", "size", "expected"),
    [
        ({"size": 32}, None, (32, 32, "stretch")),
        ({"size": {"height": 32, "width": 48}}, None, (32, 48, "stretch")),
        ({"size": {"height": 32, "width": 48}}, (64, 96), (64, 96, "stretch")),
        ({"size": {"shortest_edge": 800}}, (64, 96), (64, 96, "top_left")),
    ],
)
def test_size_is_read(
    tmp_path: Path,
    told: dict[str, Any],
    size: tuple[int, int] | None,
    expected: tuple[int, int, str],
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    spec = read_preprocessing(tmp_path, size)
    assert (spec.height, spec.width, spec.pad_align) == expected


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "m.M"}}', "wants code of its own"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "no decoder for this"),
        ("config.json", "[1]", "is no mapping"),
        ("config.json", "{", "cannot be read"),
        ("preprocessor_config.json", '{"size": {"shortest_edge": 8}}', "size varies.*--size 480"),
        ("preprocessor_config.json", "{}", "size varies"),
        ("model.safetensors", "no weights", "cannot load"),
    ],
)
def test_checkpoint_that_cannot_be_exported_is_told(
    tmp_path: Path, file: str, content: str, told: str
) -> None:
    write_checkpoint(tmp_path / "yolos", "yolos")
    (tmp_path / "yolos" / file).write_text(content)
    size = None if file.startswith("preprocessor") else (HEIGHT, WIDTH)
    request = TransformersRequest(tmp_path / "yolos", "yolos", "unknown", size)
    with pytest.raises(EngineError, match=told):
        export_transformers(request, tmp_path / "out.onnx")


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "yolos", "yolos")
    weights = tmp_path / "yolos" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    request = TransformersRequest(tmp_path / "yolos", "yolos", "unknown", (HEIGHT, WIDTH))
    with pytest.raises(EngineError, match=r"holds no safetensors.*never read"):
        export_transformers(request, tmp_path / "out.onnx")

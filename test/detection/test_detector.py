"""The detector end to end, with a model of every head family; and with outputs gone wrong."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CLASS_NAMES,
    HEADS,
    SIDE_PX,
    manifest_mapping,
    output_shapes,
    write_detector,
)

from edge_perception.backends.base import Tensor
from edge_perception.backends.store import sha256_of
from edge_perception.core.boxes import iou_matrix
from edge_perception.core.detections import Detections
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import TensorSpec, parse_manifest
from edge_perception.detection.decoders import Candidates
from edge_perception.detection.detector import DetectionSettings, Detector, open_detector, suppress
from edge_perception.errors import EngineError, ImageError, ManifestError
from edge_perception.gpu.decode_image import decode_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
VGA = ImageFormat.packed("rgb8", 480, 640)


def picture(blocks: dict[tuple[int, int], tuple[int, int, int]]) -> np.ndarray:
    """A black VGA image with 80x80 px blocks: one cell of the network, by column and row.

    Letterboxed to 64x64, a cell has 8 px, the image 64x48 with 8 px of padding above.
    """
    image = np.zeros((480, 640, 3), np.uint8)
    for (column, row), colour in blocks.items():
        image[row * 80 : row * 80 + 80, column * 80 : column * 80 + 80] = colour
    return image.reshape(-1)


def detect(
    detector: Detector,
    pixels: np.ndarray,
    image_format: ImageFormat = VGA,
    **changes: object,
) -> Detections:
    wanted = replace(DetectionSettings(), **changes)  # type: ignore[arg-type]
    return detector.detect(pixels, image_format, wanted, SpanRecorder())


@pytest.mark.parametrize("head", HEADS)
def test_blocks_are_found_where_they_are(head: str, tmp_path: Path) -> None:
    detector = open_detector(write_detector(tmp_path, head))
    found = detect(detector, picture({(2, 1): GREEN, (6, 4): BLUE}))
    by_class = {CLASS_NAMES[i]: box.tolist() for i, box in zip(found.class_ids, found.boxes_xyxy)}
    assert by_class == {
        "green_block": pytest.approx([120, 40, 280, 200], abs=0.01),
        "blue_block": pytest.approx([440, 280, 600, 440], abs=0.01),
    }
    assert found.scores.tolist() == pytest.approx([1, 1], abs=1e-5)
    detector.close()


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return open_detector(write_detector(tmp_path_factory.mktemp("yolov8")))


def test_boxes_are_cut_to_the_image(detector: Detector) -> None:
    found = detect(detector, picture({(0, 0): RED}))
    assert found.boxes_xyxy.tolist() == [[0, 0, 120, 120]]


def test_stages_are_timed_in_order(detector: Detector) -> None:
    recorder = SpanRecorder()
    detector.detect(picture({}), VGA, DetectionSettings(), recorder)
    assert [span.stage for span in recorder.spans] == ["preprocess", "infer", "postprocess"]


def test_score_threshold_is_inclusive(detector: Detector) -> None:
    grey = picture({(3, 3): (153, 0, 0)})
    score = float(detect(detector, grey, score_threshold=0.5).scores[0])
    assert score == pytest.approx(0.6, abs=1e-5)
    assert len(detect(detector, grey, score_threshold=score)) == 1
    assert len(detect(detector, grey, score_threshold=0.61)) == 0


def test_class_filter_keeps_only_the_classes_named(detector: Detector) -> None:
    pixels = picture({(1, 1): RED, (4, 1): GREEN, (6, 4): BLUE})
    assert detect(detector, pixels, class_ids=frozenset({0, 2})).class_ids.tolist() == [0, 2]
    assert len(detect(detector, pixels, class_ids=frozenset())) == 0


def test_most_confident_detections_are_kept(detector: Detector) -> None:
    pixels = picture({(1, 1): (150, 0, 0), (4, 1): (0, 250, 0), (6, 4): (0, 0, 200)})
    found = detect(detector, pixels, max_detections=2)
    assert found.class_ids.tolist() == [1, 2]
    assert found.scores[0] > found.scores[1]


def test_overlapping_boxes_are_suppressed_within_a_class_only(detector: Detector) -> None:
    # Neighbouring cells give boxes that overlap by a third.
    same = picture({(3, 3): RED, (4, 3): (200, 0, 0)})
    assert len(detect(detector, same, nms_iou=0.3)) == 1
    assert len(detect(detector, same, nms_iou=0.4)) == 2
    other = picture({(3, 3): RED, (4, 3): (0, 200, 0)})
    assert len(detect(detector, other, nms_iou=0.3)) == 2


def test_bytes_that_do_not_fit_the_format_are_refused(detector: Detector) -> None:
    with pytest.raises(ImageError, match="wrong number of bytes"):
        detect(detector, np.zeros(100, np.uint8))


def test_closed_detector_refuses(tmp_path: Path) -> None:
    detector = open_detector(write_detector(tmp_path))
    detector.close()
    detector.close()
    with pytest.raises(EngineError, match="closed"):
        detect(detector, picture({}))


def test_failure_of_the_runtime_is_an_engine_error(tmp_path: Path) -> None:
    detector = open_detector(write_detector(tmp_path, fails_on_white=True))
    white = np.full(SIDE_PX * SIDE_PX * 3, 255, np.uint8)
    with pytest.raises(EngineError, match="Gather"):
        detect(detector, white, ImageFormat.packed("rgb8", SIDE_PX, SIDE_PX))
    assert len(detect(detector, picture({(2, 1): GREEN}))) == 1


# Models whose files are wrong.


def test_missing_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read manifest"):
        open_detector(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"class_names": ["a", "b"]}, ManifestError, "2 class names"),
        ({"head": "yolov5"}, ManifestError, "does not fit"),
        ({"sha256": "0" * 64}, ManifestError, "is not the one that manifest"),
        ({"outputs": [{"name": "output", "shape": [1, 7, 65]}]}, ManifestError, "on outputs"),
        ({"outputs": [{"name": "other", "shape": [1, 7, 64]}]}, ManifestError, "on outputs"),
        ({"inputs": [{"name": "x", "shape": [1, 3, 64, 64]}]}, ManifestError, "on inputs"),
        ({"model": "gone.onnx"}, ManifestError, "missing model"),
        ({"model": "../model.onnx"}, ManifestError, "outside its folder"),
    ],
)
def test_manifest_that_disagrees_with_its_model_is_told(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        open_detector(write_detector(tmp_path / "inside", **changes))


# Outputs gone wrong.


class GivenOutput:
    """A backend that answers what it is told to."""

    name = "given"

    def __init__(self, head: str, outputs: Sequence[np.ndarray]) -> None:
        shapes = {f"output{i}": output.shape for i, output in enumerate(outputs)}
        self.inputs = (TensorSpec("images", (1, 3, SIDE_PX, SIDE_PX)),)
        self.outputs = tuple(TensorSpec(name, shape) for name, shape in shapes.items())
        self.detector = Detector(parse_manifest(manifest_mapping(head, shapes)), self)
        self._outputs = outputs

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._outputs

    def close(self) -> None:
        pass


SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0, -1, 1, 0.5, 2, 88, 1e9, -1e9, 3e38, -3e38, 1e-45], np.float32
)


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.0, 0.3, 1.0]),
    nms_iou=st.sampled_from([0.0, 0.65, 1.0]),
)
def test_whatever_the_network_says_detections_are_sound(
    head: str, seed: int, threshold: float, nms_iou: float
) -> None:
    noise = np.random.default_rng(seed)
    outputs = [noise.choice(SPECIAL, shape) for shape in output_shapes(head).values()]
    for output in outputs:
        plain = noise.random(output.shape) < noise.random()
        output[plain] = noise.uniform(0, 64, int(plain.sum())).astype(np.float32)
    detector = GivenOutput(head, outputs).detector
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = detect(detector, picture({}), score_threshold=threshold, nms_iou=nms_iou)
    # Detections itself refuses NaN, infinities, crossed corners and scores out of range.
    assert ((found.boxes_xyxy >= 0) & (found.boxes_xyxy <= [640, 480, 640, 480])).all()
    assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
    assert ((found.class_ids >= 0) & (found.class_ids < len(CLASS_NAMES))).all()
    assert (found.scores >= threshold).all()


def test_absurd_box_of_one_class_suppresses_nothing_of_another() -> None:
    rows = np.zeros((1, 20, 8), np.float32)
    rows[0, 0] = [32, 32, 3e38, 3e38, 1, 1, 0, 0]
    rows[0, 1] = [10, 20, 8, 8, 1, 0, 0.9, 0]
    rows[0, 2] = [40, 40, 8, 8, 1, 0, 0.8, 0]
    rows[0, 3] = [-40, -40, 8, 8, 1, 0, 0.95, 0]
    found = detect(GivenOutput("yolov5", [rows]).detector, picture({}))
    assert sorted(found.class_ids.tolist()) == [0, 1, 1]


# Suppression.


def slow_suppress(found: Candidates, nms_iou: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-found.scores, kind="stable").tolist():
        rivals = [k for k in kept if found.class_ids[k] == found.class_ids[i]]
        ious = iou_matrix(found.boxes_xyxy[[i]], found.boxes_xyxy[rivals])
        if not (ious > nms_iou).any():
            kept.append(i)
    return sorted(kept)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_suppression_keeps_what_the_greedy_definition_keeps(seed: int, count: int) -> None:
    noise = np.random.default_rng(seed)
    corner = noise.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + noise.uniform(1, 60, (count, 2))], 1)
    found = Candidates(
        boxes.astype(np.float32),
        noise.permutation(np.linspace(0.1, 1, count)).astype(np.float32),
        noise.integers(0, 3, count).astype(np.int32),
    )
    assert suppress(found, 0.5).tolist() == slow_suppress(found, 0.5)


# A real model, where it is at hand.

SHARED_MODEL = Path(__file__).parents[3] / "shared" / "data" / "models" / "yolox_nano.onnx"


COCO_MINI = SHARED_MODEL.parents[1] / "coco-mini"


@pytest.mark.skipif(not SHARED_MODEL.is_file(), reason="the shared YOLOX-Nano is not at hand")
def test_yolox_nano_is_as_good_as_it_is_known_to_be(tmp_path: Path) -> None:
    # An independent evaluation gives mAP50-95 0.285, and 0.290 with several labels an anchor.
    pytest.importorskip("pycocotools")
    truth = json.loads((COCO_MINI / "instances.json").read_text())
    classes = sorted(truth["categories"], key=lambda category: category["id"])
    detector = open_detector(yolox_nano_manifest(tmp_path, [c["name"] for c in classes]))
    results = [
        {**result, "category_id": classes[result["category_id"]]["id"]}
        for image in truth["images"]
        for result in coco_results(detector, image)
    ]
    assert len(truth["images"]) == 32
    assert coco_map(results) == pytest.approx(0.285, abs=0.004)
    detector.close()


def coco_results(detector: Detector, image: dict[str, Any]) -> list[dict[str, Any]]:
    data = np.fromfile(COCO_MINI / "images" / image["file_name"], np.uint8)
    pixels, image_format = decode_image(data, 64 << 20)
    found = detect(detector, pixels.reshape(-1), image_format, score_threshold=0.001)
    xywh = found.boxes_xyxy.copy()
    xywh[:, 2:] -= xywh[:, :2]
    return [
        {"image_id": image["id"], "category_id": class_id, "bbox": box, "score": score}
        for box, score, class_id in zip(
            xywh.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True
        )
    ]


def coco_map(results: list[dict[str, Any]]) -> float:
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    truth = coco.COCO(str(COCO_MINI / "instances.json"))
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def yolox_nano_manifest(folder: Path, class_names: list[str]) -> Path:
    shutil.copy(SHARED_MODEL, folder / "model.onnx")
    mapping = manifest_mapping("yolox", (1, 3549, 85), sha256_of(SHARED_MODEL))
    mapping["class_names"] = class_names
    mapping["inputs"][0]["shape"] = [1, 3, 416, 416]
    mapping["preprocessing"].update(height=416, width=416, color="bgr", scale=1.0, pad_value=114)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path

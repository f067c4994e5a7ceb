"""The detection kernels' own source, on the CPU, against the decoders and OpenCV's suppression."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulated_gpu import FIND, KEPT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_emulation import by_reference, compile_for_cpu

from edge_perception.core.boxes import box_areas
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.detection.decoders import DECODERS
from edge_perception.detection.detector import suppress
from edge_perception.errors import EngineError
from edge_perception.gpu.head_layout import (
    MAX_CANDIDATES,
    GridLevel,
    HeadLayoutArgument,
    PlacementArgument,
    head_layout,
)

CLASSES = 5
SPEC = Preprocessing(64, 96)
BOX = Letterbox.fit((48, 80), (64, 96), "center")
LEVELS = [GridLevel(8, 12, 0), GridLevel(16, 6, 96), GridLevel(32, 3, 120)]
ANCHORS = 126
MAX_KEPT = 100

Decode = Callable[[str, np.ndarray, float, float], tuple[np.ndarray, int]]

_LAUNCHER = f"""{FIND}
extern "C" int layout_bytes() {{ return sizeof(HeadLayout); }}
extern "C" int candidate_bytes() {{ return sizeof(Candidate); }}
extern "C" int kept_bytes() {{ return sizeof(Kept); }}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("kernel")
    return compile_for_cpu("detections.cu", _LAUNCHER, folder)


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def decode(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Decode:
    """The kernels' source run on the CPU, and the kernels themselves where there is a GPU."""

    def run(head: str, output: np.ndarray, threshold: float, iou: float) -> tuple[np.ndarray, int]:
        anchors = output.shape[2] if head == "yolov8" else output.shape[1]
        layout = head_layout(head, anchors, CLASSES, LEVELS if head == "yolox" else ())
        kept = np.zeros(MAX_KEPT, KEPT)
        counts = (ctypes.c_int * 2)()
        library.find(
            output.ctypes.data_as(ctypes.c_void_p),
            *by_reference(layout, PlacementArgument.of(BOX)),
            ctypes.c_float(threshold),
            ctypes.c_float(iou),
            MAX_KEPT,
            kept.ctypes.data_as(ctypes.c_void_p),
            counts,
        )
        return kept[: counts[1]], counts[0]

    return run if request.param == "cpu" else decode_on_gpu


def decode_on_gpu(
    head: str, output: np.ndarray, threshold: float, iou: float
) -> tuple[np.ndarray, int]:
    from gpu_arrays import upload

    from edge_perception.gpu.cuda import Stream, get_device
    from edge_perception.gpu.detections_cuda import CudaDecoder

    stream = Stream(get_device())
    anchors = output.shape[2] if head == "yolov8" else output.shape[1]
    layout = head_layout(head, anchors, CLASSES, LEVELS if head == "yolox" else ())
    decoder = CudaDecoder(layout, MAX_KEPT)
    decoder.launch(upload(output), BOX, threshold, iou, stream.handle)
    stream.synchronize()
    found = decoder.collect()
    decoder.close()
    rows = np.zeros(len(found.scores), KEPT)
    rows["box"], rows["score"] = found.boxes_xyxy, found.scores
    rows["class_id"] = found.class_ids
    return rows, found.candidates


def raw_output(head: str, seed: int, anchors: int = ANCHORS) -> np.ndarray:
    """A crowded output whose boxes overlap often."""
    rng = np.random.default_rng(seed)
    rows = rng.random((1, anchors, 5 + CLASSES), np.float32)
    if head == "yolox":
        rows[:, :, 2:4] = rng.normal(0, 0.7, (1, anchors, 2))
    else:
        rows[:, :, :2] *= 60
        rows[:, :, 2:4] = rows[:, :, 2:4] * 30 + 5
    if head != "yolov8":
        return rows
    return np.ascontiguousarray(np.delete(rows, 4, axis=2).transpose(0, 2, 1))


def reference(head: str, output: np.ndarray, threshold: float, iou: float) -> np.ndarray:
    found = DECODERS[head]([output], SPEC, threshold)
    found = replace(found, boxes_xyxy=BOX.to_source(found.boxes_xyxy))
    found = found.select(box_areas(found.boxes_xyxy) > 0)
    found = found.select(np.argsort(-found.scores, kind="stable"))
    if len(found.scores):
        found = found.select(suppress(found, iou)[:MAX_KEPT])
    rows = np.zeros(len(found.scores), KEPT)
    rows["box"], rows["score"], rows["class_id"] = (
        found.boxes_xyxy,
        found.scores,
        found.class_ids,
    )
    return rows


def test_structures_have_the_kernels_sizes(library: ctypes.CDLL) -> None:
    assert library.layout_bytes() == ctypes.sizeof(HeadLayoutArgument)
    assert library.candidate_bytes() == 32
    assert library.kept_bytes() == KEPT.itemsize == 24


@pytest.mark.parametrize("head", ["yolov8", "yolov5", "yolox"])
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0.05, 0.95), iou=st.floats(0.2, 0.8))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_kernels_keep_what_the_cpu_keeps(
    decode: Decode, head: str, seed: int, threshold: float, iou: float
) -> None:
    output = raw_output(head, seed)
    kept, _ = decode(head, output, threshold, iou)
    expected = reference(head, output, np.float32(threshold), np.float32(iou))
    assert kept["class_id"].tolist() == expected["class_id"].tolist()
    np.testing.assert_allclose(kept["score"], expected["score"], rtol=1e-6)
    np.testing.assert_allclose(kept["box"], expected["box"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("head", ["yolov8", "yolov5", "yolox"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_never_come_out(
    decode: Decode, head: str, poison: float
) -> None:
    output = raw_output(head, seed=4)
    flat = output.reshape(-1)
    flat[np.random.default_rng(0).choice(flat.size, flat.size // 4, replace=False)] = poison
    with np.errstate(all="ignore"):
        kept, candidates = decode(head, output, 0.1, 0.6)
    assert candidates > 0
    assert np.isfinite(kept["box"]).all()
    assert np.isfinite(kept["score"]).all()


def test_equal_scores_are_ranked_by_anchor(decode: Decode) -> None:
    output = np.zeros((1, 8, 5 + CLASSES), np.float32)
    output[0, :, 0] = 6 + np.arange(8) * 10
    output[0, :, 1] = 30
    output[0, :, 2:4] = 8
    output[0, :, 4:6] = 1
    kept, _ = decode("yolov5", output, 0.5, 0.5)
    expected = BOX.to_source(np.array([[2 + 10 * i, 26, 10 + 10 * i, 34] for i in range(8)], "f"))
    np.testing.assert_allclose(kept["box"], expected, atol=1e-4)


def test_more_candidates_than_room_are_counted(decode: Decode) -> None:
    output = raw_output("yolov5", 1, anchors=MAX_CANDIDATES + 904)
    output[:, :, :2] = 30
    output[:, :, 4:] = 1
    kept, candidates = decode("yolov5", output, 0.01, 0.5)
    assert candidates == MAX_CANDIDATES + 904
    assert 0 < len(kept) <= MAX_KEPT


@pytest.mark.parametrize(
    ("head", "levels"),
    [("yolo_end_to_end", []), ("yolox", []), ("yolov8", LEVELS), ("yolox", LEVELS * 2)],
)
def test_head_that_the_kernels_cannot_decode_is_refused(head: str, levels: list[GridLevel]) -> None:
    with pytest.raises(EngineError, match="cannot be decoded on the GPU"):
        head_layout(head, 100, 5, levels)

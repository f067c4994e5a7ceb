"""Detectors of every head family that fit in a kilobyte and run in microseconds.

Each looks at the mean colour of the cells of its 64x64 px input and finds a ``red_block``,
``green_block`` or ``blue_block`` in every cell where that channel is bright: the score of a class
is the channel's mean, 0 to 1, and the box is twice the cell's size around its centre. So what
they find depends on the picture, and is known beforehand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from edge_perception.backends.store import sha256_of

SIDE_PX = 64
CELL_PX = 8
CLASS_NAMES = ("red_block", "green_block", "blue_block")
HEADS = ("yolov5", "yolov8", "yolox", "yolo_end_to_end")

Nodes = list[onnx.NodeProto]
Constants = dict[str, np.ndarray]


def _cells(stride: int) -> np.ndarray:
    """Cell coordinates (x, y) in reading order, float32 (N, 2)."""
    side = SIDE_PX // stride
    y, x = np.divmod(np.arange(side * side), side)
    return np.stack([x, y], axis=1).astype(np.float32)


def _mean_colours(stride: int) -> Nodes:
    """``images`` to the mean colour of each cell, (1, 3, cells)."""
    return [
        helper.make_node(
            "AveragePool",
            ["images"],
            [f"pool{stride}"],
            kernel_shape=[stride, stride],
            strides=[stride, stride],
        ),
        helper.make_node("Reshape", [f"pool{stride}", "flat"], [f"means{stride}"]),
    ]


def _yolov8() -> tuple[Nodes, Constants, tuple[int, ...]]:
    boxes = np.concatenate([(_cells(CELL_PX) + 0.5) * CELL_PX, np.full((64, 2), 16, np.float32)], 1)
    join = helper.make_node("Concat", ["boxes", "means8"], ["output"], axis=1)
    return [*_mean_colours(8), join], {"boxes": boxes.T[None]}, (1, 7, 64)


def _yolov5() -> tuple[Nodes, Constants, tuple[int, ...]]:
    boxes = np.concatenate([(_cells(CELL_PX) + 0.5) * CELL_PX, np.full((64, 2), 16, np.float32)], 1)
    rows = np.concatenate([boxes, np.ones((64, 1), np.float32)], 1)[None]
    turn = helper.make_node("Transpose", ["means8"], ["scores"], perm=[0, 2, 1])
    join = helper.make_node("Concat", ["rows", "scores"], ["output"], axis=2)
    return [*_mean_colours(8), turn, join], {"rows": rows}, (1, 64, 8)


def _yolox() -> tuple[Nodes, Constants, tuple[int, ...]]:
    """Offsets of half a cell, log sizes of two cells; the coarser strides see nothing."""
    anchors = 64 + 16 + 4
    rows = np.full((1, anchors, 5), 0.5, np.float32)
    rows[..., 2:4] = np.log(2)
    rows[..., 4] = 1
    blind = np.zeros((1, 3, anchors - 64), np.float32)
    nodes = [
        *_mean_colours(8),
        helper.make_node("Concat", ["means8", "blind"], ["all"], axis=2),
        helper.make_node("Transpose", ["all"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["rows", "scores"], ["output"], axis=2),
    ]
    return nodes, {"rows": rows, "blind": blind}, (1, anchors, 8)


def _end_to_end() -> tuple[Nodes, Constants, tuple[int, ...]]:
    centres = (_cells(CELL_PX) + 0.5) * CELL_PX
    corners = np.concatenate([centres - 8, centres + 8], 1)[None]
    nodes = [
        *_mean_colours(8),
        helper.make_node("Transpose", ["means8"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["scores"], ["best"], axes=[2], keepdims=1),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=2, keepdims=1),
        helper.make_node("Cast", ["index"], ["class"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["corners", "best", "class"], ["output"], axis=2),
    ]
    return nodes, {"corners": corners}, (1, 64, 6)


_FAMILIES = {
    "yolov5": _yolov5,
    "yolov8": _yolov8,
    "yolox": _yolox,
    "yolo_end_to_end": _end_to_end,
}


def write_model(path: Path, head: str, *, fails_on_white: bool = False) -> tuple[int, ...]:
    """Write the ONNX model of a head family and return its output's shape.

    With ``fails_on_white`` the runtime itself fails on a picture that is white all over: an index
    computed from the brightness then leaves its table.
    """
    nodes, constants, shape = _FAMILIES[head]()
    constants["flat"] = np.array([1, 3, -1], np.int64)
    if fails_on_white:
        nodes = [*_failing_on_white(), *nodes]
        nodes[-1].output[0] = "found"
        nodes.append(helper.make_node("Mul", ["found", "one"], ["output"]))
        constants["table"] = np.ones((1,), np.float32)
    graph = helper.make_graph(
        nodes,
        f"tiny_{head}",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIDE_PX, SIDE_PX))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return shape


def _failing_on_white() -> Nodes:
    """``images`` to ``one``: 1 for every picture but a white one, whose index 1 is out of range."""
    return [
        helper.make_node("ReduceMin", ["images"], ["darkest"], keepdims=0),
        helper.make_node("Cast", ["darkest"], ["index_white"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index_white"], ["one"], axis=0),
    ]


def manifest_mapping(head: str, shape: tuple[int, ...], sha256: str = "0" * 64) -> dict[str, Any]:
    """Return the manifest of a tiny model as the mapping that stands in its file."""
    return {
        "schema": 1,
        "name": f"tiny_{head}",
        "model": "model.onnx",
        "sha256": sha256,
        "license": "Apache-2.0",
        "source": "built by a test",
        "head": head,
        "class_names": list(CLASS_NAMES),
        "inputs": [{"name": "images", "shape": [1, 3, SIDE_PX, SIDE_PX]}],
        "outputs": [{"name": "output", "shape": list(shape)}],
        "preprocessing": {
            "height": SIDE_PX,
            "width": SIDE_PX,
            "pad_align": "top_left" if head == "yolox" else "center",
            "pad_value": 0,
        },
    }


def write_detector(
    folder: Path, head: str = "yolov8", /, *, fails_on_white: bool = False, **changes: Any
) -> Path:
    """Write ``model.onnx`` and ``manifest.yaml``, with changes to the latter; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = write_model(folder / "model.onnx", head, fails_on_white=fails_on_white)
    mapping = manifest_mapping(head, shape, sha256_of(folder / "model.onnx"))
    mapping.update(changes)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path

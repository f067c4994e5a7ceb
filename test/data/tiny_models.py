"""Detectors of every head family that fit in a kilobyte and run in microseconds.

Each looks at the mean colour of the cells of its 64x64 px input and finds a ``red_block``,
``green_block`` or ``blue_block`` in every cell where that channel is bright: the score of a class
is the channel's mean, 0 to 1, and the box is twice the cell's size around its centre. So what
they find depends on the picture, and is known beforehand. Only ``detr``, whose scores compete in a
softmax, knows no middle: a channel above half is sure, one below is nothing.
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
HEADS = ("yolov5", "yolov8", "yolox", "yolo_end_to_end", "rtdetr", "detr")

Nodes = list[onnx.NodeProto]
Constants = dict[str, np.ndarray]
# Outputs' shapes by name, in the graph's order.
Outputs = dict[str, tuple[int, ...]]
Family = tuple[Nodes, Constants, Outputs]


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


def _yolov8() -> Family:
    boxes = np.concatenate([(_cells(CELL_PX) + 0.5) * CELL_PX, np.full((64, 2), 16, np.float32)], 1)
    join = helper.make_node("Concat", ["boxes", "means8"], ["output"], axis=1)
    return [*_mean_colours(8), join], {"boxes": boxes.T[None]}, {"output": (1, 7, 64)}


def _yolov5() -> Family:
    boxes = np.concatenate([(_cells(CELL_PX) + 0.5) * CELL_PX, np.full((64, 2), 16, np.float32)], 1)
    rows = np.concatenate([boxes, np.ones((64, 1), np.float32)], 1)[None]
    turn = helper.make_node("Transpose", ["means8"], ["scores"], perm=[0, 2, 1])
    join = helper.make_node("Concat", ["rows", "scores"], ["output"], axis=2)
    return [*_mean_colours(8), turn, join], {"rows": rows}, {"output": (1, 64, 8)}


def _yolox() -> Family:
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
    return nodes, {"rows": rows, "blind": blind}, {"output": (1, anchors, 8)}


def _end_to_end() -> Family:
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
    return nodes, {"corners": corners}, {"output": (1, 64, 6)}


def _classifier() -> Family:
    """The mean colour of the whole picture, times 1000: the class is its strongest channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("Mul", ["colour", "thousand"], ["logits"]),
    ]
    return nodes, {"thousand": np.full(1, 1000, np.float32)}, {"logits": (1, 3)}


def _queries() -> np.ndarray:
    """Boxes of twice a cell's size, as shares of the input."""
    centres = (_cells(CELL_PX) + 0.5) * CELL_PX / SIDE_PX
    return np.concatenate([centres, np.full((64, 2), 16 / SIDE_PX, np.float32)], 1)[None]


def _rtdetr() -> Family:
    """The logit of a channel's mean, so that its sigmoid is the mean again."""
    nodes = [
        *_mean_colours(8),
        helper.make_node("Transpose", ["means8"], ["means"], perm=[0, 2, 1]),
        helper.make_node("Sub", ["unit", "means"], ["rest"]),
        helper.make_node("Div", ["means", "rest"], ["odds"]),
        helper.make_node("Log", ["odds"], ["logits"]),
        helper.make_node("Identity", ["queries"], ["boxes"]),
    ]
    constants = {"unit": np.ones(1, np.float32), "queries": _queries()}
    return nodes, constants, {"logits": (1, 64, 3), "boxes": (1, 64, 4)}


def _detr() -> Family:
    """A channel's mean times 100 against 50 for "nothing"."""
    nodes = [
        *_mean_colours(8),
        helper.make_node("Transpose", ["means8"], ["means"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["means", "hundred"], ["sharp"]),
        helper.make_node("Concat", ["sharp", "nothing"], ["logits"], axis=2),
        helper.make_node("Identity", ["queries"], ["boxes"]),
    ]
    constants = {
        "hundred": np.full(1, 100, np.float32),
        "nothing": np.full((1, 64, 1), 50, np.float32),
        "queries": _queries(),
    }
    return nodes, constants, {"logits": (1, 64, 4), "boxes": (1, 64, 4)}


_FAMILIES = {
    "yolov5": _yolov5,
    "yolov8": _yolov8,
    "yolox": _yolox,
    "yolo_end_to_end": _end_to_end,
    "rtdetr": _rtdetr,
    "detr": _detr,
    "classifier": _classifier,
}


def output_shapes(head: str) -> Outputs:
    """The outputs of a head family's model."""
    return _FAMILIES[head]()[2]


def write_model(path: Path, head: str, *, fails_on_white: bool = False) -> Outputs:
    """Write the ONNX model of a head family and return its outputs' shapes.

    With ``fails_on_white`` the runtime itself fails on a picture that is white all over: an index
    computed from the brightness then leaves its table.
    """
    nodes, constants, outputs = _FAMILIES[head]()
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
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return outputs


def _failing_on_white() -> Nodes:
    """``images`` to ``one``: 1 for every picture but a white one, whose index 1 is out of range."""
    return [
        helper.make_node("ReduceMin", ["images"], ["darkest"], keepdims=0),
        helper.make_node("Cast", ["darkest"], ["index_white"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index_white"], ["one"], axis=0),
    ]


def manifest_mapping(
    head: str, outputs: Outputs | tuple[int, ...], sha256: str = "0" * 64
) -> dict[str, Any]:
    """Return the manifest of a tiny model as the mapping that stands in its file.

    ``outputs`` may be the shape of one output, which is then called "output".
    """
    outputs = {"output": outputs} if isinstance(outputs, tuple) else outputs
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
        "outputs": [{"name": name, "shape": list(shape)} for name, shape in outputs.items()],
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
    outputs = write_model(folder / "model.onnx", head, fails_on_white=fails_on_white)
    mapping = manifest_mapping(head, outputs, sha256_of(folder / "model.onnx"))
    mapping.update(changes)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path

"""ONNX graphs made node by node, and a detector with convolutions whose detections are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper
from tiny_models import SIDE_PX, manifest_mapping

from edge_perception.backends.store import sha256_of
from edge_perception.quantization.int8.graph import FloatGraph, prepare


class GraphBuilder:
    """Adds nodes one by one, each named after its output; ends as a model of one input."""

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shape = shape
        self._random = np.random.default_rng(seed)

    def constant(self, values: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = values
        return name

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        output = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def conv(self, source: str, channels: tuple[int, int], kernel: int = 1, group: int = 1) -> str:
        out, inner = channels[1], channels[0] // group
        fan_in = inner * kernel * kernel
        weight = self._random.normal(0, fan_in**-0.5, (out, inner, kernel, kernel))
        bias = self._random.normal(0, 0.1, out)
        names = [self.constant(value.astype(np.float32)) for value in (weight, bias)]
        return self.add("Conv", source, *names, pads=[kernel // 2] * 4, group=group)

    def silu(self, source: str) -> str:
        return self.add("Mul", source, self.add("Sigmoid", source))

    def model(self, output: str, opset: int = 17) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["output"], name="last"))
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        return onnx.shape_inference.infer_shapes(model)

    def graph(self, output: str) -> FloatGraph:
        return FloatGraph(prepare(self.model(output)))


def write_conv_detector(folder: Path, **changes: object) -> Path:
    """Write a detector of coloured blocks whose cells are convolutions; return its manifest.

    Of the head family yolov8: a 1x1 convolution and a ReLU, the mean of 8x8 px as a convolution,
    a residual sum with a depthwise convolution that adds nothing, and a predicting 1x1 convolution.
    """
    builder = GraphBuilder((1, 3, SIDE_PX, SIDE_PX))
    one = np.eye(3, dtype=np.float32)[:, :, None, None]
    mean = np.tile(one / 64, (1, 1, 8, 8))
    none = builder.constant(np.zeros(3, np.float32))
    seen = builder.add("Relu", builder.add("Conv", "images", builder.constant(one), none))
    pooled = builder.add("Conv", seen, builder.constant(mean), none, strides=[8, 8])
    nothing = builder.constant(np.full((3, 1, 3, 3), 1e-4, np.float32))
    deep = builder.add("Conv", pooled, nothing, none, pads=[1, 1, 1, 1], group=3)
    total = builder.add("Add", pooled, builder.add("Relu", deep))
    scores = builder.add("Conv", total, builder.constant(one.copy()), none)
    rows = builder.add("Reshape", scores, builder.constant(np.array([1, 3, 64])))
    y, x = np.divmod(np.arange(64), 8)
    boxes = np.stack([x * 8 + 4, y * 8 + 4, np.full(64, 16), np.full(64, 16)]).astype(np.float32)
    output = builder.add("Concat", builder.constant(boxes[None]), rows, axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    model = builder.model(output)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    mapping = manifest_mapping("yolov8", (1, 7, 64), sha256_of(folder / "model.onnx")) | changes
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path

"""The two towers of a small Idefics3 as ONNX graphs, made from a quantised checkpoint on opening.

The checkpoint that torch runs is the one that is stored; what ONNX Runtime needs is made of it in
half a second, so that there are no second weights to carry and to go stale. The graphs are built
of ONNX Runtime's own operators (``MatMulNBits``, ``GroupQueryAttention`` with its rotation and
cache, fused norms): an exported trace would have to be pattern-matched into these again.

Weights stay in 4 bits and are multiplied in float32 (``accuracy_level`` 1), which gives torch's
results but for rounding. The vision tower may round its inputs to 8 bits as well (level 4: whole
numbers, a scale for each group of a row).

Patches come in the order in which pixel shuffle joins them: attention does not mind the order, and
joining is then a reshape. So the vision graph knows nothing of the picture's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from edge_perception.core.language_model import LanguageModelShape, read_shape
from edge_perception.errors import CheckpointError
from edge_perception.vlm.nibbles import NibbleCheckpoint, NibbleMatrix, stack

_MICROSOFT = "com.microsoft"
_FLOAT32_COMPUTE, _INT8_COMPUTE = 1, 4
_VISION, _TEXT = "model.vision_model", "model.text_model"


class _Graph:
    """Nodes and weights of a graph being built; every method returns its node's first output.

    With ``int8`` linear layers round their inputs to 8 bits.
    """

    def __init__(self, *, int8: bool = False) -> None:
        self._compute = _INT8_COMPUTE if int8 else _FLOAT32_COMPUTE
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, value: npt.NDArray[Any]) -> str:
        """Hold a constant; returns its name."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1,
             domain: str = "", **attributes: Any) -> list[str]:  # fmt: skip
        """Add a node with some outputs, or with those named; returns their names."""
        if isinstance(outputs, int):
            outputs = [f"n{len(self._nodes)}_{index}" for index in range(outputs)]
        made = helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
        self._nodes.append(made)
        return list(outputs)

    def linear(self, data: str, matrix: NibbleMatrix) -> str:
        """``data`` [..., K] times a 4-bit matrix, plus its bias."""
        rows, columns = matrix.codes.shape
        inputs = [
            data,
            self.weight(matrix.packed_codes()),
            self.weight(matrix.scales.reshape(-1)),
            self.weight(matrix.packed_zeros()),
        ]
        product = self.node(
            "MatMulNBits", inputs, domain=_MICROSOFT, K=columns, N=rows, bits=4,
            block_size=matrix.group_size, accuracy_level=self._compute,
        )[0]  # fmt: skip
        if matrix.bias is None:
            return product
        return self.node("Add", [product, self.weight(matrix.bias)])[0]

    def matmul(self, data: str, weight: npt.NDArray[Any]) -> str:
        """``data`` [..., K] times a float weight [N, K]."""
        return self.node("MatMul", [data, self.weight(weight.T)])[0]

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        """The finished model."""
        graph = helper.make_graph(self._nodes, "tower", list(inputs), list(outputs), self._weights)
        imports = [helper.make_opsetid("", 20), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        data: bytes = model.SerializeToString()
        return data


def _float(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _integer(name: str, *shape: int | str, wide: bool = True) -> Any:
    kind = TensorProto.INT64 if wide else TensorProto.INT32
    return helper.make_tensor_value_info(name, kind, list(shape))


def vision_graph(checkpoint: NibbleCheckpoint, *, int8: bool = False) -> bytes:
    """The vision tower and the connector, as the bytes of an ONNX model.

    Inputs: ``patches`` float32 (1, P, 3 * side^2), joined in fours by their order; ``positions``
    int64 (P,). Output: ``tokens`` float32 (1, P / pooling^2, width of the language tower). With
    ``int8`` linear layers round their inputs to 8 bits; patches and connector stay in float32.
    """
    config = checkpoint.config["vision_config"]
    _expect_activation(config, "gelu_pytorch_tanh")
    graph, width = _Graph(int8=int8), int(config["hidden_size"])
    embedding = f"{_VISION}.embeddings.patch_embedding"
    kernel = checkpoint.floats(f"{embedding}.weight").reshape(width, -1)
    seen = graph.matmul("patches", kernel)
    seen = graph.node("Add", [seen, graph.weight(checkpoint.floats(f"{embedding}.bias"))])[0]
    table = checkpoint.floats(f"{_VISION}.embeddings.position_embedding.weight")
    places = graph.node("Gather", [graph.weight(table), "positions"])[0]
    hidden = graph.node("Add", [seen, places])[0]
    for index in range(int(config["num_hidden_layers"])):
        hidden = _vision_layer(graph, checkpoint, f"{_VISION}.encoder.layers.{index}", hidden)
    hidden = _layer_norm(graph, checkpoint, f"{_VISION}.post_layernorm", hidden)
    joined = width * int(checkpoint.config["scale_factor"]) ** 2
    shape = graph.weight(np.array([1, -1, joined], np.int64))
    hidden = graph.node("Reshape", [hidden, shape])[0]
    projection = checkpoint.floats("model.connector.modality_projection.proj.weight")
    graph.node("MatMul", [hidden, graph.weight(projection.T)], ["tokens"])
    return graph.model(
        [_float("patches", 1, "P", kernel.shape[1]), _integer("positions", "P")],
        [_float("tokens", 1, "T", projection.shape[0])],
    )


def _vision_layer(graph: _Graph, checkpoint: NibbleCheckpoint, name: str, hidden: str) -> str:
    heads = int(checkpoint.config["vision_config"]["num_attention_heads"])
    normed = _layer_norm(graph, checkpoint, f"{name}.layer_norm1", hidden)
    parts = [checkpoint.matrix(f"{name}.self_attn.{part}_proj") for part in ("q", "k", "v")]
    qkv = graph.linear(normed, stack(parts))
    query, key, value = graph.node("Split", [qkv], 3, axis=-1, num_outputs=3)
    attended = graph.node(
        "MultiHeadAttention", [query, key, value], domain=_MICROSOFT, num_heads=heads
    )[0]
    output = graph.linear(attended, checkpoint.matrix(f"{name}.self_attn.out_proj"))
    hidden = graph.node("Add", [hidden, output])[0]
    normed = _layer_norm(graph, checkpoint, f"{name}.layer_norm2", hidden)
    wide = graph.linear(normed, checkpoint.matrix(f"{name}.mlp.fc1"))
    wide = graph.node("Gelu", [wide], approximate="tanh")[0]
    return graph.node("Add", [hidden, graph.linear(wide, checkpoint.matrix(f"{name}.mlp.fc2"))])[0]


def _layer_norm(graph: _Graph, checkpoint: NibbleCheckpoint, name: str, hidden: str) -> str:
    weights = [graph.weight(checkpoint.floats(f"{name}.{part}")) for part in ("weight", "bias")]
    epsilon = float(checkpoint.config["vision_config"].get("layer_norm_eps", 1e-6))
    return graph.node("LayerNormalization", [hidden, *weights], axis=-1, epsilon=epsilon)[0]


def language_graph(checkpoint: NibbleCheckpoint, capacity: int) -> bytes:
    """The language tower with its cache, as the bytes of an ONNX model.

    Inputs: ``embeddings`` float32 (1, T, width); ``last`` int32 (1,), the sequence's length after
    them less one; ``length`` int32 (1,); and for each layer ``key_i`` and ``value_i`` float32
    (1, KV heads, past, head). Outputs: ``logits`` float32 (1, V) of the last token, and each
    layer's ``new_key_i`` and ``new_value_i``. ``capacity`` is the most tokens of a sequence.
    """
    shape = read_shape(checkpoint.config)
    if shape.qkv_bias or shape.qk_norm or not shape.tied_head or any(shape.windows):
        raise CheckpointError("a language tower that this graph has no nodes for", got=shape.family)
    graph = _Graph()
    rotation = [graph.weight(table) for table in rotary_tables(checkpoint.config, shape, capacity)]
    hidden = "embeddings"
    for index in range(shape.layers):
        hidden = _text_layer(graph, checkpoint, shape, index, hidden, rotation)
    final = graph.weight(np.array([-1], np.int64))
    hidden = graph.node("Gather", [hidden, final], axis=1)[0]
    hidden = _rms_norm(graph, checkpoint, shape, f"{_TEXT}.norm", hidden)
    logits = graph.matmul(hidden, embedding_table(checkpoint))
    graph.node("Squeeze", [logits, graph.weight(np.array([1], np.int64))], ["logits"])
    caches = [f"{part}_{index}" for index in range(shape.layers) for part in ("key", "value")]
    past = [_float(name, 1, shape.kv_heads, "past", shape.head_dim) for name in caches]
    present = [_float(f"new_{name}", 1, shape.kv_heads, "all", shape.head_dim) for name in caches]
    sequence = [_integer("last", 1, wide=False), _integer("length", 1, wide=False)]
    return graph.model(
        [_float("embeddings", 1, "T", shape.hidden_size), *sequence, *past],
        [_float("logits", 1, shape.vocab_size), *present],
    )


def _text_layer(
    graph: _Graph,
    checkpoint: NibbleCheckpoint,
    shape: LanguageModelShape,
    index: int,
    hidden: str,
    rotation: Sequence[str],
) -> str:
    name = f"{_TEXT}.layers.{index}"
    normed = _rms_norm(graph, checkpoint, shape, f"{name}.input_layernorm", hidden)
    parts = [checkpoint.matrix(f"{name}.self_attn.{part}_proj") for part in ("q", "k", "v")]
    qkv = graph.linear(normed, stack(parts))
    attended = graph.node(
        "GroupQueryAttention",
        [qkv, "", "", f"key_{index}", f"value_{index}", "last", "length", *rotation],
        [f"attended_{index}", f"new_key_{index}", f"new_value_{index}"],
        domain=_MICROSOFT, num_heads=shape.query_heads, kv_num_heads=shape.kv_heads, do_rotary=1,
    )[0]  # fmt: skip
    output = graph.linear(attended, checkpoint.matrix(f"{name}.self_attn.o_proj"))
    hidden = graph.node("Add", [hidden, output])[0]
    normed = _rms_norm(graph, checkpoint, shape, f"{name}.post_attention_layernorm", hidden)
    pair = stack([checkpoint.matrix(f"{name}.mlp.{part}_proj") for part in ("gate", "up")])
    gate, up = graph.node("Split", [graph.linear(normed, pair)], 2, axis=-1, num_outputs=2)
    opened = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])[0]])[0]
    wide = graph.node("Mul", [opened, up])[0]
    down = graph.linear(wide, checkpoint.matrix(f"{name}.mlp.down_proj"))
    return graph.node("Add", [hidden, down])[0]


def _rms_norm(
    graph: _Graph, checkpoint: NibbleCheckpoint, shape: LanguageModelShape, name: str, hidden: str
) -> str:
    weight = graph.weight(checkpoint.floats(f"{name}.weight"))
    return graph.node(
        "SimplifiedLayerNormalization", [hidden, weight], axis=-1, epsilon=shape.norm_eps
    )[0]


def embedding_table(checkpoint: NibbleCheckpoint) -> npt.NDArray[np.float32]:
    """The embedding of each token, float32 (V, width); it is the head as well."""
    return checkpoint.floats(f"{_TEXT}.embed_tokens.weight")


def rotary_tables(
    config: Mapping[str, Any], shape: LanguageModelShape, capacity: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines float32 (capacity, head / 2) of each position's angles.

    Raises ``CheckpointError`` for a scaled rotation.
    """
    rope = config["text_config"].get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError("rotary scaling", expected="default", got=rope.get("rope_type"))
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    frequencies = 1.0 / float(rope.get("rope_theta", 10000.0)) ** exponents
    angles = np.outer(np.arange(capacity, dtype=np.float32), frequencies.astype(np.float32))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _expect_activation(config: Mapping[str, Any], expected: str) -> None:
    found = config.get("hidden_act", expected)
    if found != expected:
        raise CheckpointError("unknown activation", expected=expected, got=found)

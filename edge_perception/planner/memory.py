"""Bytes: of weights by layer and scheme, of the cache, of what a prefill needs, of the rest.

Weights and cache are counted as ``vlm/packed_linear.py`` and ``vlm/kv_cache.py`` allocate them,
to the byte; tests hold the two together. What a prefill needs beside them is an upper estimate:
the largest tensors alive at once in a chunk, and one layer's largest matrix in FP16, which the
fall-back (dequantise, then a dense product) would want.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.core.language_model import LanguageModelShape
from edge_perception.errors import ConfigError

PREFILL_CHUNK = 512
_FLOAT_BYTES = 2


@dataclass(frozen=True)
class WeightScheme:
    """How matrices are held: ``bits`` 16 for float, or 8 or 4 in groups with FP16 scales."""

    name: str
    bits: int
    group_size: int = 0

    @property
    def precision(self) -> str:
        """The family of kernels that runs it: fp16, int8 or int4."""
        return "fp16" if self.bits == 16 else f"int{self.bits}"

    def matrix_bytes(self, rows: int, columns: int, *, bias: bool = False) -> int:
        """Bytes of a matrix [rows, columns]: codes, an FP16 scale and a zero byte a group."""
        extra = rows * _FLOAT_BYTES if bias else 0
        if self.bits == 16:
            return rows * columns * _FLOAT_BYTES + extra
        if columns % self.group_size:
            raise ConfigError(
                f"weights {self.name!r} do not fit a matrix {columns} wide",
                expected=f"a group size that divides {columns}",
                got=self.group_size,
                mend="Plan with a smaller group, such as int4-g64 or int4-g32.",
            )
        groups = columns // self.group_size
        return rows * columns * self.bits // 8 + rows * groups * (_FLOAT_BYTES + 1) + extra


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        WeightScheme("fp16", 16),
        *(WeightScheme(f"int{b}-g{g}", b, g) for b in (4, 8) for g in (32, 64, 128)),
    )
}
"""Weight schemes by name."""

KV_BYTES = {"fp16": (_FLOAT_BYTES, 0), "int8": (1, 4)}
"""Bytes of an element and of the scale a vector has, by cache format."""


def scheme_named(name: str) -> WeightScheme:
    """The scheme; raises ``ConfigError`` for a name that is none."""
    if name not in SCHEMES:
        raise ConfigError("unknown weights", expected=" or ".join(SCHEMES), got=name)
    return SCHEMES[name]


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a language model's weights by part; ``head`` is 0 where it is the embedding."""

    layers: int
    norms: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """Bytes in memory."""
        return self.layers + self.norms + self.embedding + self.head


def count_weights(
    shape: LanguageModelShape, weights: WeightScheme, head: WeightScheme
) -> WeightBytes:
    """Bytes of all weights; a tied embedding is held once, in the head's scheme."""
    layer = sum(
        weights.matrix_bytes(rows, columns, bias=bias)
        for rows, columns, bias in shape.layer_linears().values()
    )
    table = head.matrix_bytes(shape.vocab_size, shape.hidden_size)
    plain = shape.embedding_parameters * _FLOAT_BYTES
    return WeightBytes(
        layers=shape.layers * layer,
        norms=shape.norm_parameters * _FLOAT_BYTES,
        embedding=table if shape.tied_head else plain,
        head=0 if shape.tied_head else table,
    )


def bytes_read_per_token(
    shape: LanguageModelShape, weights: WeightScheme, head: WeightScheme
) -> int:
    """Bytes of weights that a decode step reads: all but the embedding, of which it reads a row."""
    counted = count_weights(shape, weights, head)
    table = counted.embedding if shape.tied_head else counted.head
    row = counted.embedding // shape.vocab_size
    return counted.layers + counted.norms + table + row


def kv_bytes_per_token(shape: LanguageModelShape, kv_format: str) -> int:
    """Bytes that one position takes in the cache, all layers."""
    if kv_format not in KV_BYTES:
        raise ConfigError("unknown KV format", expected=" or ".join(KV_BYTES), got=kv_format)
    element, scale = KV_BYTES[kv_format]
    return 2 * shape.layers * shape.kv_heads * (shape.head_dim * element + scale)


def kv_bytes_read(shape: LanguageModelShape, kv_format: str, context: int) -> int:
    """Bytes of the cache that one decode step reads at ``context``; windows see less."""
    a_layer = kv_bytes_per_token(shape, kv_format) // shape.layers
    return sum(
        a_layer * (context if window is None else min(window, context)) for window in shape.windows
    )


def activation_bytes(shape: LanguageModelShape, weights: WeightScheme, context: int) -> int:
    """Bytes beside weights and cache: a chunk's tensors, logits, rotary tables, workspace."""
    matrices = shape.layer_linears().values()
    widest = max(rows for rows, _, _ in matrices)
    rows = min(PREFILL_CHUNK, context)
    chunk = rows * (3 * shape.hidden_size + widest + widest // 2) * _FLOAT_BYTES
    logits = 8 * shape.vocab_size * 4
    rotary = context * shape.head_dim * 4
    dense = max(rows * columns for rows, columns, _ in matrices) * _FLOAT_BYTES
    return chunk + logits + rotary + (0 if weights.bits == 16 else dense)


def loading_bytes(shape: LanguageModelShape, weights: WeightScheme) -> int:
    """The most that loading holds beyond the weights themselves, an upper estimate.

    Either one layer's stacked matrices, while their sources still exist, or one stored matrix on
    its way into the packed layout: a byte a code from the file, and four where they are joined.
    """
    linears = shape.layer_linears()
    stacked = sum(
        weights.matrix_bytes(linears[name][0], linears[name][1]) for name in ("qkv", "gate_up")
    )
    if weights.bits == 16:
        return stacked
    return max(stacked, 6 * shape.intermediate_size * shape.hidden_size)

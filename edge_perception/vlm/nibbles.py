"""A quantised checkpoint read by NumPy alone, for runtimes without torch.

Of the published layouts only AutoAWQ's "gemm", which our toolkit writes, is read here; all others
come through ``vlm.loaders``, which has torch. Codes end up as ONNX Runtime's ``MatMulNBits`` wants
them: along K, two a byte, blocks of one group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edge_perception.errors import CheckpointError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

# Output channel, among 8 neighbours, that nibble i of an AutoAWQ word holds.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_CODES_A_WORD = 8


@dataclass(frozen=True)
class NibbleMatrix:
    """A linear weight [N, K] in 4 bits: w[n, k] = (codes[n, k] - zeros[n, G(k)]) * scales[n, G(k)].

    ``codes`` uint8 [N, K] below 16; ``scales`` float32 and ``zeros`` uint8 [N, G]; ``bias`` float32
    [N] or None.
    """

    codes: ByteArray
    scales: FloatArray
    zeros: ByteArray
    bias: FloatArray | None = None

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def packed_codes(self) -> ByteArray:
        """uint8 [N, G, group_size / 2]; the lower nibble holds the earlier column."""
        rows, groups = self.scales.shape
        pairs = self.codes.reshape(rows, groups, -1, 2)
        return _join(pairs[..., 0], pairs[..., 1])

    def packed_zeros(self) -> ByteArray:
        """uint8 [N * ceil(G / 2)]; the lower nibble holds the earlier group."""
        padded = np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2)))
        return _join(padded[:, ::2], padded[:, 1::2]).reshape(-1)


def stack(parts: Sequence[NibbleMatrix]) -> NibbleMatrix:
    """Matrices over the same input as one, their rows below each other."""
    biases = [part.bias for part in parts if part.bias is not None]
    return NibbleMatrix(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        np.concatenate(biases) if biases else None,
    )


class NibbleCheckpoint:
    """A checkpoint directory in memory; ``config`` is its ``config.json``.

    Raises ``CheckpointError`` for files that are missing or damaged, and for another layout.
    """

    def __init__(self, directory: Path) -> None:
        self.config = _read_config(directory / "config.json")
        quantization = self.config.get("quantization_config") or {}
        kind = (quantization.get("quant_method"), quantization.get("version"))
        if kind != ("awq", "gemm") or quantization.get("bits") != 4:
            raise CheckpointError(
                "this runtime reads one layout of quantised checkpoints",
                expected="AutoAWQ's gemm in 4 bits",
                got=kind,
                mend="Quantise with edge-perception quantize --layout awq, or run it on torch.",
            )
        self._tensors: dict[str, npt.NDArray[Any]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            try:
                self._tensors |= load_file(path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path.name} cannot be read ({error})") from error

    def floats(self, name: str) -> FloatArray:
        """A tensor in float32."""
        return self._tensor(name).astype(np.float32)

    def matrix(self, layer: str) -> NibbleMatrix:
        """The quantised linear layer ``layer``."""
        words, scales = self._tensor(f"{layer}.qweight"), self._tensor(f"{layer}.scales")
        zeros = self._tensor(f"{layer}.qzeros")
        columns, rows = words.shape[0], words.shape[1] * _CODES_A_WORD
        groups = scales.shape[0]
        if scales.shape != (groups, rows) or zeros.shape != (groups, words.shape[1]):
            raise CheckpointError(
                f"tensors of {layer!r} do not fit each other",
                expected=f"scales [G, {rows}] and zeros [G, {words.shape[1]}]",
                got=(scales.shape, zeros.shape),
            )
        if not groups or columns % groups or not np.isfinite(scales).all():
            raise CheckpointError(f"scales of {layer!r} are senseless", got=(columns, groups))
        bias = f"{layer}.bias"
        return NibbleMatrix(
            _unpack(words).T.copy(),
            scales.T.astype(np.float32),
            _unpack(zeros).T.copy(),
            self.floats(bias) if bias in self._tensors else None,
        )

    def _tensor(self, name: str) -> npt.NDArray[Any]:
        if name not in self._tensors:
            raise CheckpointError(f"tensor {name!r} is missing")
        return self._tensors[name]


def _join(lower: ByteArray, upper: ByteArray) -> ByteArray:
    return np.asarray(lower | upper << np.uint8(4), np.uint8)


def _unpack(words: npt.NDArray[Any]) -> ByteArray:
    """int32 words of AutoAWQ to uint8 codes, eight for each along the last axis."""
    unsigned = words.view(np.uint32)
    codes = np.empty((*words.shape, _CODES_A_WORD), np.uint8)
    for place, channel in enumerate(_AWQ_ORDER):
        codes[..., channel] = unsigned >> np.uint32(4 * place) & np.uint32(15)
    return codes.reshape(words.shape[0], -1)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path.name} is malformed", expected="a JSON object")
    return config

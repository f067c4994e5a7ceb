"""Quantised linear weights in the one layout that every loader fills and every kernel reads.

The layout is decided in ``docs/adr/0005-packed-layout.md``: each output channel's codes lie along
K, eight 4-bit codes in an int32 whose nibbles are interleaved so that one mask yields the pair of
neighbouring k that a ``half2`` product wants. This module holds the layout, its two conversions
and the plain torch linear layer that is the oracle of the CUDA kernels and the CPU path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_perception.errors import CheckpointError

NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""k offset (within 8 neighbours) that nibble i of a word holds."""

ALIGNMENT = 32
"""K and the group size are multiples of this: 16 bytes of 4-bit codes."""


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack uint8 codes [N, K] below 16 into int32 [N, K/8] in ``NIBBLE_ORDER``."""
    rows, columns = codes.shape
    octets = codes.view(rows, columns // 8, 8).to(torch.int32)
    words = torch.zeros(rows, columns // 8, dtype=torch.int32, device=codes.device)
    for position, offset in enumerate(NIBBLE_ORDER):
        words |= octets[..., offset] << (4 * position)
    return words


def unpack_nibbles(words: Tensor) -> Tensor:
    """Undo ``pack_nibbles``: int32 [N, K/8] to uint8 [N, K]."""
    rows, columns = words.shape
    codes = torch.empty(rows, columns, 8, dtype=torch.uint8, device=words.device)
    for position, offset in enumerate(NIBBLE_ORDER):
        codes[..., offset] = ((words >> (4 * position)) & 15).to(torch.uint8)
    return codes.view(rows, columns * 8)


@dataclass(frozen=True)
class PackedWeight:
    """One linear layer's weight [N, K], quantised; see the ADR for each tensor's meaning.

    Raises ``CheckpointError`` on shapes or types that do not fit together. It holds its tensors
    without copying them.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int
    bias: Tensor | None = None
    input_order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise CheckpointError("unknown code width", expected="4 or 8 bits", got=self.bits)
        if self.group_size % ALIGNMENT or self.in_features % self.group_size:
            raise CheckpointError(
                "the group size does not fit the packed layout",
                expected=f"a multiple of {ALIGNMENT} that divides K = {self.in_features}",
                got=self.group_size,
            )
        groups = (self.out_features, self.in_features // self.group_size)
        self._check("codes", self.codes, (torch.int32 if self.bits == 4 else torch.uint8,))
        self._check("scales", self.scales, (torch.float16, torch.bfloat16), groups)
        self._check("zeros", self.zeros, (torch.uint8,), groups)
        if self.bias is not None:
            self._check("bias", self.bias, (torch.float16, torch.bfloat16, torch.float32),
                        (self.out_features,))  # fmt: skip
        if self.input_order is not None:
            self._check("input_order", self.input_order, (torch.int64,), (self.in_features,))

    @staticmethod
    def _check(
        name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...] = ()
    ) -> None:
        if tensor.dtype not in dtypes or (shape and tuple(tensor.shape) != shape):
            raise CheckpointError(
                f"{name} does not fit the packed layout",
                expected=f"{' or '.join(map(str, dtypes))} {list(shape) if shape else ''}",
                got=(tensor.dtype, list(tensor.shape)),
            )

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        *,
        bits: int,
        bias: Tensor | None = None,
        input_order: Tensor | None = None,
    ) -> PackedWeight:
        """Pack uint8 codes [N, K] with scales and integer zeros [N, G].

        ``bits`` is 3, 4 or 8; 3-bit codes take the 4-bit form.
        """
        columns = codes.shape[1]
        if columns % ALIGNMENT:
            raise CheckpointError(
                "the layer's width cannot be packed",
                expected=f"a multiple of {ALIGNMENT} in features",
                got=columns,
                mend="Leave this layer in float.",
            )
        return cls(
            codes=codes.contiguous() if bits == 8 else pack_nibbles(codes),
            scales=exact_scales(scales).contiguous(),
            zeros=zeros.to(torch.uint8).contiguous(),
            bits=8 if bits == 8 else 4,
            group_size=columns // max(1, scales.shape[1]),
            bias=bias,
            input_order=input_order,
        )

    @property
    def out_features(self) -> int:
        """N."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[1] * (8 if self.bits == 4 else 1)

    @property
    def nbytes(self) -> int:
        """Bytes that a decode step must read for this layer."""
        tensors = (self.codes, self.scales, self.zeros, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def unpacked_codes(self) -> Tensor:
        """The codes as uint8 [N, K], k in natural (packed input) order."""
        return unpack_nibbles(self.codes) if self.bits == 4 else self.codes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The float weight [N, K], k in the order of the layer's input."""
        grouped = self.unpacked_codes().view(self.out_features, -1, self.group_size)
        # Codes and zeros are small integers: their difference is exact in every float type.
        offsets = grouped.to(dtype) - self.zeros.unsqueeze(-1).to(dtype)
        weight = (offsets * self.scales.unsqueeze(-1).to(dtype)).view(self.out_features, -1)
        if self.input_order is None:
            return weight
        natural = torch.empty_like(weight)
        natural[:, self.input_order] = weight
        return natural

    def rows(self, index: Tensor) -> PackedWeight:
        """The rows int64 [T] of the matrix, without its bias: words of an embedding."""
        return replace(
            self,
            codes=self.codes[index],
            scales=self.scales[index],
            zeros=self.zeros[index],
            bias=None,
        )

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on ``device``."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=self.zeros.to(device),
            bias=moved(self.bias),
            input_order=moved(self.input_order),
        )


def exact_scales(scales: Tensor) -> Tensor:
    """Scales as fp16 where that changes no value, else bf16 if they came so.

    Raises ``CheckpointError`` where a float32 scale has no 16-bit image.
    """
    half = scales.to(torch.float16)
    if torch.equal(half.to(torch.float32), scales.to(torch.float32)):
        return half
    if scales.dtype == torch.bfloat16:
        return scales
    raise CheckpointError("scales cannot be held in 16 bits", expected="fp16 values")


class PackedLinear(nn.Module):
    """``y = x W^T + bias`` from a ``PackedWeight``: plain torch, the kernels' oracle."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None
    input_order: Tensor | None

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.bits = packed.bits
        self.group_size = packed.group_size
        self.in_features = packed.in_features
        self.out_features = packed.out_features
        for name in ("codes", "scales", "zeros", "bias", "input_order"):
            self.register_buffer(name, getattr(packed, name))

    @property
    def packed(self) -> PackedWeight:
        """The layer's weight as it lies in this module's buffers (no copy)."""
        return PackedWeight(
            codes=self.codes,
            scales=self.scales,
            zeros=self.zeros,
            bits=self.bits,
            group_size=self.group_size,
            bias=self.bias,
            input_order=self.input_order,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to float ``inputs`` [..., K]; the weight is dequantised each time."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return functional.linear(inputs, self.packed.dequantize(inputs.dtype), bias)

    def extra_repr(self) -> str:
        """Show what ``print(model)`` needs."""
        return f"{self.in_features}, {self.out_features}, {self.bits} bits, g{self.group_size}"


class PackedEmbedding(PackedLinear):
    """An embedding table from a ``PackedWeight``: row n is word n's vector, in ``dtype``.

    ``factor`` multiplies the vectors (Gemma's do so by the root of their width).
    """

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, factor: float = 1.0) -> None:
        super().__init__(packed)
        self.dtype = dtype
        self.factor = torch.tensor(factor, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Vectors [..., K] of int64 ``token_ids`` [...]: only their rows are dequantised."""
        chosen = self.packed.rows(token_ids.reshape(-1))
        vectors = chosen.dequantize(self.dtype).view(*token_ids.shape, self.in_features)
        return vectors * self.factor.to(vectors.device)

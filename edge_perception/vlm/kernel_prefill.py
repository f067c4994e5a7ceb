"""Products and attention of many rows, a prompt's: our W4A16 kernel, or dequantise and cuBLAS.

Three ways, chosen by the number of rows. Up to ``PASS_ROWS`` the kernel of a decode step, eight
rows a pass: each reads the weights again. Many rows: arithmetic weighs most, and the library's
dense product, which uses instructions that only Hopper has, wins although the weights are
dequantised for it, a slice at a time. Between them `prefill.cu`, which multiplies weights as they
are packed: how far it pays depends on the GPU.

The limits follow from what was measured on an H100 (``docs/decoder.md``); they are fixed, not
measured anew at every start: the same prompt then gives the same bits in every process. On
Ampere's smaller GPUs writing and reading dense weights costs eight times the packed ones' bytes at
a tenth of the bandwidth; the limit there follows from that and has not been measured.
"""

from __future__ import annotations

from ctypes import c_int, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from edge_perception.vlm.int8_linear import Int8Weight
from edge_perception.vlm.kernel_arguments import (
    Cache,
    Heads,
    Inputs,
    Launcher,
    Matrix,
    Rotation,
    Split,
    address,
)
from edge_perception.vlm.kv_cache import FloatKvLayer, Int8KvLayer
from edge_perception.vlm.operators import HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.weights import FloatWeight

PASS_ROWS = 24
"""Rows up to which a packed weight is multiplied eight rows a pass."""

FUSED_ROWS = 256
FUSED_ROWS_HOPPER = 128
"""Rows up to which the packed product is used beyond that, on Ampere and from Hopper on."""

SLICE_BYTES = 2**27
"""Dequantised weights that are held at once."""

_THREADS = 256
_ALIGNED_CHANNELS = 128  # at whose multiples a slice of dequantised weights begins
_STEP = 128  # columns of the packed product
_LEAST_STEPS = 2  # of a block: fewer would cost more to add up than they take
_INT8_ROWS = 32  # that the library's product of whole numbers wants at least
_MOST_TILES = 2048  # whose blocks can share them


@dataclass(frozen=True)
class Block:
    """What a block of the packed product makes at a time (``Shape`` in prefill.cu)."""

    channels: int
    rows: int
    stages: int

    @property
    def name(self) -> str:
        """As its kernels are called."""
        return f"{self.channels}x{self.rows}_{self.stages}"

    @property
    def shared_bytes(self) -> int:
        """Stages of x, codes, and scales and zero points of a step."""
        return self.stages * (2 * _STEP * self.rows + (_STEP // 2 + 16) * self.channels)


_FEW_ROWS, _MANY_ROWS = Block(256, 64, 4), Block(128, 128, 3)
_SMALL_FEW_ROWS, _SMALL_MANY_ROWS = Block(256, 64, 2), Block(128, 128, 2)
"""Blocks for 160 KiB of shared memory, and for the 99 KiB that every GPU from Ampere on has."""

_LARGE_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0))
"""Compute capabilities of GPUs whose blocks get 160 KiB and more."""


class Prefill:
    """Products of more rows than ``linear.cu`` takes; all tensors fp16, on one device."""

    def __init__(
        self, launcher: Launcher, device: torch.device, processors: int, *, fused_rows: int
    ) -> None:
        self.fused_rows = fused_rows
        self._blocks = _blocks_for(device)
        self._launcher = launcher
        self._device = device
        self._processors = processors
        self._arrived = torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
        self._dense = torch.empty(0, dtype=torch.float16, device=device)
        self._outgrown: list[Tensor] = []  # which a captured graph may still write

    def multiply(
        self,
        inputs: Tensor,
        weight: FloatWeight | PackedWeight,
        *,
        residual: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """``x W^T + bias``, [T, N], plus ``residual``; or ``SiLU(gate) * up`` of it, [T, N / 2]."""
        if isinstance(weight, PackedWeight) and weight.input_order is not None:
            inputs = inputs.index_select(1, weight.input_order)
        if len(inputs) <= self.fused_rows and is_fused(weight):
            return self._multiply_packed(inputs, weight, residual, gated)
        result = self._multiply_dense(inputs, weight)
        if gated:
            return self._gate(result)
        return result if residual is None else result.add_(residual)

    def _multiply_packed(
        self,
        inputs: Tensor,
        weight: FloatWeight | PackedWeight,
        residual: Tensor | None,
        gated: bool,
    ) -> Tensor:
        assert isinstance(weight, PackedWeight)
        rows, outputs = len(inputs), weight.out_features // (2 if gated else 1)
        y = torch.empty(rows, outputs, dtype=torch.float16, device=self._device)
        few_rows, many_rows = self._blocks
        block = few_rows if 0 < rows % many_rows.rows <= few_rows.rows else many_rows
        tiles = -(-weight.out_features // block.channels) * -(-rows // block.rows)
        steps = -(-weight.in_features // _STEP)
        share = self._share(tiles, steps)
        blocks = -(-tiles * steps // share)
        is_shared = share % steps != 0
        parts = torch.empty(
            2 * blocks * block.channels * block.rows if is_shared else 0,
            dtype=torch.float32, device=self._device,
        )  # fmt: skip
        described = Inputs(address(inputs), None, address(residual), address(y), None, 0.0, rows)
        self._launcher.launch(
            "prefill.cu", _kernel_name(block, weight, gated), (blocks, 1, 1), _THREADS,
            block.shared_bytes, Matrix.of(weight), described,
            Split(address(parts), address(self._arrived), share),
        )  # fmt: skip
        return y

    def _share(self, tiles: int, steps: int) -> int:
        """Steps a block: equal parts of all that there are; of very many tiles, whole ones."""
        if tiles > _MOST_TILES:
            return -(-tiles // self._processors) * steps
        return max(-(-tiles * steps // self._processors), _LEAST_STEPS)

    def _multiply_dense(self, inputs: Tensor, weight: FloatWeight | PackedWeight) -> Tensor:
        if isinstance(weight, FloatWeight):
            return functional.linear(inputs, weight.values, weight.bias)
        y = torch.empty(len(inputs), weight.out_features, dtype=torch.float16, device=self._device)
        # Whole blocks, so that every slice begins where the library's products want it aligned.
        aligned = 2 * weight.in_features * _ALIGNED_CHANNELS
        channels = max(1, SLICE_BYTES // aligned) * _ALIGNED_CHANNELS
        for start in range(0, weight.out_features, channels):
            part = slice(start, min(start + channels, weight.out_features))
            torch.mm(inputs, self._dequantise(weight, part).T, out=y[:, part])
        return y if weight.bias is None else y.add_(weight.bias)

    def _dequantise(self, weight: PackedWeight, part: slice) -> Tensor:
        """Channels of a weight as halves [n, K], in memory that the next call writes again."""
        channels, columns = part.stop - part.start, weight.in_features
        if self._dense.numel() < channels * columns:
            self._outgrown.append(self._dense)
            self._dense = torch.empty(channels * columns, dtype=torch.float16, device=self._device)
        dense = self._dense[: channels * columns].view(channels, columns)
        self._launcher.launch(
            "prefill.cu", f"dequantise_w{weight.bits}",
            (-(-columns // (32 * _THREADS)), channels, 1), _THREADS, 0,
            Matrix.part(weight, part), c_void_p(address(dense)),
        )  # fmt: skip
        return dense

    def _gate(self, gate_up: Tensor) -> Tensor:
        rows, outputs = gate_up.shape[0], gate_up.shape[1] // 2
        if outputs % 8:
            gate, up = gate_up.chunk(2, dim=-1)
            return functional.silu(gate) * up
        out = torch.empty(rows, outputs, dtype=torch.float16, device=self._device)
        self._launcher.launch(
            "prefill.cu", "gate", (-(-outputs // (8 * _THREADS)), rows, 1), _THREADS, 0,
            c_void_p(address(gate_up)), c_int(outputs), c_void_p(address(out)),
        )  # fmt: skip
        return out

    def multiply_int8(
        self,
        inputs: Tensor,
        weight: Int8Weight,
        norm: Tensor | None,
        eps: float,
        residual: Tensor | None,
        gated: bool,
    ) -> Tensor:
        """As ``multiply``, by the library's product of whole numbers; RMSNorm before, if given."""
        rows, outputs = len(inputs), weight.out_features // (2 if gated else 1)
        codes, row_scales = self.quantise(inputs, norm, eps, torch.int8)
        if rows < _INT8_ROWS:
            codes = functional.pad(codes, (0, 0, 0, _INT8_ROWS - rows))
        sums = torch._int_mm(codes, weight.codes.T)
        y = torch.empty(rows, outputs, dtype=torch.float16, device=self._device)
        self._launcher.launch(
            "int8.cu", "gate_sums" if gated else "scale_sums",
            (-(-outputs // (4 * _THREADS)), rows, 1), _THREADS, 0, c_void_p(address(sums)),
            Matrix.of(weight),
            Inputs(None, None, address(residual), address(y), address(row_scales), 0.0, rows),
        )  # fmt: skip
        return y

    def quantise(
        self, inputs: Tensor, norm: Tensor | None, eps: float, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Codes of rows, int8 or whole numbers in fp16, and float32 scales; RMSNorm before."""
        codes = torch.empty(inputs.shape, dtype=kind, device=self._device)
        scales = torch.empty(len(inputs), dtype=torch.float32, device=self._device)
        self._launcher.launch(
            "int8.cu", "quantise_i8" if kind == torch.int8 else "quantise_f16",
            (len(inputs), 1, 1), _THREADS, 0,
            Inputs(address(inputs), address(norm), None, None, None, eps, len(inputs)),
            c_int(inputs.shape[1]), c_void_p(address(codes)), c_void_p(address(scales)),
        )  # fmt: skip
        return codes, scales

    def attend(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rotary: RotaryTable,
        positions: Tensor,
        cache: FloatKvLayer | Int8KvLayer,
        span: Span,
    ) -> Tensor:
        """As ``Operators.attend``, for a layout whose window reaches over ``span.bound``.

        ``span.bound`` must be first + rows, as it is for a prompt's.
        """
        queries = torch.empty(
            span.rows, layout.query_heads, layout.head_dim, dtype=qkv.dtype, device=self._device
        )
        heads = layout.query_heads + 2 * layout.kv_heads
        self._launcher.launch(
            "attention.cu", "place_rows", (-(-heads // 8), span.rows, 1), _THREADS, 0,
            Heads.of(layout, cache.keys.shape[1], positions),
            Rotation.of(rotary, positions, span.first, layout), Cache.of(cache),
            c_void_p(address(qkv)), c_void_p(address(queries)),
        )  # fmt: skip
        keys, values = cache.read(span.bound, qkv.dtype)
        whole = span.bound == span.rows
        attended = functional.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0),
            attn_mask=None if whole else causal_lower_right(span.rows, span.bound),
            is_causal=whole, enable_gqa=layout.query_heads != layout.kv_heads,
        )  # fmt: skip
        return attended.squeeze(0).transpose(0, 1).reshape(span.rows, -1)


def is_fused(weight: FloatWeight | PackedWeight) -> bool:
    """Whether ``prefill.cu`` multiplies this weight as it is packed."""
    return isinstance(weight, PackedWeight) and weight.bits == 4 and weight.out_features % 16 == 0


def _blocks_for(device: torch.device) -> tuple[Block, Block]:
    """Blocks of the packed product for few rows and for many."""
    has_large = device.type == "cuda" and (
        torch.cuda.get_device_capability(device) in _LARGE_SHARED_MEMORY
    )
    return (_FEW_ROWS, _MANY_ROWS) if has_large else (_SMALL_FEW_ROWS, _SMALL_MANY_ROWS)


def _kernel_name(block: Block, weight: PackedWeight, gated: bool) -> str:
    groups = "" if weight.group_size % _STEP == 0 else "_small"
    return f"many_{'gate_up_' if gated else ''}w4_{block.name}{groups}"

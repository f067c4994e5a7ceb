"""The operators by the kernels of ``vlm/kernels``, in fp16: a step's here, a prompt's beside it.

What the kernels do not take (odd widths; scales that only bfloat16 holds) goes to torch, and always
the same way for the same weight, whatever the number of rows up to 8: rows keep their bits. More
than 8 rows are a prompt's (``kernel_prefill.py``); their ``Span.bound`` must be first + rows. How a
kernel is launched is the launcher's: on a GPU it queues, in tests it runs the same sources on the
CPU.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_void_p
from typing import Any

import torch
from torch import Tensor

from edge_perception.errors import DecodingError
from edge_perception.vlm.int8_linear import Int8Weight
from edge_perception.vlm.kernel_arguments import (
    Cache,
    Grid,
    Heads,
    Inputs,
    Launcher,
    Matrix,
    Rotation,
    Settings,
    Table,
    Upcoming,
    Workspace,
    address,
)
from edge_perception.vlm.kernel_prefill import FUSED_ROWS, FUSED_ROWS_HOPPER, PASS_ROWS, Prefill
from edge_perception.vlm.kv_cache import FloatKvLayer, Int8KvLayer, KvLayer
from edge_perception.vlm.operators import SAME_ORDER_ROWS, HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import Sampling
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.weights import FloatWeight, LinearWeight, StackedWeight

_CHANNELS = 16  # of a weight, that a warp of linear.cu multiplies at a time
_WARPS = 8  # of a block
_SPLITS = (8, 4, 2)  # warps that share K
_BLOCKS = 2  # a multiprocessor, of packed weights: all at once
_FEW_STEPS = 1.5  # a multiprocessor; below, blocks take a step each
_LONG_BLOCK = 128 * 1024  # bytes of floats, after which a block's beginning and end weigh little
_LEAST_BLOCKS = 1.4  # a multiprocessor, of floats
_LINEAR_THREADS = 32 * _WARPS
_PADDING = 8  # halves after a row in shared memory
_STAGED_BYTES = 40 * 1024  # of rows in shared memory as they are; beyond, they are read as they lie
_FETCHED_BYTES = 4 * 1024 * 1024  # of the next weight, while a product ends or attention runs
_NORM_BYTES = 32 * 1024  # of normed rows in shared memory; beyond, they are normed by a launch
_CHUNK = 128  # slots, a block of attention.cu
_ATTEND_THREADS = 256
_MAX_HEAD = 256  # channels
_MAX_GROUP = 8  # query heads that share a key-value head
_MAX_KV_HEADS = 256
_SAMPLE_THREADS = 256
_BEST_BLOCKS = 64
_VALUES = 65536


class KernelOperators:
    """``Operators`` by kernels; its workspaces serve one decoder at a time.

    Activations must be fp16. Raises ``DecodingError`` for others.
    """

    def __init__(self, launcher: Launcher, device: torch.device | str) -> None:
        self._launcher = launcher
        self._device = torch.device(device)
        self._torch = TorchOperators()
        self._processors = _processors(self._device)
        self._prefill = Prefill(
            launcher, self._device, self._processors, fused_rows=_fused_rows(self._device)
        )
        self._arrived = torch.zeros(
            SAME_ORDER_ROWS * _MAX_KV_HEADS, dtype=torch.int32, device=self._device
        )
        self._counts = torch.zeros(SAME_ORDER_ROWS, _VALUES, dtype=torch.int32, device=self._device)
        self._choices = torch.zeros(SAME_ORDER_ROWS, 2, dtype=torch.int32, device=self._device)
        self._settings = torch.zeros(24, dtype=torch.uint8, device=self._device)
        self._sampling: Sampling | None = None

    def embed(
        self, token_ids: Tensor, table: FloatWeight | PackedWeight, dtype: torch.dtype
    ) -> Tensor:
        if dtype != torch.float16 or not _is_half(table):
            return self._torch.embed(token_ids, table, dtype)
        out = torch.empty(len(token_ids), table.in_features, dtype=dtype, device=self._device)
        arguments = (Table.of(table), _pointer(token_ids), _pointer(out))
        self._launcher.launch("embedding.cu", "embed", (len(token_ids), 1, 1), 256, 0, *arguments)
        return out

    def norm_linear(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        if not _is_taken(inputs, weight):
            return self._torch.norm_linear(inputs, norm, eps, weight)
        return self._multiply("linear", inputs, weight, norm=norm, eps=eps, then=then)

    def norm_gate_up(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        if not _is_taken(inputs, weight):
            return self._torch.norm_gate_up(inputs, norm, eps, weight)
        return self._multiply("gate_up", inputs, weight, norm=norm, eps=eps, then=then)

    def linear_add(
        self,
        inputs: Tensor,
        weight: LinearWeight,
        residual: Tensor,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        if not _is_taken(inputs, weight):
            return self._torch.linear_add(inputs, weight, residual)
        return self._multiply("linear", inputs, weight, residual=residual, then=then)

    def attend(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rotary: RotaryTable,
        positions: Tensor,
        cache: KvLayer,
        span: Span,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        group = layout.query_heads // layout.kv_heads
        fits = layout.head_dim % 8 == 0 and layout.head_dim <= _MAX_HEAD
        fits = fits and group <= _MAX_GROUP and layout.kv_heads <= _MAX_KV_HEADS
        many = span.rows > SAME_ORDER_ROWS
        if many and layout.window is not None and layout.window < span.bound:
            fits = False
        if not fits or qkv.dtype != torch.float16:
            return self._torch.attend(qkv, layout, rotary, positions, cache, span)
        assert isinstance(cache, (FloatKvLayer, Int8KvLayer))
        qkv, positions = qkv.contiguous(), positions.contiguous()
        if many:
            return self._prefill.attend(qkv, layout, rotary, positions, cache, span)
        return self._attend(qkv, layout, rotary, positions, cache, span, then)

    def sample(self, logits: Tensor, sampling: Sampling, slots: Tensor) -> Tensor:
        rows = len(logits)
        if logits.dtype != torch.float16 or rows > SAME_ORDER_ROWS:
            return self._torch.sample(logits, sampling, slots)
        logits = logits.contiguous()
        tokens = torch.empty(rows, dtype=torch.int64, device=self._device)
        if sampling.temperature == 0.0:
            self._choose_best(logits, tokens)
        else:
            self._set(sampling)
            self._draw(logits, slots, tokens)
        return tokens

    def _choose_best(self, logits: Tensor, tokens: Tensor) -> None:
        rows, words = logits.shape
        blocks = min(_BEST_BLOCKS, -(-words // (8 * _SAMPLE_THREADS)))
        best = torch.empty(rows, blocks, dtype=torch.int64, device=self._device)
        self._sampling_step(
            "choose_best", (blocks, rows, 1), _pointer(logits), c_int(words), _pointer(best),
            _pointer(self._arrived), _pointer(tokens),
        )  # fmt: skip

    def _draw(self, logits: Tensor, slots: Tensor, tokens: Tensor) -> None:
        rows, words = logits.shape
        where, counts = _pointer(logits), _pointer(self._counts)
        settings, choices = _pointer(self._settings), _pointer(self._choices)
        blocks = min(64, -(-words // _SAMPLE_THREADS))
        self._sampling_step("count_logits", (blocks, rows, 1), where, c_int(words), counts)
        self._sampling_step("draw", (rows, 1, 1), counts, settings, _pointer(slots), choices)
        self._sampling_step(
            "find_word", (rows, 1, 1), where, c_int(words), choices, counts, _pointer(tokens)
        )

    def _sampling_step(self, kernel: str, grid: Grid, *arguments: Any) -> None:
        self._launcher.launch("sampling.cu", kernel, grid, _SAMPLE_THREADS, 0, *arguments)

    def _set(self, sampling: Sampling) -> None:
        """Put new settings into device memory; not inside a graph, where prefill came before."""
        if sampling != self._sampling:
            held = torch.frombuffer(bytearray(Settings.of(sampling)), dtype=torch.uint8)
            self._settings.copy_(held)
            self._sampling = sampling

    def _multiply(
        self,
        what: str,
        inputs: Tensor,
        weight: LinearWeight,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        then: LinearWeight | None = None,
    ) -> Tensor:
        assert not isinstance(weight, StackedWeight)
        inputs, row_scales = inputs.contiguous(), None
        if len(inputs) > SAME_ORDER_ROWS:
            return self._multiply_many(what, inputs, weight, norm, eps, residual)
        if isinstance(weight, Int8Weight):
            inputs, row_scales = self._prefill.quantise(inputs, norm, eps, torch.float16)
            norm = None
        order = weight.input_order if isinstance(weight, PackedWeight) else None
        if norm is not None and (inputs.nbytes > _NORM_BYTES or order is not None):
            inputs, norm = self._normalise(inputs, norm, eps), None
        if order is not None:
            inputs = inputs.index_select(1, order)
        outputs = weight.out_features // (2 if what == "gate_up" else 1)
        y = torch.empty(len(inputs), outputs, dtype=inputs.dtype, device=self._device)
        staged = 2 * len(inputs) * (inputs.shape[1] + _PADDING)
        is_float = isinstance(weight, FloatWeight)
        is_staged = norm is None and not is_float and staged <= _STAGED_BYTES
        described = Inputs(
            address(inputs), address(norm), address(residual), address(y), address(row_scales),
            eps, len(inputs), is_staged,
        )  # fmt: skip
        split, blocks = _divide(weight, outputs, what == "gate_up", self._processors)
        self._launcher.launch(
            "linear.cu", f"{what}_{_kind(weight)}_{split}", (blocks, 1, 1), _LINEAR_THREADS,
            staged if is_staged or norm is not None else 0,
            Matrix.of(weight), described, Upcoming.of(then, _FETCHED_BYTES),
        )  # fmt: skip
        return y

    def _multiply_many(
        self,
        what: str,
        inputs: Tensor,
        weight: FloatWeight | PackedWeight | Int8Weight,
        norm: Tensor | None,
        eps: float,
        residual: Tensor | None,
    ) -> Tensor:
        """More rows than ``linear.cu`` takes at once: by passes, or a prompt's way."""
        gated = what == "gate_up"
        if isinstance(weight, Int8Weight):
            return self._prefill.multiply_int8(inputs, weight, norm, eps, residual, gated)
        if norm is not None:
            inputs = self._normalise(inputs, norm, eps)
        if isinstance(weight, FloatWeight) or len(inputs) > PASS_ROWS:
            return self._prefill.multiply(inputs, weight, residual=residual, gated=gated)
        passes = inputs.split(SAME_ORDER_ROWS)
        added = [None] * len(passes) if residual is None else residual.split(SAME_ORDER_ROWS)
        return torch.cat([
            self._multiply(what, rows, weight, residual=more) for rows, more in zip(passes, added)
        ])  # fmt: skip

    def _normalise(self, inputs: Tensor, norm: Tensor, eps: float) -> Tensor:
        normed = torch.empty_like(inputs)
        rows, columns = inputs.shape
        self._launcher.launch(
            "linear.cu", "normalise", (rows, 1, 1), _LINEAR_THREADS, 0,
            _pointer(inputs), _pointer(norm), c_float(eps), c_int(columns), _pointer(normed),
        )  # fmt: skip
        return normed

    def _attend(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rotary: RotaryTable,
        positions: Tensor,
        cache: FloatKvLayer | Int8KvLayer,
        span: Span,
        then: LinearWeight | None,
    ) -> Tensor:
        rows, capacity = span.rows, cache.keys.shape[1]
        chunks = -(-min(span.bound, capacity) // _CHUNK)
        parts = (rows, layout.query_heads, chunks)
        values = torch.empty(*parts, layout.head_dim, dtype=torch.float32, device=self._device)
        stats = torch.empty(*parts, 2, dtype=torch.float32, device=self._device)
        width = layout.query_heads * layout.head_dim
        out = torch.empty(rows, width, dtype=qkv.dtype, device=self._device)
        self._launcher.launch(
            "attention.cu", _attend_kernel(layout, cache), (layout.kv_heads, chunks, rows),
            _ATTEND_THREADS, 0, Heads.of(layout, capacity, positions),
            Rotation.of(rotary, positions, span.first, layout), Cache.of(cache), _pointer(qkv),
            Workspace(address(values), address(stats), address(self._arrived)), _pointer(out),
            Upcoming.of(then, _FETCHED_BYTES),
        )  # fmt: skip
        return out


def _processors(device: torch.device) -> int:
    """The GPU's multiprocessors; few where kernels are run otherwise."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _fused_rows(device: torch.device) -> int:
    if device.type != "cuda":
        return FUSED_ROWS
    hopper_or_later = torch.cuda.get_device_capability(device) >= (9, 0)
    return FUSED_ROWS_HOPPER if hopper_or_later else FUSED_ROWS


def _pointer(tensor: Tensor) -> c_void_p:
    return c_void_p(address(tensor))


def _divide(
    weight: FloatWeight | PackedWeight | Int8Weight, outputs: int, is_gate_up: bool, processors: int
) -> tuple[int, int]:
    """Warps that share K, and blocks, for a product of so many outputs.

    By sizes of matrix and chip alone: rows then have the same bits whatever comes along.
    """
    if isinstance(weight, FloatWeight):
        return _divide_floats(weight, outputs, processors)
    step = _CHANNELS // (2 if is_gate_up else 1)
    steps = -(-outputs // step)
    blocks = steps if steps < _FEW_STEPS * processors else _BLOCKS * processors
    bits = weight.bits if isinstance(weight, PackedWeight) else 8

    def turns(split: int) -> int:
        """Tiles that a warp multiplies one after the other."""
        own = -(-outputs // (blocks * _WARPS // split))
        return -(-own // step) * -(-weight.in_features * bits // (512 * split))

    return min(_SPLITS, key=turns), blocks


def _divide_floats(weight: FloatWeight, outputs: int, processors: int) -> tuple[int, int]:
    """Fewer warps share K where blocks are many and short."""
    split, blocks = _WARPS, -(-outputs // _CHANNELS)
    block_bytes = weight.nbytes / blocks
    while split > 2 and block_bytes < _LONG_BLOCK and blocks // 2 >= _LEAST_BLOCKS * processors:
        split, blocks, block_bytes = split // 2, blocks // 2, block_bytes * 2
    return split, -(-outputs // (_CHANNELS * _WARPS // split))


def _kind(weight: FloatWeight | PackedWeight | Int8Weight) -> str:
    if isinstance(weight, FloatWeight):
        return "f16"
    if isinstance(weight, Int8Weight):
        return "i8"
    tile = 512 // weight.bits  # k of a tile of linear.cu, which must lie in one group
    return f"w{weight.bits}" + ("" if weight.group_size % tile == 0 else "_small")


def _attend_kernel(layout: HeadLayout, cache: FloatKvLayer | Int8KvLayer) -> str:
    widest = 128 if layout.head_dim <= 128 else _MAX_HEAD
    return f"attend_{'i8' if isinstance(cache, Int8KvLayer) else 'f16'}_{widest}"


def _is_half(weight: LinearWeight) -> bool:
    """Whether a weight is of the types that the kernels read."""
    if isinstance(weight, FloatWeight):
        held = [weight.values, weight.bias]
    elif isinstance(weight, (PackedWeight, Int8Weight)):
        held = [weight.scales, weight.bias]
    else:
        return False
    return all(tensor is None or tensor.dtype == torch.float16 for tensor in held)


def _is_taken(inputs: Tensor, weight: LinearWeight) -> bool:
    """Whether the kernels take this product: the same for any number of rows."""
    if inputs.dtype != torch.float16:
        raise DecodingError(
            "activations of another type than the kernels compute in",
            expected="float16",
            got=inputs.dtype,
            mend="Load the model with dtype=torch.float16.",
        )
    return _is_half(weight) and weight.in_features % 32 == 0

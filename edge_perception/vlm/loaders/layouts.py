"""The published W4A16 layouts as pure functions: tensors in, integer codes out, and back.

Each reader returns ``Codes``: uint8 codes [N, K] in natural order, scales and integer zeros [N, G],
which every layout can be turned into without rounding; each writer is its exact inverse. Where a
layout comes from is said at its functions. N = out features, K = in features, g = group size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_perception.errors import CheckpointError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output channel, among 8 neighbours, that nibble i of an AutoAWQ word holds."""

_NATURAL = tuple(range(8))


@dataclass(frozen=True)
class Codes:
    """A linear weight as integers: w[n, k] = (codes[n, k] - zeros[n, G(k)]) * scales[n, G(k)].

    ``codes`` uint8 [N, K]; ``scales`` float [N, G]; ``zeros`` uint8 [N, G]; ``input_order`` int64
    [K] where the codes' k-th column belongs to that input channel, else None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    input_order: Tensor | None = None


def expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not ``dtype`` of ``shape``."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} does not fit its layout",
            expected=f"{dtype} {list(shape)}",
            got=(tensor.dtype, list(tensor.shape)),
        )


def expect_matrix(name: str, tensor: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Refuse what is no non-empty matrix of ``dtype``; returns its shape."""
    if tensor.dtype != dtype or tensor.dim() != 2 or 0 in tensor.shape:
        raise CheckpointError(
            f"tensor {name!r} does not fit its layout",
            expected=f"a {dtype} matrix",
            got=(tensor.dtype, list(tensor.shape)),
        )
    return tensor.shape[0], tensor.shape[1]


def pack_words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack the last dimension into int32, 32 // bits codes a word, the least significant first.

    A last dimension that does not fill its words is padded with zeros. ``order`` says which of a
    word's codes goes to which position.
    """
    per_word = 32 // bits
    padding = -codes.shape[-1] % per_word
    padded = torch.nn.functional.pad(codes, (0, padding))
    grouped = padded.reshape(*codes.shape[:-1], -1, per_word).to(torch.int32)
    words = torch.zeros(grouped.shape[:-1], dtype=torch.int32, device=codes.device)
    for position in range(per_word):
        words |= grouped[..., position if order is None else order[position]] << (bits * position)
    return words


def unpack_words(
    words: Tensor, bits: int, count: int, order: tuple[int, ...] | None = None
) -> Tensor:
    """Undo ``pack_words``: uint8 codes with ``count`` of them along the last dimension."""
    per_word = 32 // bits
    codes = torch.empty(*words.shape, per_word, dtype=torch.uint8, device=words.device)
    for position in range(per_word):
        code = (words >> (bits * position)) & (2**bits - 1)
        codes[..., position if order is None else order[position]] = code.to(torch.uint8)
    return codes.flatten(-2)[..., :count]


def pack_dense(codes: Tensor, bits: int) -> Tensor:
    """Pack the last dimension into int32 as one stream of bits: 32 codes fill ``bits`` words.

    Codes of 3 bits straddle words; for widths that divide 32 this is ``pack_words``.
    """
    count = codes.shape[-1]
    padded = torch.nn.functional.pad(codes, (0, -count % 32))
    grouped = padded.reshape(*codes.shape[:-1], -1, 32).to(torch.int64)
    words = torch.zeros(*grouped.shape[:-1], bits, dtype=torch.int64, device=codes.device)
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        value = grouped[..., index] << shift
        words[..., word] |= value & 0xFFFFFFFF
        if shift + bits > 32:
            words[..., word + 1] |= value >> 32
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).flatten(-2)[..., : -(-count * bits // 32)]


def unpack_dense(words: Tensor, bits: int, count: int) -> Tensor:
    """Undo ``pack_dense``: uint8 codes with ``count`` of them along the last dimension."""
    padded = torch.nn.functional.pad(words, (0, -words.shape[-1] % bits)).to(torch.int64)
    grouped = (padded & 0xFFFFFFFF).reshape(*words.shape[:-1], -1, bits)
    codes = torch.empty(*grouped.shape[:-1], 32, dtype=torch.uint8, device=words.device)
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        value = grouped[..., word] >> shift
        if shift + bits > 32:
            value = value | (grouped[..., word + 1] << (32 - shift))
        codes[..., index] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.flatten(-2)[..., :count]


# AutoAWQ "gemm": qweight [K, N/8], qzeros [K/g, N/8], scales [K/g, N] (casper-hansen/AutoAWQ,
# awq/modules/linear/gemm.py).


def read_awq_gemm(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Codes:
    """AutoAWQ gemm."""
    width, words = expect_matrix("qweight", qweight, torch.int32)
    groups, _ = expect_matrix("scales", scales, scales.dtype)
    expect("scales", scales, scales.dtype, (groups, words * 8))
    expect("qzeros", qzeros, torch.int32, (groups, words))
    expect_division("scales", width, groups)
    codes = unpack_words(qweight, 4, words * 8, AWQ_ORDER)
    zeros = unpack_words(qzeros, 4, words * 8, AWQ_ORDER)
    return Codes(codes.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous())


def write_awq_gemm(codes: Codes) -> dict[str, Tensor]:
    """Inverse of ``read_awq_gemm``; N must be a multiple of 8."""
    if codes.codes.shape[0] % 8:
        raise CheckpointError(
            "AutoAWQ's gemm layout cannot hold this layer",
            expected="a multiple of 8 out features",
            got=codes.codes.shape[0],
        )
    return {
        "qweight": pack_words(codes.codes.T, 4, AWQ_ORDER),
        "qzeros": pack_words(codes.zeros.T, 4, AWQ_ORDER),
        "scales": codes.scales.T.contiguous(),
    }


# AutoAWQ "gemv": qweight [N, K/8] in natural order, qzeros [N, ZW], scales [N, 8*ZW], padded with
# zeros (awq/modules/linear/gemv.py).


def zeros_width(columns: int, group_size: int) -> int:
    """AutoAWQ's padded number of zero words a row (``calculate_zeros_width``)."""
    multiple = {64: 2, 32: 4}.get(group_size, 1)
    words = -(-(columns // group_size) // 8)
    return -(-words // multiple) * multiple


def read_awq_gemv(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Codes:
    """AutoAWQ gemv."""
    rows, words = expect_matrix("qweight", qweight, torch.int32)
    columns = words * 8
    groups = expect_groups(columns, group_size)
    width = zeros_width(columns, group_size)
    expect("qzeros", qzeros, torch.int32, (rows, width))
    expect("scales", scales, scales.dtype, (rows, width * 8))
    return Codes(
        unpack_words(qweight, 4, columns),
        scales[:, :groups].contiguous(),
        unpack_words(qzeros, 4, groups).contiguous(),
    )


def write_awq_gemv(codes: Codes) -> dict[str, Tensor]:
    """Inverse of ``read_awq_gemv``."""
    rows, columns = codes.codes.shape
    groups = codes.scales.shape[1]
    width = zeros_width(columns, columns // groups)
    qzeros = torch.zeros(rows, width, dtype=torch.int32)
    packed = pack_words(codes.zeros, 4)
    qzeros[:, : packed.shape[1]] = packed
    scales = torch.zeros(rows, width * 8, dtype=codes.scales.dtype)
    scales[:, :groups] = codes.scales
    return {"qweight": pack_words(codes.codes, 4), "qzeros": qzeros, "scales": scales}


# AutoAWQ "gemv_fast" and llm-awq v2: int16 qweight [N/4, K], four rows interleaved in strides of
# 64 columns; scales and -scale*zero as fp16 [8*ZW, N] (llm-awq, tinychat/modules/qmodule.py).

_FAST_ROWS, _FAST_STRIDE = 4, 64


def _fast_column_order() -> Tensor:
    """Within 32 columns, the column that lies at each place before four rows are interleaved."""
    by_thread = torch.arange(32).view(4, 4, 2).transpose(0, 1)
    return by_thread.reshape(4, 4, 2).transpose(1, 2).reshape(32)


def read_awq_fast(qweight: Tensor, scales: Tensor, scaled_zeros: Tensor, group_size: int) -> Codes:
    """AutoAWQ gemv_fast and llm-awq v2 (where ``scaled_zeros`` is called so)."""
    quads, columns = expect_matrix("qweight", qweight, torch.int16)
    rows, groups = quads * _FAST_ROWS, expect_groups(columns, group_size)
    if columns % _FAST_STRIDE:
        raise CheckpointError(
            "tensor 'qweight' does not fit its layout",
            expected=f"a multiple of {_FAST_STRIDE} columns", got=columns,
        )  # fmt: skip
    padded = zeros_width(columns, group_size) * 8
    expect("scales", scales, scales.dtype, (padded, rows))
    expect("scaled_zeros", scaled_zeros, scales.dtype, (padded, rows))
    words = qweight.to(torch.int32).view(quads, columns // _FAST_STRIDE, _FAST_STRIDE)
    nibbles = torch.stack([(words >> (4 * i)) & 15 for i in range(4)], dim=-1).to(torch.uint8)
    interleaved = nibbles.view(quads, columns // _FAST_STRIDE, _FAST_ROWS, _FAST_STRIDE)
    shuffled = interleaved.transpose(1, 2).reshape(rows, columns // 32, 32)
    codes = torch.empty_like(shuffled)
    codes[..., _fast_column_order()] = shuffled
    scale = scales[:groups].T.contiguous()
    return Codes(codes.view(rows, columns), scale, integer_zeros(scale, scaled_zeros[:groups].T))


def integer_zeros(scales: Tensor, scaled_zeros: Tensor) -> Tensor:
    """The integer z with fp16(-scale * z) = scaled zero; refuses where there is none."""
    zeros = torch.round(-scaled_zeros.float() / scales.float()).nan_to_num(0.0)
    if not torch.equal(-(scales.float() * zeros).to(scaled_zeros.dtype), scaled_zeros):
        raise CheckpointError(
            "tensor 'scaled_zeros' holds zero points that are not integers",
            expected="-scale * z with z an integer from 0 to 15",
        )
    if bool((zeros < 0).any()) or bool((zeros > 15).any()):
        raise CheckpointError("zero points out of range", expected="0 to 15")
    return zeros.to(torch.uint8)


def write_awq_fast(codes: Codes, zeros_name: str = "qzeros") -> dict[str, Tensor]:
    """Inverse of ``read_awq_fast``; ``zeros_name`` is "scaled_zeros" for llm-awq."""
    rows, columns = codes.codes.shape
    groups = codes.scales.shape[1]
    shuffled = codes.codes.view(rows, columns // 32, 32)[..., _fast_column_order()]
    stripes = shuffled.reshape(rows // _FAST_ROWS, _FAST_ROWS, -1, _FAST_STRIDE).transpose(1, 2)
    nibbles = stripes.reshape(rows // _FAST_ROWS, -1, _FAST_STRIDE, 4).to(torch.int32)
    words = sum((nibbles[..., i] << (4 * i) for i in range(4)), torch.zeros((), dtype=torch.int32))
    padded = zeros_width(columns, columns // groups) * 8
    scales = torch.zeros(padded, rows, dtype=codes.scales.dtype)
    scaled_zeros = torch.zeros_like(scales)
    scales[:groups] = codes.scales.T
    exact = codes.scales.float() * codes.zeros.float()
    scaled_zeros[:groups] = -exact.to(codes.scales.dtype).T
    qweight = words.to(torch.int16).reshape(rows // _FAST_ROWS, columns)
    return {"qweight": qweight, "scales": scales, zeros_name: scaled_zeros}


# AutoAWQ "marlin": symmetric, qweight [K/16, 2N], the tensor-core tiles of IST-DASLab/marlin.


def _marlin_order() -> Tensor:
    """Where each of a 16 x 64 tile's 1024 codes lies in the packed stream."""
    order = []
    for lane in range(32):
        column, row = lane // 4, 2 * (lane % 4)
        quad = [
            16 * r + column + 8 * half for half in (0, 1) for r in (row, row + 1, row + 8, row + 9)
        ]
        order += [position + 256 * tile for tile in range(4) for position in quad]
    return torch.tensor(order).view(-1, 8)[:, list(AWQ_ORDER)].reshape(-1)


def _marlin_scale_order(per_channel: bool) -> Tensor:
    if per_channel:
        pattern = (0, 1, 8, 9, 16, 17, 24, 25)
        return torch.tensor([2 * i + j for i in range(4) for j in pattern])
    return torch.tensor([i + 8 * j for i in range(8) for j in range(8)])


def read_awq_marlin(qweight: Tensor, scales: Tensor) -> Codes:
    """AutoAWQ marlin: every zero point is 8."""
    tiles, words = expect_matrix("qweight", qweight, torch.int32)
    columns, rows = tiles * 16, words // 2
    groups, _ = expect_matrix("scales", scales, scales.dtype)
    expect("scales", scales, scales.dtype, (groups, rows))
    expect_division("scales", columns, groups)
    if rows % 64:
        raise CheckpointError(
            "tensor 'qweight' does not fit its layout",
            expected="a multiple of 64 out features", got=rows,
        )  # fmt: skip
    order = _marlin_order()
    stream = unpack_words(qweight, 4, words * 8).reshape(-1, order.numel())
    natural = torch.empty_like(stream)
    natural[:, order] = stream
    tiled = natural.view(tiles, rows // 16, 16, 16)
    codes = tiled.permute(1, 3, 0, 2).reshape(rows, columns)
    scale_order = _marlin_scale_order(groups == 1)
    shuffled = scales.reshape(-1, scale_order.numel())
    straight = torch.empty_like(shuffled)
    straight[:, scale_order] = shuffled
    scale = straight.view(groups, rows).T.contiguous()
    return Codes(codes.contiguous(), scale, torch.full(scale.shape, 8, dtype=torch.uint8))


def write_awq_marlin(codes: Codes) -> dict[str, Tensor]:
    """Inverse of ``read_awq_marlin``; all zeros must be 8."""
    rows, columns = codes.codes.shape
    groups = codes.scales.shape[1]
    order = _marlin_order()
    tiled = codes.codes.reshape(rows // 16, 16, columns // 16, 16).permute(2, 0, 3, 1)
    stream = tiled.reshape(-1, order.numel())[:, order].reshape(columns // 16, rows * 16)
    scale_order = _marlin_scale_order(groups == 1)
    scales = codes.scales.T.reshape(-1, scale_order.numel())[:, scale_order]
    return {"qweight": pack_words(stream, 4), "scales": scales.reshape(groups, rows)}


# GPTQ: qweight [K/8, N] along K, qzeros [K/g, N/8], scales [K/g, N], g_idx [K]. Version 1 stores
# zero points less one (AutoGPTQ), version 2 as they are (GPTQModel's "gptq_v2").


def read_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    *,
    bits: int,
    version: int,
) -> Codes:
    """GPTQ v1 and v2, 4 or 8 bits, with or without activation order."""
    if bits not in (4, 8):
        raise CheckpointError("GPTQ width not supported", expected="4 or 8 bits", got=bits)
    words, rows = expect_matrix("qweight", qweight, torch.int32)
    per_word = 32 // bits
    columns = words * per_word
    groups, _ = expect_matrix("scales", scales, scales.dtype)
    expect("scales", scales, scales.dtype, (groups, rows))
    expect("qzeros", qzeros, torch.int32, (groups, -(-rows // per_word)))
    expect_division("scales", columns, groups)
    codes = unpack_words(qweight.T.contiguous(), bits, columns)
    zeros = unpack_words(qzeros, bits, rows).T.contiguous()
    if version == 1:
        if bits == 8 and bool((zeros == 255).any()):
            raise CheckpointError("zero points out of range", expected="stored values below 255")
        zeros = zeros + 1
    order = None if g_idx is None else group_order(g_idx, columns, groups)
    if order is not None:
        codes = codes[:, order].contiguous()
    return Codes(codes, scales.T.contiguous(), zeros, order)


def group_order(g_idx: Tensor, columns: int, groups: int) -> Tensor | None:
    """Input channels sorted by group, or None where they lie sorted already."""
    if g_idx.dtype not in (torch.int32, torch.int64) or tuple(g_idx.shape) != (columns,):
        raise CheckpointError(
            "tensor 'g_idx' does not fit its layout",
            expected=f"integers [{columns}]", got=(g_idx.dtype, list(g_idx.shape)),
        )  # fmt: skip
    index = g_idx.to(torch.int64)
    inside = bool(((index >= 0) & (index < groups)).all())
    if not inside or not bool((torch.bincount(index, minlength=groups) == columns // groups).all()):
        raise CheckpointError(
            "tensor 'g_idx' does not fit its layout",
            expected=f"{groups} groups of {columns // groups} channels each",
        )
    order = torch.argsort(index, stable=True)
    return None if torch.equal(order, torch.arange(columns)) else order


def write_gptq(codes: Codes, *, bits: int, version: int) -> dict[str, Tensor]:
    """Inverse of ``read_gptq``."""
    columns = codes.codes.shape[1]
    groups = codes.scales.shape[1]
    natural = codes.codes
    g_idx = torch.arange(columns) // (columns // groups)
    if codes.input_order is not None:
        natural = torch.empty_like(codes.codes)
        natural[:, codes.input_order] = codes.codes
        g_idx = torch.empty_like(g_idx)
        g_idx[codes.input_order] = torch.arange(columns) // (columns // groups)
    zeros = codes.zeros - 1 if version == 1 else codes.zeros
    return {
        "qweight": pack_words(natural, bits).T.contiguous(),
        "qzeros": pack_words(zeros.T.contiguous(), bits),
        "scales": codes.scales.T.contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


# compressed-tensors "pack-quantized": weight_packed int32 [N, ceil(K * bits / 32)], weight_scale
# [N, G], and for asymmetric weights weight_zero_point packed along N (compressed-tensors,
# compressors/pack_quantized). Values are stored plus 2^(bits-1). Older releases did not let a
# code straddle words: their 3-bit files hold ten codes a word, which the width tells.


def read_compressed(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, shape: Tensor, *, bits: int
) -> Codes:
    """compressed-tensors pack-quantized, symmetric where ``zero_point`` is None."""
    rows, words = expect_matrix("weight_packed", packed, torch.int32)
    if shape.numel() != 2 or shape.dtype not in (torch.int32, torch.int64):
        raise CheckpointError("tensor 'weight_shape' does not fit its layout", expected="[N, K]")
    columns = int(shape[1])
    dense = words == -(-columns * bits // 32)
    spaced = words == -(-columns // (32 // bits))
    if int(shape[0]) != rows or columns <= 0 or not (dense or spaced):
        raise CheckpointError(
            "tensor 'weight_shape' disagrees with 'weight_packed'",
            expected=f"[{rows}, up to {words * 32 // bits}]", got=shape.tolist(),
        )  # fmt: skip
    groups = expect_matrix("weight_scale", scale, scale.dtype)[1]
    expect("weight_scale", scale, scale.dtype, (rows, groups))
    expect_division("weight_scale", columns, groups)
    unpack = unpack_dense if dense else unpack_words
    if zero_point is None:
        zeros = torch.full((rows, groups), 2 ** (bits - 1), dtype=torch.uint8)
    else:
        height = -(-rows * bits // 32) if dense else -(-rows // (32 // bits))
        expect("weight_zero_point", zero_point, torch.int32, (height, groups))
        zeros = unpack(zero_point.T.contiguous(), bits, rows).T.contiguous()
    return Codes(unpack(packed, bits, columns).contiguous(), scale.contiguous(), zeros)


def write_compressed(codes: Codes, *, bits: int, symmetric: bool) -> dict[str, Tensor]:
    """Inverse of ``read_compressed``, in the dense form of today's library."""
    tensors = {
        "weight_packed": pack_dense(codes.codes, bits).contiguous(),
        "weight_scale": codes.scales.contiguous(),
        "weight_shape": torch.tensor(codes.codes.shape, dtype=torch.int64),
    }
    if not symmetric:
        packed = pack_dense(codes.zeros.T.contiguous(), bits)
        tensors["weight_zero_point"] = packed.T.contiguous()
    return tensors


def expect_groups(columns: int, group_size: int) -> int:
    """The number of groups; refuses a group size that does not divide K."""
    if group_size <= 0 or columns % group_size:
        raise CheckpointError(
            "group size does not divide K", expected=f"a divisor of {columns}", got=group_size
        )
    return columns // group_size


def expect_division(name: str, columns: int, groups: int) -> None:
    """Refuse a number of groups that does not divide K."""
    if columns % groups:
        raise CheckpointError(
            f"tensor {name!r} does not fit its layout",
            expected=f"a number of groups that divides K = {columns}",
            got=groups,
        )

"""What kernels of ``vlm/kernels`` are launched with: their parameters, field by field.

A structure holds addresses only: whoever fills it keeps the tensors alive until the launch is done.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_longlong, c_ulonglong, c_void_p
from typing import Any, Protocol

from torch import Tensor

from edge_perception.vlm.int8_linear import Int8Weight
from edge_perception.vlm.kv_cache import FloatKvLayer, Int8KvLayer
from edge_perception.vlm.operators import HeadLayout, RotaryTable
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import Sampling
from edge_perception.vlm.weights import FloatWeight, LinearWeight, StackedWeight

Grid = tuple[int, int, int]


class Launcher(Protocol):
    """Runs kernels of ``vlm/kernels`` on the device where their tensors are."""

    def launch(
        self, source: str, kernel: str, grid: Grid, threads: int, shared_bytes: int, *arguments: Any
    ) -> None:
        """Queue a kernel; ``arguments`` are ctypes values as its parameters are laid out."""


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor lies; None stays None."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


class Matrix(Structure):
    """linear.cu: a weight."""

    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
        ("channels", c_int),
        ("columns", c_int),
        ("group_size", c_int),
        ("reserved", c_int),
    ]

    @classmethod
    def of(cls, weight: FloatWeight | PackedWeight | Int8Weight) -> Matrix:
        """The structure of a weight."""
        size = (weight.out_features, weight.in_features)
        if isinstance(weight, Int8Weight):
            int8 = (weight.codes, weight.scales, None, weight.bias)
            return cls(*map(address, int8), *size, weight.in_features, 0)
        if isinstance(weight, FloatWeight):
            return cls(address(weight.values), None, None, address(weight.bias), *size, 0, 0)
        held = (weight.codes, weight.scales, weight.zeros, weight.bias)
        return cls(*map(address, held), *size, weight.group_size, 0)

    @classmethod
    def part(cls, weight: PackedWeight, channels: slice) -> Matrix:
        """The structure of some channels of a weight, without its bias."""
        held = (weight.codes, weight.scales, weight.zeros)
        size = (channels.stop - channels.start, weight.in_features)
        return cls(
            *(address(tensor[channels]) for tensor in held), None, *size, weight.group_size, 0
        )


class Inputs(Structure):
    """linear.cu: what a weight multiplies, and where the result goes."""

    _fields_ = [
        ("x", c_void_p),
        ("norm", c_void_p),
        ("residual", c_void_p),
        ("y", c_void_p),
        ("row_scales", c_void_p),
        ("norm_eps", c_float),
        ("rows", c_int),
        ("is_staged", c_int),
        ("reserved", c_int),
    ]


class Upcoming(Structure):
    """linear.cu, attention.cu: the weight that is read next, and how much to fetch of it."""

    _fields_ = [("codes", c_void_p), ("bytes", c_longlong), ("wanted", c_longlong)]

    @classmethod
    def of(cls, weight: LinearWeight | None, most_bytes: int) -> Upcoming:
        """The structure of a weight, of which ``most_bytes`` are fetched; of None, nothing."""
        if weight is None or isinstance(weight, StackedWeight):
            return cls(None, 0, 0)
        codes = weight.values if isinstance(weight, FloatWeight) else weight.codes
        return cls(address(codes), codes.nbytes, most_bytes)


class Split(Structure):
    """prefill.cu: what blocks that share a tile hand each other."""

    _fields_ = [("parts", c_void_p), ("arrived", c_void_p), ("share", c_int), ("reserved", c_int)]


class Table(Structure):
    """embedding.cu: the table."""

    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bits", c_int),
        ("columns", c_int),
        ("group_size", c_int),
        ("reserved", c_int),
    ]

    @classmethod
    def of(cls, table: FloatWeight | PackedWeight) -> Table:
        """The structure of a table."""
        if isinstance(table, FloatWeight):
            return cls(address(table.values), None, None, 16, table.in_features, 0, 0)
        held = (table.codes, table.scales, table.zeros)
        return cls(*map(address, held), table.bits, table.in_features, table.group_size, 0)


class Heads(Structure):
    """attention.cu: how a layer divides its channels."""

    _fields_ = [
        ("query_heads", c_int),
        ("kv_heads", c_int),
        ("head_dim", c_int),
        ("window", c_int),
        ("capacity", c_int),
        ("rows", c_int),
        ("axes", c_int),
        ("reserved", c_int),
        ("norm_eps", c_float),
        ("scale", c_float),
    ]

    @classmethod
    def of(cls, layout: HeadLayout, capacity: int, positions: Tensor) -> Heads:
        """The structure of a layout for rows at ``positions`` [T] or [3, T]."""
        axes = 1 if positions.dim() == 1 else 3
        return cls(
            layout.query_heads,
            layout.kv_heads,
            layout.head_dim,
            layout.window or 0,
            capacity,
            positions.shape[-1],
            axes,
            0,
            layout.norm_eps,
            layout.head_dim**-0.5,
        )


class Cache(Structure):
    """attention.cu: one layer's keys and values."""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    ]

    @classmethod
    def of(cls, layer: FloatKvLayer | Int8KvLayer) -> Cache:
        """The structure of a layer's cache."""
        if isinstance(layer, FloatKvLayer):
            return cls(address(layer.keys), address(layer.values), None, None)
        held = (layer.keys, layer.values, layer.key_scales, layer.value_scales)
        return cls(*map(address, held))


class Rotation(Structure):
    """attention.cu: positions, tables and norms of queries and keys."""

    _fields_ = [
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("axis", c_void_p),
        ("positions", c_void_p),
        ("first", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
    ]

    @classmethod
    def of(
        cls, table: RotaryTable, positions: Tensor, first: Tensor, layout: HeadLayout
    ) -> Rotation:
        """The structure for rows at ``positions`` whose first slot is ``first``."""
        held = (table.cosines, table.sines, table.axes, positions, first)
        return cls(*map(address, held), address(layout.query_norm), address(layout.key_norm))


class Workspace(Structure):
    """attention.cu: what its blocks hand each other."""

    _fields_ = [("values", c_void_p), ("stats", c_void_p), ("arrived", c_void_p)]


class Settings(Structure):
    """sampling.cu: how to choose; it lies in device memory."""

    _fields_ = [
        ("temperature", c_float),
        ("top_p", c_float),
        ("top_k", c_int),
        ("reserved", c_int),
        ("seed", c_ulonglong),
    ]

    @classmethod
    def of(cls, sampling: Sampling) -> Settings:
        """The structure of ``sampling``."""
        return cls(sampling.temperature, sampling.top_p, sampling.top_k, 0, sampling.seed)

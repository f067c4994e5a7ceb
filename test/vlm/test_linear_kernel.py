"""The sources of linear.cu, run on the CPU, against the oracle."""

import ctypes
from ctypes import Structure, c_float, c_int, c_void_p
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tiny_decoders import round_to_grid
from warp_emulation import compile_for_cpu

from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.weights import FloatWeight

KERNELS = [f"{what}_{kind}" for kind in ("w4", "w4_small", "w8", "w8_small", "f16")
           for what in ("linear", "gate_up")]  # fmt: skip
LAUNCHERS = (
    "half_bits normed[1 << 18];\n"
    "typedef void (*Kernel)(Matrix, Inputs);\n"
    f"static Kernel kernels[] = {{{', '.join(KERNELS)}}};\n"
    'extern "C" void run(int which, Matrix* w, Inputs* in, int blocks) {\n'
    "  launch({blocks, 1, 1}, kThreads, [=] { kernels[which](*w, *in); });\n"
    "}\n"
)


class Matrix(Structure):
    _fields_ = [
        ("codes", c_void_p), ("scales", c_void_p), ("zeros", c_void_p), ("bias", c_void_p),
        ("channels", c_int), ("columns", c_int), ("group_size", c_int), ("reserved", c_int),
    ]  # fmt: skip


class Inputs(Structure):
    _fields_ = [
        ("x", c_void_p), ("norm", c_void_p), ("residual", c_void_p), ("y", c_void_p),
        ("norm_eps", c_float), ("rows", c_int),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_for_cpu("linear.cu", LAUNCHERS, tmp_path_factory.mktemp("linear"))


def at(tensor: Any) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def run(library, weight, x, *, gate_up=False, norm=None, residual=None):
    """Launch the kernel that fits a weight."""
    packed = isinstance(weight, PackedWeight)
    codes = weight.codes if packed else weight.values
    matrix = Matrix(
        at(codes), at(weight.scales if packed else None), at(weight.zeros if packed else None),
        at(weight.bias), weight.out_features, weight.in_features,
        weight.group_size if packed else 0, 0,
    )  # fmt: skip
    outputs = weight.out_features // (2 if gate_up else 1)
    y = torch.full((len(x), outputs), float("nan"), dtype=torch.float16)
    inputs = Inputs(at(x), at(norm), at(residual), at(y), 1e-5, len(x))
    kind = "f16"
    if packed:
        kind = f"w{weight.bits}" + ("" if weight.group_size % 128 == 0 else "_small")
    which = KERNELS.index(f"{'gate_up' if gate_up else 'linear'}_{kind}")
    library.run(which, ctypes.byref(matrix), ctypes.byref(inputs), -(-outputs // 16))
    return y


def halves(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def weight_of(kind: str, channels: int, columns: int, group: int = 0) -> Any:
    dense = halves(channels, columns, seed=channels) / columns**0.5
    bias = halves(channels, seed=1)
    if kind == "f16":
        return FloatWeight(dense, bias)
    return replace(round_to_grid(dense.float(), int(kind[1:]), group), bias=bias)


def oracle(operation: str, weight: Any, x: Any, norm: Any, residual: Any) -> Any:
    """In float32 from the same halves; what is normed is rounded to halves as the kernel does."""
    run_torch = TorchOperators()
    if isinstance(weight, PackedWeight):
        bias = None if weight.bias is None else weight.bias.float()
        weight = FloatWeight(weight.dequantize(), bias)
    x = x.float()
    if operation == "linear_add":
        return run_torch.linear_add(x, weight, residual.float())
    return getattr(run_torch, operation)(x, norm.float(), 1e-5, weight)


SHAPES = [
    ("w4", 32, 128, 128, 1, "one tile"),
    ("w4", 48, 2560, 128, 7, "more tiles than a round of the warps takes"),
    ("w4", 34, 1152, 1152, 2, "per channel; channels that 16 does not divide"),
    ("w4", 32, 576, 64, 8, "SmolLM2: half a tile at the end"),
    ("w4", 32, 96, 32, 1, "less than a tile"),
    ("w8", 48, 1152, 128, 4, "8 bits"),
    ("w8", 32, 576, 64, 1, "8 bits, small groups"),
    ("f16", 48, 576, 0, 7, "float"),
]


@pytest.mark.parametrize(
    ("kind", "channels", "columns", "group", "rows", "reason"), SHAPES, ids=[r[5] for r in SHAPES]
)
def test_kernels_agree_with_the_oracle(
    library, kind: str, channels: int, columns: int, group: int, rows: int, reason: str
) -> None:
    weight = weight_of(kind, channels, columns, group)
    x, norm = halves(rows, columns, seed=2), halves(columns, seed=3)
    residual = halves(rows, channels, seed=4)
    got = {
        "norm_linear": run(library, weight, x, norm=norm),
        "linear_add": run(library, weight, x, residual=residual),
        "norm_gate_up": run(library, weight, x, norm=norm, gate_up=True),
    }
    for operation, value in got.items():
        wanted = oracle(operation, weight, x, norm, residual)
        torch.testing.assert_close(value.float(), wanted, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("kind", ["w4", "w8", "f16"])
def test_row_has_the_same_bits_among_others_as_alone(library, kind: str) -> None:
    weight = weight_of(kind, 32, 1152, 128)
    x, norm = halves(8, 1152, seed=2), halves(1152, seed=3)
    together = run(library, weight, x, norm=norm)
    for row in (0, 5, 7):
        alone = run(library, weight, x[row : row + 1].contiguous(), norm=norm)
        assert torch.equal(alone[0].view(torch.int16), together[row].view(torch.int16))


def test_weights_in_groups_of_128_are_not_rounded(library) -> None:
    # One column at a time passes through: codes less zero point are exact, the scale is in fp32.
    weight = replace(weight_of("w4", 32, 128, 128), bias=None)
    x = torch.zeros(8, 128, dtype=torch.float16)
    columns = [0, 1, 31, 32, 63, 64, 100, 127]
    x[torch.arange(8), torch.tensor(columns)] = 1.0
    got = run(library, weight, x)
    assert torch.equal(got, weight.dequantize()[:, columns].T.half())

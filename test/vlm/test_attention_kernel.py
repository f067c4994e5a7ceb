"""The sources of attention.cu, run on the CPU, against the oracle."""

import ctypes
from ctypes import Structure, c_float, c_int, c_void_p
from dataclasses import dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from warp_emulation import compile_for_cpu

from edge_perception.core.language_model import read_shape
from edge_perception.vlm.kv_cache import Int8KvLayer, KvCache
from edge_perception.vlm.operators import HeadLayout, RotaryTable, Span
from edge_perception.vlm.torch_operators import TorchOperators

CHUNK = 256
ATTEND = [f"attend_{kind}_{group}" for kind in ("f16", "i8") for group in (1, 4, 8)]
LAUNCHERS = f"""
typedef void (*Attend)(Heads, const long long*, Cache, const half_bits*, float*);
static Attend kernels[] = {{{", ".join(ATTEND)}}};
extern "C" void run(int which, Heads* h, Rotation* r, Cache* c, half_bits* qkv, half_bits* queries,
                    float* parts, int chunks, half_bits* out) {{
  launch({{h->query_heads + 2 * h->kv_heads, h->rows, 1}}, 32,
         [=] {{ write_cache(*h, *r, *c, qkv, queries); }});
  launch({{h->kv_heads, chunks, h->rows}}, kAttendThreads,
         [=] {{ kernels[which](*h, r->first, *c, queries, parts); }});
  launch({{h->query_heads, h->rows, 1}}, kMaxHead,
         [=] {{ combine(*h, parts, chunks, out); }});
}}
"""


class Heads(Structure):
    _fields_ = [
        (name, c_int)
        for name in (
            "query_heads", "kv_heads", "head_dim", "window", "capacity", "rows", "axes", "reserved"
        )
    ] + [("norm_eps", c_float), ("scale", c_float)]  # fmt: skip


class CachePointers(Structure):
    _fields_ = [(n, c_void_p) for n in ("keys", "values", "key_scales", "value_scales")]


class Rotation(Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            "cosines", "sines", "axis", "positions", "first", "query_norm", "key_norm"
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A call: ``first`` slots are taken, ``rows`` come."""

    reason: str
    query_heads: int = 2
    kv_heads: int = 1
    head_dim: int = 64
    window: int | None = None
    kv_format: str = "float"
    first: int = 5
    rows: int = 2
    capacity: int = 20
    norms: bool = False
    axes: int = 1


CASES = [
    Case("one head", query_heads=1, head_dim=32, first=0, rows=1),
    Case("Qwen3: norms on queries and keys", query_heads=2, head_dim=128, norms=True),
    Case("several chunks, the last one empty", first=300, capacity=700),
    Case("Qwen2-7B: seven query heads share keys", query_heads=7, head_dim=32),
    Case("two groups of three", query_heads=6, kv_heads=2, head_dim=16, rows=3),
    Case("a window that leaves a chunk unseen", window=20, first=290, capacity=400),
    Case("INT8", kv_format="int8", query_heads=4, kv_heads=2, head_dim=32, rows=3),
    Case("INT8 over chunks", kv_format="int8", first=300, capacity=400),
    Case("a head that is no power of two", head_dim=96),
    Case("three axes of positions", axes=3, rows=3),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_for_cpu("attention.cu", LAUNCHERS, tmp_path_factory.mktemp("attention"))


def halves(*shape: int, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def filled_cache(case: Case) -> KvCache:
    """A cache whose first slots hold something; the others hold NaN where that is possible."""
    shape = read_shape({
        "model_type": "llama", "hidden_size": case.query_heads * case.head_dim,
        "intermediate_size": 32, "vocab_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": case.query_heads, "num_key_value_heads": case.kv_heads,
        "head_dim": case.head_dim, "max_position_embeddings": 1024,
    })  # fmt: skip
    cache = KvCache(
        shape, case.capacity, dtype=torch.float16, device=torch.device("cpu"),
        kv_format=case.kv_format,
    )  # fmt: skip
    layer = cache.layers[0]
    if not isinstance(layer, Int8KvLayer):
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    before = (case.first, case.kv_heads, case.head_dim)
    layer.write(torch.arange(case.first), halves(*before, seed=7), halves(*before, seed=8))
    return cache


def inputs_of(case: Case) -> tuple[Any, HeadLayout, RotaryTable, Any]:
    half = case.head_dim // 2
    angles = torch.arange(1024.0).unsqueeze(1) * torch.logspace(0, -4, half)
    axes = None if case.axes == 1 else torch.arange(half) % 3
    norms = (
        [halves(case.head_dim, seed=s).abs() + 0.5 for s in (3, 4)] if case.norms else [None] * 2
    )
    layout = HeadLayout(
        case.query_heads, case.kv_heads, case.head_dim, case.window, 1e-6, norms[0], norms[1]
    )
    positions = torch.arange(case.rows) + case.first
    if case.axes == 3:
        positions = torch.stack((positions, positions // 2, positions + 3))
    channels = (case.query_heads + 2 * case.kv_heads) * case.head_dim
    table = RotaryTable(angles.cos(), angles.sin(), axes)
    return halves(case.rows, channels, seed=2), layout, table, positions


def run_kernels(library: ctypes.CDLL, case: Case, cache: KvCache, qkv: Any) -> Any:
    _, layout, table, positions = inputs_of(case)
    layer: Any = cache.layers[0]
    keep = {
        "positions": positions.contiguous(), "first": torch.tensor([case.first]),
        "axis": None if table.axes is None else table.axes.to(torch.int32),
        "cosines": table.cosines.contiguous(), "sines": table.sines.contiguous(),
        "query_norm": layout.query_norm, "key_norm": layout.key_norm,
    }  # fmt: skip
    heads = Heads(
        case.query_heads, case.kv_heads, case.head_dim, case.window or 0, case.capacity,
        case.rows, case.axes, 0, layout.norm_eps, case.head_dim**-0.5,
    )  # fmt: skip
    turn = Rotation(**{name: None if t is None else t.data_ptr() for name, t in keep.items()})
    names = ("keys", "values", "key_scales", "value_scales")
    held = [getattr(layer, name, None) for name in names]
    pointers = CachePointers(*(None if t is None else t.data_ptr() for t in held))
    chunks = -(-case.capacity // CHUNK)
    queries = torch.empty(case.rows, case.query_heads, case.head_dim, dtype=torch.float16)
    parts = torch.full((case.rows, case.query_heads, chunks, case.head_dim + 2), float("nan"))
    out = torch.full((case.rows, case.query_heads * case.head_dim), float("nan")).half()
    group = case.query_heads // case.kv_heads
    kind = "i8" if case.kv_format == "int8" else "f16"
    which = ATTEND.index(f"attend_{kind}_{1 if group == 1 else 4 if group <= 4 else 8}")
    library.run(
        which, ctypes.byref(heads), ctypes.byref(turn), ctypes.byref(pointers),
        c_void_p(qkv.data_ptr()), c_void_p(queries.data_ptr()), c_void_p(parts.data_ptr()),
        chunks, c_void_p(out.data_ptr()),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("case", CASES, ids=[case.reason for case in CASES])
def test_kernels_agree_with_the_oracle(library, case: Case) -> None:
    qkv, layout, table, positions = inputs_of(case)
    ours, theirs = filled_cache(case), filled_cache(case)
    got = run_kernels(library, case, ours, qkv)
    span = Span(torch.tensor([case.first]), case.rows, case.capacity)
    layout = HeadLayout(
        layout.query_heads, layout.kv_heads, layout.head_dim, layout.window, layout.norm_eps,
        *(None if n is None else n.float() for n in (layout.query_norm, layout.key_norm)),
    )  # fmt: skip
    wanted = TorchOperators().attend(qkv.float(), layout, table, positions, theirs.layers[0], span)
    torch.testing.assert_close(got.float(), wanted, rtol=5e-3, atol=5e-3)
    end = case.first + case.rows
    for mine, theirs_ in zip(
        ours.layers[0].read(end, torch.float32), theirs.layers[0].read(end, torch.float32)
    ):
        torch.testing.assert_close(mine, theirs_, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_row_has_the_same_bits_among_others_as_alone(library, kv_format: str) -> None:
    case = Case("", rows=3, first=250, capacity=300, kv_format=kv_format, head_dim=32)
    qkv, cache = inputs_of(case)[0], filled_cache(case)
    together = run_kernels(library, case, cache, qkv)
    # The last row again, alone, over the cache that the rows before it have filled.
    last = replace(case, rows=1, first=252)
    alone = run_kernels(library, last, cache, qkv[2:].contiguous())
    assert torch.equal(alone[0].view(torch.int16), together[2].view(torch.int16))

"""The sources of ``vlm/kernels``, run on the CPU, against the oracle."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import pack_model, round_to_grid, tiny_model

from edge_perception.core.language_model import read_shape
from edge_perception.errors import DecodingError
from edge_perception.vlm import kernel_operators, kernel_prefill
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.int8_linear import Int8Weight
from edge_perception.vlm.kv_cache import Int8KvLayer, KvCache
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.operators import SAME_ORDER_ROWS, HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import GREEDY, Sampling, choose_tokens
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import FloatWeight, StackedWeight

ORACLE = TorchOperators()


def halves(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def same_bits(one: Any, other: Any) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def weight_of(kind: str, channels: int, columns: int, group: int = 0) -> Any:
    dense = halves(channels, columns, seed=channels) / columns**0.5
    bias = halves(channels, seed=1)
    if kind == "f16":
        return FloatWeight(dense, bias)
    return replace(round_to_grid(dense.float(), int(kind[1:]), group), bias=bias)


def wide(weight: Any) -> FloatWeight:
    """The same weight in float32."""
    if isinstance(weight, PackedWeight):
        return FloatWeight(weight.dequantize(), weight.bias)
    return FloatWeight(weight.values.float(), weight.bias)


PRODUCTS = [
    ("w4", 32, 128, 128, 1, "one tile"),
    ("w4", 48, 2560, 128, 7, "more than a round of the warps, normed by a launch of its own"),
    ("w4", 34, 1152, 1152, 2, "per channel; channels that 16 does not divide"),
    ("w4", 32, 576, 64, 8, "SmolLM2: half a tile at the end"),
    ("w4", 32, 96, 32, 1, "less than a tile"),
    ("w8", 48, 1152, 128, 4, "8 bits"),
    ("w8", 32, 576, 64, 1, "8 bits, small groups"),
    ("f16", 48, 576, 0, 7, "float"),
    ("w4", 200, 288, 32, 2, "four warps share K, teams that 16 does not divide"),
    ("w4", 392, 256, 128, 8, "two warps share K: more results than threads"),
    ("w8", 392, 96, 96, 1, "two warps share K, 8 bits"),
    ("w4", 360, 1280, 128, 3, "several steps of several rounds, of which the last is not full"),
]


@pytest.mark.parametrize(
    ("kind", "channels", "columns", "group", "rows", "reason"),
    PRODUCTS,
    ids=[r[5] for r in PRODUCTS],
)
def test_products_agree_with_the_oracle(
    kernels, kind: str, channels: int, columns: int, group: int, rows: int, reason: str
) -> None:
    weight = weight_of(kind, channels, columns, group)
    x, norm = halves(rows, columns, seed=2), halves(columns, seed=3)
    residual = halves(rows, channels, seed=4)
    got = (
        kernels.norm_linear(x, norm, 1e-5, weight),
        kernels.norm_gate_up(x, norm, 1e-5, weight),
        kernels.linear_add(x, weight, residual),
    )
    wanted = (
        ORACLE.norm_linear(x.float(), norm.float(), 1e-5, wide(weight)),
        ORACLE.norm_gate_up(x.float(), norm.float(), 1e-5, wide(weight)),
        ORACLE.linear_add(x.float(), wide(weight), residual.float()),
    )
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one.float(), other, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("kind", ["w4", "w8", "f16"])
def test_row_of_a_product_has_the_same_bits_among_others_as_alone(kernels, kind: str) -> None:
    # Eight rows are too many to be normed in shared memory: the other way must round alike.
    weight = weight_of(kind, 16, 2176, 128)
    x, norm = halves(8, 2176, seed=2), halves(2176, seed=3)
    together = kernels.norm_linear(x, norm, 1e-5, weight)
    for row in (0, 7):
        alone = kernels.norm_linear(x[row : row + 1], norm, 1e-5, weight)
        assert same_bits(alone[0], together[row])


def test_weights_in_groups_of_128_are_not_rounded(kernels) -> None:
    # One column at a time passes through: codes less zero point are exact, the scale is in fp32.
    weight = replace(weight_of("w4", 32, 128, 128), bias=None)
    x = torch.zeros(8, 128, dtype=torch.float16)
    columns = [0, 1, 31, 32, 63, 64, 100, 127]
    x[torch.arange(8), torch.tensor(columns)] = 1.0
    got = kernels.linear_add(x, weight, torch.zeros(8, 32).half())
    assert torch.equal(got, weight.dequantize()[:, columns].T.half())


@pytest.mark.parametrize("kind", ["w4", "f16"])
def test_fetching_the_next_weight_changes_nothing(kernels, kind: str) -> None:
    # The emulation reads what is fetched, so an address outside the weight is found.
    weight, after = weight_of(kind, 56, 256, 128), weight_of("w4", 40, 128, 128)
    x, norm, residual = halves(1, 256, seed=2), halves(256, seed=3), halves(1, 56, seed=4)
    for one, other in (
        (kernels.linear_add(x, weight, residual, then=after),
         kernels.linear_add(x, weight, residual)),
        (kernels.norm_gate_up(x, norm, 1e-5, weight, then=after),
         kernels.norm_gate_up(x, norm, 1e-5, weight)),
    ):  # fmt: skip
        assert same_bits(one, other)


DIVISIONS = [
    ("w4", 6144, 4096, False, (8, 264), "two blocks a multiprocessor, all at once"),
    ("w4", 14336, 4096, True, (8, 264), "gate and up: eight outputs a step"),
    ("w4", 5120, 13824, False, (4, 264), "fewer warps share K where that is fewer turns"),
    ("w4", 1536, 1536, False, (8, 96), "few channels: a block a step"),
    ("f16", 4096, 4096, False, (8, 256), "floats: blocks of 16 channels in waves"),
    ("f16", 128256, 4096, False, (8, 8016), "floats: blocks long enough"),
    ("f16", 12288, 1024, False, (2, 192), "floats: blocks that would be short"),
]


@pytest.mark.parametrize(
    ("kind", "outputs", "columns", "gated", "wanted", "reason"),
    DIVISIONS,
    ids=[r[5] for r in DIVISIONS],
)
def test_product_is_divided_by_sizes_of_matrix_and_chip(
    kind: str, outputs: int, columns: int, gated: bool, wanted: tuple[int, int], reason: str
) -> None:
    channels = outputs * (2 if gated else 1)
    weight = FloatWeight(torch.empty(channels, columns, dtype=torch.float16, device="meta"))
    if kind == "w4":
        groups = torch.empty(channels, columns // 128, device="meta")
        codes = torch.empty(channels, columns // 8, dtype=torch.int32, device="meta")
        weight = PackedWeight(codes, groups.half(), groups.to(torch.uint8), 4, 128)
    assert kernel_operators._divide(weight, outputs, gated, 132) == wanted


MANY = [
    ("w4", 128, 512, 128, 70, "two blocks share a tile"),
    ("w4", 272, 896, 128, 24, "a second tile, hardly begun: a block ends one and begins the next"),
    ("w4", 144, 160, 32, 100, "a second tile of channels and step of columns, hardly begun"),
    ("w4", 32, 576, 576, 9, "per channel; half a step at the end"),
    ("w4", 48, 96, 96, 130, "less than a step; a second tile of rows, hardly begun"),
    ("w8", 48, 640, 64, 12, "8 bits: dequantised"),
    ("f16", 48, 160, 0, 12, "float"),
    ("w4", 48, 160, 32, 11, "by passes of eight rows"),
]


@pytest.mark.parametrize(
    ("kind", "channels", "columns", "group", "rows", "reason"), MANY, ids=[r[5] for r in MANY]
)
def test_products_of_many_rows_agree_with_the_oracle(
    kernels, monkeypatch, kind: str, channels: int, columns: int, group: int, rows: int, reason: str
) -> None:
    if rows != 11:
        monkeypatch.setattr(kernel_operators, "PASS_ROWS", 0)
    weight = weight_of(kind, channels, columns, group)
    x, norm = halves(rows, columns, seed=2), halves(columns, seed=3)
    residual = halves(rows, channels, seed=4)
    gated = kernels.norm_gate_up(x, norm, 1e-5, weight)
    added = kernels.linear_add(x, weight, residual)
    torch.testing.assert_close(
        gated.float(), ORACLE.norm_gate_up(x.float(), norm.float(), 1e-5, wide(weight)),
        rtol=6e-3, atol=6e-3,
    )  # fmt: skip
    torch.testing.assert_close(
        added.float(), ORACLE.linear_add(x.float(), wide(weight), residual.float()),
        rtol=6e-3, atol=6e-3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("group", "rows", "reason"),
    [
        (128, 64, "four stages, blocks of few rows"),
        (64, 70, "three stages, small groups"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_packed_product_with_much_shared_memory_has_the_same_bits(
    kernels, monkeypatch, group: int, rows: int, reason: str
) -> None:
    # How far ahead copies run changes no sum, nor does a launch after another.
    weight, x = weight_of("w4", 80, 1152, group), halves(rows, 1152, seed=2)
    prefill = kernels._prefill
    with_little = prefill.multiply(x, weight)
    monkeypatch.setattr(kernels._launcher, "most_shared_bytes", 160 * 1024)
    blocks = (kernel_prefill._FEW_ROWS, kernel_prefill._MANY_ROWS)
    monkeypatch.setattr(prefill, "_blocks", blocks)
    assert same_bits(prefill.multiply(x, weight), with_little)
    assert same_bits(prefill.multiply(x, weight), with_little)
    assert len(set(kernels._launcher.launched[-3:])) == 2


@pytest.mark.parametrize(("kind", "group"), [("w4", 32), ("w4", 96), ("w8", 64)])
def test_dequantising_slices_gives_the_weight(kernels, monkeypatch, kind: str, group: int) -> None:
    monkeypatch.setattr(kernels._prefill, "fused_rows", 0)
    monkeypatch.setattr(kernel_prefill, "SLICE_BYTES", 2 * 192 * 16)
    weight = replace(weight_of(kind, 40, 192, group), bias=None)
    got = kernels.linear_add(torch.eye(192).half(), weight, torch.zeros(192, 40).half())
    assert torch.equal(got, weight.dequantize(torch.float16).T)


@pytest.mark.parametrize("rows", [1, 8, 12])
def test_8_bit_activations_agree_with_the_oracle(kernels, rows: int) -> None:
    packed = weight_of("w8", 32, 192, 192)
    weight = Int8Weight.of(replace(packed, zeros=torch.full_like(packed.zeros, 128)))
    x, norm = halves(rows, 192, seed=2), halves(192, seed=3)
    residual = halves(rows, 32, seed=4)
    for got, wanted in (
        (kernels.norm_linear(x, norm, 1e-5, weight), ORACLE.norm_linear(x, norm, 1e-5, weight)),
        (kernels.norm_gate_up(x, norm, 1e-5, weight), ORACLE.norm_gate_up(x, norm, 1e-5, weight)),
        (kernels.linear_add(x, weight, residual), ORACLE.linear_add(x, weight, residual)),
    ):
        torch.testing.assert_close(got.float(), wanted.float(), rtol=6e-3, atol=6e-3)
    alone = kernels.linear_add(x[:1], weight, residual[:1])
    if rows == 8:
        assert same_bits(alone[0], kernels.linear_add(x, weight, residual)[0])


def test_inputs_are_gathered_by_the_stored_order(kernels) -> None:
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    weight = replace(weight_of("w4", 16, 128, 128), input_order=order)
    x, norm = halves(2, 128, seed=2), halves(128, seed=3)
    wanted = ORACLE.norm_linear(x.float(), norm.float(), 1e-5, wide(weight))
    got = kernels.norm_linear(x, norm, 1e-5, weight).float()
    torch.testing.assert_close(got, wanted, rtol=4e-3, atol=4e-3)


def test_what_no_kernel_takes_goes_to_torch(kernels) -> None:
    small = weight_of("w4", 16, 128, 128)
    stacked = StackedWeight((small, weight_of("f16", 16, 128)))
    odd = replace(small, scales=small.scales.bfloat16())
    launched = len(kernels._launcher.launched)
    for rows, weight in ((9, stacked), (1, stacked), (1, odd)):
        x, residual = halves(rows, 128, seed=2), torch.zeros(rows, weight.out_features).half()
        assert torch.equal(
            kernels.linear_add(x, weight, residual), ORACLE.linear_add(x, weight, residual)
        )
    assert len(kernels._launcher.launched) == launched


def test_activations_of_another_type_are_refused(kernels) -> None:
    with pytest.raises(DecodingError, match=r"float16.*dtype=torch\.float16"):
        kernels.linear_add(torch.ones(1, 128), weight_of("w4", 16, 128, 128), torch.ones(1, 16))


@pytest.mark.parametrize(("kind", "group"), [("w4", 32), ("w8", 64), ("f16", 0)])
def test_embedding_reads_rows(kernels, kind: str, group: int) -> None:
    table = weight_of(kind, 40, 192, group)
    words = torch.tensor([3, 39, 3])
    wanted = ORACLE.embed(words, replace(table, bias=None), torch.float32).half()
    assert torch.equal(kernels.embed(words, table, torch.float16), wanted)


@dataclass(frozen=True)
class Case:
    """A call of ``attend``: ``first`` slots are taken, ``rows`` come."""

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
    Case("Qwen3: norms on queries and keys", head_dim=128, norms=True),
    Case("several chunks, the last one empty", first=300, capacity=700, head_dim=32),
    Case("Qwen2-7B: seven query heads share keys", query_heads=7, head_dim=16),
    Case("two groups of three", query_heads=6, kv_heads=2, head_dim=16, rows=3),
    Case("many chunks", first=1200, capacity=1300, head_dim=16, rows=1),
    Case("a window that leaves a chunk unseen", window=20, first=290, capacity=400, head_dim=32),
    Case("INT8", kv_format="int8", query_heads=4, kv_heads=2, head_dim=32, rows=3),
    Case("INT8 over chunks", kv_format="int8", first=300, capacity=400, head_dim=32),
    Case("a head that is no power of two", head_dim=96),
    Case("three axes of positions", axes=3, rows=3),
    Case("a prompt from the start", first=0, rows=12, query_heads=4, kv_heads=2, norms=True),
    Case("a prompt's second chunk, INT8", first=9, rows=11, kv_format="int8", head_dim=32),
    Case("a prompt longer than the window", window=6, rows=10),
]


def filled_cache(case: Case) -> KvCache:
    """A cache whose first slots hold something; the others hold NaN where that is possible."""
    shape = read_shape({
        "model_type": "llama", "hidden_size": case.query_heads * case.head_dim,
        "intermediate_size": 32, "vocab_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": case.query_heads, "num_key_value_heads": case.kv_heads,
        "head_dim": case.head_dim, "max_position_embeddings": 2048,
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


def arguments_of(case: Case) -> tuple[Any, HeadLayout, RotaryTable, Any, Span]:
    half = case.head_dim // 2
    angles = torch.arange(2048.0).unsqueeze(1) * torch.logspace(0, -4, half)
    axes = None if case.axes == 1 else torch.arange(half) % 3
    norms = [halves(case.head_dim, seed=s).abs() + 0.5 for s in (3, 4)]
    layout = HeadLayout(
        case.query_heads, case.kv_heads, case.head_dim, case.window, 1e-6,
        *(norms if case.norms else (None, None)),
    )  # fmt: skip
    positions = torch.arange(case.rows) + case.first
    if case.axes == 3:
        positions = torch.stack((positions, positions // 2, positions + 3))
    channels = (case.query_heads + 2 * case.kv_heads) * case.head_dim
    table = RotaryTable(angles.cos(), angles.sin(), axes)
    bound = case.capacity if case.rows <= SAME_ORDER_ROWS else case.first + case.rows
    span = Span(torch.tensor([case.first]), case.rows, bound)
    return halves(case.rows, channels, seed=2), layout, table, positions, span


@pytest.mark.parametrize("case", CASES, ids=[case.reason for case in CASES])
def test_attention_agrees_with_the_oracle(kernels, case: Case) -> None:
    qkv, layout, table, positions, span = arguments_of(case)
    ours, theirs = filled_cache(case).layers[0], filled_cache(case).layers[0]
    got = kernels.attend(qkv, layout, table, positions, ours, span)
    if layout.query_norm is not None and layout.key_norm is not None:
        norms = (layout.query_norm.float(), layout.key_norm.float())
        layout = replace(layout, query_norm=norms[0], key_norm=norms[1])
    wanted = ORACLE.attend(qkv.float(), layout, table, positions, theirs, span)
    torch.testing.assert_close(got.float(), wanted, rtol=5e-3, atol=5e-3)
    end = case.first + case.rows
    for mine, other in zip(ours.read(end, torch.float32), theirs.read(end, torch.float32)):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_row_of_attention_has_the_same_bits_among_others_as_alone(kernels, kv_format: str) -> None:
    case = Case("", rows=3, first=254, capacity=600, kv_format=kv_format, head_dim=32)
    qkv, layout, table, positions, span = arguments_of(case)
    cache = filled_cache(case).layers[0]
    together = kernels.attend(qkv, layout, table, positions, cache, span)
    # The last row again, alone and under a nearer bound, over the cache that is filled by now.
    last = Span(torch.tensor([256]), 1, 257)
    alone = kernels.attend(qkv[2:], layout, table, positions[2:], cache, last)
    assert same_bits(alone[0], together[2])


SAMPLINGS = [
    GREEDY,
    Sampling(1.0, seed=1),
    Sampling(0.7, top_k=5, seed=2),
    Sampling(1.5, top_p=0.8, seed=3),
    Sampling(1.0, top_k=40, top_p=0.9, seed=2**63 - 1),
    Sampling(1.0, top_p=1e-6),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("words", [37, 1500, 2200])
def test_sampled_tokens_are_those_of_the_definition(kernels, sampling, words: int) -> None:
    logits, slots = 3 * halves(8, words), torch.arange(8) + 100
    wanted = choose_tokens(logits.float(), sampling, slots)
    assert torch.equal(kernels.sample(logits, sampling, slots), wanted)


def test_of_equal_logits_the_lower_ids_come_first(kernels) -> None:
    logits, slots = torch.zeros(8, 300, dtype=torch.float16), torch.arange(8)
    logits[:, ::3] = -0.0
    logits[:, 150:] = -1.0
    assert kernels.sample(logits, GREEDY, slots).tolist() == [0] * 8
    for sampling in (Sampling(1.0, seed=4), Sampling(1.0, top_k=20, seed=4)):
        wanted = choose_tokens(logits.float(), sampling, slots)
        assert torch.equal(kernels.sample(logits, sampling, slots), wanted)


def test_values_of_either_sign_and_zero_are_ranked(kernels) -> None:
    values = [-65504.0, -1.0, -6e-8, 0.0, 6e-8, 1.0, 65504.0]
    rows = torch.tensor([values[:i] + [-65504.0] * (7 - i) for i in range(1, 8)]).half()
    assert kernels.sample(rows, GREEDY, torch.arange(7)).tolist() == list(range(7))


def test_whole_decoder_runs_on_the_kernels(kernels) -> None:
    weights = take_tower(pack_model(tiny_model("Qwen3")).half())
    options: dict[str, Any] = {"capacity": 32, "kv_format": "int8", "segments": 2}
    ours, theirs = Decoder(weights, operators=kernels, **options), Decoder(weights, **options)
    prompt = Prompt(torch.randint(0, 128, (12,), generator=torch.Generator().manual_seed(1)))
    tokens = [ours.prefill(prompt), ours.step(), ours.step()]
    assert tokens == [theirs.prefill(prompt), theirs.step(), theirs.step()]
    ours.rewind(12)
    assert ours.prefill(Prompt.of(tokens[:1])) == tokens[1]
    assert ours.verify([tokens[2], 0])[0] == tokens[2]

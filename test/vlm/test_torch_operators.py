import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import round_to_grid

from edge_perception.core.language_model import read_shape
from edge_perception.errors import CheckpointError
from edge_perception.vlm.kv_cache import KvCache, quantise_vectors
from edge_perception.vlm.operators import HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import GREEDY
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.weights import FloatWeight, LinearWeight, StackedWeight, stack

RUN = TorchOperators()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS: dict[str, LinearWeight] = {
    "float": FloatWeight(random(48, 96), random(48)),
    "4 bits": round_to_grid(random(48, 96), 4),
    "8 bits": round_to_grid(random(48, 96), 8),
    "mixed": StackedWeight((FloatWeight(random(16, 96)), round_to_grid(random(32, 96), 4))),
}


def dense(weight: LinearWeight) -> torch.Tensor:
    if isinstance(weight, StackedWeight):
        return torch.cat([dense(part) for part in weight.parts])
    return weight.dequantize() if isinstance(weight, PackedWeight) else weight.values


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_products_follow_their_formulas_in_float64(kind: str, rows: int) -> None:
    weight = WEIGHTS[kind]
    inputs, norm, residual = random(rows, 96, seed=1), random(96, seed=2), random(rows, 48, seed=3)
    matrix, bias = dense(weight).double(), getattr(weight, "bias", None)
    offset = 0 if bias is None else bias.double()
    wide = inputs.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.double()
    gate, up = (normed @ matrix.T + offset).chunk(2, dim=-1)
    wanted = {
        "norm_linear": normed @ matrix.T + offset,
        "linear_add": residual.double() + wide @ matrix.T + offset,
        "norm_gate_up": gate / (1 + (-gate).exp()) * up,
    }
    got = {
        "norm_linear": RUN.norm_linear(inputs, norm, 1e-5, weight),
        "linear_add": RUN.linear_add(inputs, weight, residual),
        "norm_gate_up": RUN.norm_gate_up(inputs, norm, 1e-5, weight),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(0, 2**31), st.sampled_from(list(WEIGHTS)))
def test_row_has_the_same_bits_among_others_as_alone(rows: int, seed: int, kind: str) -> None:
    inputs, norm = random(rows, 96, seed=seed), random(96, seed=2)
    together = RUN.norm_linear(inputs, norm, 1e-5, WEIGHTS[kind])
    alone = [RUN.norm_linear(row, norm, 1e-5, WEIGHTS[kind]) for row in inputs.split(1)]
    assert torch.equal(together, torch.cat(alone))


HIDDEN, HEADS, KV_HEADS, DIM = 64, 4, 2, 16
SHAPE = read_shape({
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 128, "vocab_size": 50,
    "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
})  # fmt: skip


def still(positions: int) -> RotaryTable:
    """A table that turns nothing."""
    return RotaryTable(torch.ones(positions, DIM // 2), torch.zeros(positions, DIM // 2))


def cache_of(kv_format: str = "float") -> KvCache:
    return KvCache(SHAPE, 32, dtype=torch.float32, device=torch.device("cpu"), kv_format=kv_format)


def attend(qkv: torch.Tensor, first: int, window: int | None, cache: KvCache) -> torch.Tensor:
    layout = HeadLayout(HEADS, KV_HEADS, DIM, window, 1e-6)
    span = Span(torch.tensor([first]), len(qkv), cache.capacity)
    return RUN.attend(qkv, layout, still(32), span.slots, cache.layers[0], span)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_attention_is_the_softmax_over_the_visible_slots(window: int | None, chunk: int) -> None:
    qkv = random(20, (HEADS + 2 * KV_HEADS) * DIM)
    cache = cache_of()
    got = torch.cat(
        [attend(part, 20 * 0 + i * chunk, window, cache)
         for i, part in enumerate(qkv.split(chunk))]
    )  # fmt: skip
    q, k, v = qkv.double().view(20, -1, DIM).split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    for row in range(20):
        oldest = 0 if window is None else max(0, row - window + 1)
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = k[oldest : row + 1, group] @ q[row, head] / math.sqrt(DIM)
            wanted = scores.softmax(-1) @ v[oldest : row + 1, group]
            value = got[row, head * DIM : (head + 1) * DIM].double()
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(0, 20), st.integers(0, 2**31), st.booleans())
def test_attention_of_a_row_has_the_same_bits_among_others_as_alone(
    rows: int, before: int, seed: int, narrow: bool
) -> None:
    qkv = random(before + rows, (HEADS + 2 * KV_HEADS) * DIM, seed=seed)
    window = 6 if narrow else None
    one, other = cache_of("int8"), cache_of("int8")
    for cache in (one, other):
        if before:
            attend(qkv[:before], 0, window, cache)
    together = attend(qkv[before:], before, window, one)
    alone = [attend(qkv[i : i + 1], i, window, other) for i in range(before, before + rows)]
    assert torch.equal(together, torch.cat(alone))


def test_rotation_turns_each_pair_by_its_angle() -> None:
    angles = torch.arange(32.0).unsqueeze(1) * torch.rand(DIM // 2)
    table = RotaryTable(angles.cos(), angles.sin())
    qkv = random(3, (HEADS + 2 * KV_HEADS) * DIM)
    cache = cache_of()
    layout = HeadLayout(HEADS, KV_HEADS, DIM, None, 1e-6)
    RUN.attend(qkv, layout, table, torch.tensor([4, 5, 6]), cache.layers[0],
               Span(torch.tensor([0]), 3, 32))  # fmt: skip
    keys, _ = cache.layers[0].read(3, torch.float32)
    given_keys = qkv.view(3, -1, DIM)[:, HEADS : HEADS + KV_HEADS]
    for row in range(3):
        for pair in range(DIM // 2):
            plane = torch.complex(given_keys[row, 0, pair], given_keys[row, 0, pair + DIM // 2])
            turned = plane * torch.polar(torch.tensor(1.0), angles[row + 4, pair])
            torch.testing.assert_close(keys[0, row, pair], turned.real)
            torch.testing.assert_close(keys[0, row, pair + DIM // 2], turned.imag)


@given(st.floats(1e-30, 1e30), st.integers(0, 2**31))
def test_int8_vectors_are_within_half_a_step(size: float, seed: int) -> None:
    vectors = random(3, 32, seed=seed) * size
    codes, scales = quantise_vectors(vectors)
    error = (codes * scales.unsqueeze(-1) - vectors).abs()
    assert bool((error <= scales.unsqueeze(-1) * 0.5001).all())


def test_int8_vector_of_zeros_stays_zero() -> None:
    codes, scales = quantise_vectors(torch.zeros(2, 8))
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize(
    ("kv_format", "wanted"),
    [("float", 2 * 2 * 2 * 32 * 16 * 4), ("int8", 2 * 2 * 2 * 32 * (16 + 4))],
)
def test_cache_takes_the_bytes_of_its_formula(kv_format: str, wanted: int) -> None:
    assert cache_of(kv_format).nbytes == wanted


def test_embedding_reads_rows_of_float_and_packed_tables() -> None:
    words = torch.tensor([5, 0, 5])
    for weight in (WEIGHTS["float"], WEIGHTS["8 bits"], WEIGHTS["4 bits"]):
        assert torch.equal(RUN.embed(words, weight, torch.float32), dense(weight)[words])


def test_sampling_operator_is_the_definition() -> None:
    assert RUN.sample(torch.eye(3), GREEDY, torch.arange(3)).tolist() == [0, 1, 2]


def packed(rows: int, group: int = 32, order: torch.Tensor | None = None) -> PackedWeight:
    weight = round_to_grid(random(rows, 96, seed=rows), 4, group)
    return PackedWeight(weight.codes, weight.scales, weight.zeros, 4, group, None, order)


ORDER = torch.arange(95, -1, -1)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([packed(8), packed(16)], PackedWeight),
        ([packed(8, order=ORDER), packed(16, order=ORDER.clone())], PackedWeight),
        ([packed(8, order=ORDER), packed(16)], StackedWeight),
        ([packed(8), packed(16, group=96)], StackedWeight),
        ([FloatWeight(random(8, 96)), FloatWeight(random(8, 96), random(8))], FloatWeight),
        ([FloatWeight(random(8, 96)), FloatWeight(random(8, 96).half())], StackedWeight),
        ([FloatWeight(random(8, 96)), packed(8)], StackedWeight),
    ],
)
def test_stacked_matrices_are_joined_where_they_are_alike(parts, kind) -> None:
    joined = stack(parts)
    assert type(joined) is kind
    assert torch.equal(dense(joined).float(), torch.cat([dense(part).float() for part in parts]))
    assert joined.out_features == sum(part.out_features for part in parts)


def test_matrices_of_different_widths_are_not_stacked() -> None:
    with pytest.raises(CheckpointError, match="cannot share an input"):
        stack([FloatWeight(random(4, 32)), FloatWeight(random(4, 64))])

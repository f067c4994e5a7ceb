import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders import layouts
from edge_perception.vlm.loaders.layouts import Codes


def random_codes(
    rows: int, columns: int, groups: int, *, bits: int = 4, seed: int = 0, low_zero: int = 0
) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    return Codes(
        torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator),
        (torch.rand(rows, groups, generator=generator) + 0.01).half(),
        torch.randint(low_zero, 2**bits, (rows, groups), dtype=torch.uint8, generator=generator),
    )


def assert_same(got: Codes, want: Codes) -> None:
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.scales, want.scales)
    assert torch.equal(got.zeros, want.zeros)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([32, 64, 128]))
seeds = st.integers(0, 2**31)


@settings(max_examples=15, deadline=None)
@given(shapes, seeds)
def test_awq_gemm_round_trips(shape: tuple[int, int, int], seed: int) -> None:
    rows, groups, size = shape
    want = random_codes(8 * rows, groups * size, groups, seed=seed)
    assert_same(layouts.read_awq_gemm(**layouts.write_awq_gemm(want)), want)


@settings(max_examples=15, deadline=None)
@given(shapes, seeds)
def test_awq_gemv_round_trips(shape: tuple[int, int, int], seed: int) -> None:
    rows, groups, size = shape
    want = random_codes(rows, groups * size, groups, seed=seed)
    assert_same(layouts.read_awq_gemv(**layouts.write_awq_gemv(want), group_size=size), want)


@settings(max_examples=15, deadline=None)
@given(shapes, seeds)
def test_awq_fast_round_trips(shape: tuple[int, int, int], seed: int) -> None:
    rows, groups, size = shape
    size = max(size, 64)
    want = random_codes(4 * rows, groups * size, groups, seed=seed)
    written = layouts.write_awq_fast(want, "scaled_zeros")
    assert_same(layouts.read_awq_fast(**written, group_size=size), want)


@settings(max_examples=10, deadline=None)
@given(shapes, seeds)
def test_awq_marlin_round_trips(shape: tuple[int, int, int], seed: int) -> None:
    rows, groups, size = shape
    want = random_codes(64 * rows, groups * size, groups, seed=seed)
    want = Codes(want.codes, want.scales, torch.full_like(want.zeros, 8))
    assert_same(layouts.read_awq_marlin(**layouts.write_awq_marlin(want)), want)


@settings(max_examples=15, deadline=None)
@given(shapes, seeds, st.sampled_from([4, 8]), st.sampled_from([1, 2]), st.booleans())
def test_gptq_round_trips(
    shape: tuple[int, int, int], seed: int, bits: int, version: int, ordered: bool
) -> None:
    rows, groups, size = shape
    plain = random_codes(8 * rows, groups * size, groups, bits=bits, seed=seed, low_zero=1)
    generator = torch.Generator().manual_seed(seed)
    # Within a group a reader may order the channels as it likes: ours keeps them ascending.
    shuffled = torch.randperm(groups * size, generator=generator).view(groups, size)
    order = shuffled.sort(dim=1).values.reshape(-1) if ordered and groups > 1 else None
    want = Codes(plain.codes, plain.scales, plain.zeros, order)
    written = layouts.write_gptq(want, bits=bits, version=version)
    got = layouts.read_gptq(**written, bits=bits, version=version)
    assert_same(got, want)
    assert (got.input_order is None) == (order is None)
    if order is not None:
        assert torch.equal(got.input_order, order)


@settings(max_examples=15, deadline=None)
@given(shapes, seeds, st.sampled_from([3, 4, 8]), st.booleans())
def test_compressed_tensors_round_trips(
    shape: tuple[int, int, int], seed: int, bits: int, symmetric: bool
) -> None:
    rows, groups, size = shape
    want = random_codes(7 * rows, groups * size, groups, bits=bits, seed=seed)
    if symmetric:
        want = Codes(want.codes, want.scales, torch.full_like(want.zeros, 2 ** (bits - 1)))
    written = layouts.write_compressed(want, bits=bits, symmetric=symmetric)
    got = layouts.read_compressed(
        written["weight_packed"],
        written["weight_scale"],
        written.get("weight_zero_point"),
        written["weight_shape"],
        bits=bits,
    )
    assert_same(got, want)


def test_gptq_version_one_reads_a_stored_fifteen_as_sixteen() -> None:
    # AutoGPTQ adds its 1 after masking, so that 16 is a zero point that occurs.
    written = layouts.write_gptq(random_codes(8, 32, 1), bits=4, version=2)
    written["qzeros"] = torch.full_like(written["qzeros"], -1)
    assert bool((layouts.read_gptq(**written, bits=4, version=1).zeros == 16).all())


def test_awq_nibbles_follow_the_published_order() -> None:
    # The layout's table: nibble i of word c is output channel 8c + [0, 2, 4, 6, 1, 3, 5, 7][i].
    codes = Codes(
        torch.arange(8, dtype=torch.uint8).unsqueeze(1).repeat(1, 32),
        torch.ones(8, 1).half(),
        torch.zeros(8, 1, dtype=torch.uint8),
    )
    word = int(layouts.write_awq_gemm(codes)["qweight"][0, 0]) & 0xFFFFFFFF
    assert [(word >> (4 * i)) & 15 for i in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_fractional_scaled_zeros_are_refused() -> None:
    written = layouts.write_awq_fast(random_codes(4, 128, 1), "scaled_zeros")
    written["scaled_zeros"][0] += 0.37 * written["scales"][0]
    with pytest.raises(CheckpointError, match="not integers"):
        layouts.read_awq_fast(**written, group_size=128)


HOSTILE_GEMM = [
    ("qweight", lambda t: t.float(), "qweight", "floats where words belong"),
    ("qweight", lambda t: t[:0], "qweight", "empty"),
    ("qweight", lambda t: t.unsqueeze(0), "qweight", "three dimensions"),
    ("qzeros", lambda t: t[:, :-1], "qzeros", "too few zero words"),
    ("scales", lambda t: t[:-1], "qzeros|scales", "a group too few"),
    ("scales", lambda t: t[:, 1:], "scales", "a channel too few"),
]


@pytest.mark.parametrize(("name", "damage", "match", "reason"), HOSTILE_GEMM)
def test_awq_gemm_refuses_tensors_that_do_not_fit(name, damage, match, reason) -> None:
    written = layouts.write_awq_gemm(random_codes(16, 96, 3))
    written[name] = damage(written[name])
    with pytest.raises(CheckpointError, match=match):
        layouts.read_awq_gemm(**written)


@pytest.mark.parametrize(
    ("g_idx", "reason"),
    [
        (torch.zeros(64, dtype=torch.int32), "all in one group"),
        (torch.full((64,), 7, dtype=torch.int32), "a group that is not there"),
        (torch.zeros(63, dtype=torch.int32), "too short"),
        (torch.zeros(64), "not integers"),
    ],
)
def test_gptq_refuses_a_senseless_group_index(g_idx, reason) -> None:
    written = layouts.write_gptq(random_codes(8, 64, 2, low_zero=1), bits=4, version=1)
    with pytest.raises(CheckpointError, match="g_idx"):
        layouts.read_gptq(**(written | {"g_idx": g_idx}), bits=4, version=1)


@pytest.mark.parametrize(
    "shape", [[8, 10**9], [-8, 64], [9, 64], [8, 0]], ids=["huge", "negative", "rows", "empty"]
)
def test_compressed_tensors_refuses_a_false_shape(shape: list[int]) -> None:
    written = layouts.write_compressed(random_codes(8, 64, 2), bits=4, symmetric=False)
    with pytest.raises(CheckpointError, match="weight_shape"):
        layouts.read_compressed(
            written["weight_packed"],
            written["weight_scale"],
            written["weight_zero_point"],
            torch.tensor(shape),
            bits=4,
        )

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from edge_perception.errors import DecodingError
from edge_perception.vlm.sampling import GREEDY, Sampling, choose_tokens, uniform_at

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def shares(sampling: Sampling, draws: int = 20000) -> torch.Tensor:
    """How often each word is drawn, over as many slots."""
    tokens = choose_tokens(LOGITS.expand(draws, -1), sampling, torch.arange(draws))
    return torch.bincount(tokens, minlength=4) / draws


def test_greedy_takes_the_largest() -> None:
    assert choose_tokens(LOGITS, GREEDY, torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_words_come_as_often_as_their_probability_says(temperature: float) -> None:
    wanted = (LOGITS[0] / temperature).softmax(-1)
    # Four standard deviations of a share near one half.
    assert float((shares(Sampling(temperature)) - wanted).abs().max()) < 4 * 0.5 / 20000**0.5


def test_top_k_keeps_the_k_largest_in_their_proportion() -> None:
    wanted = LOGITS[0, :2].softmax(-1)
    got = shares(Sampling(1.0, top_k=2))
    assert got[2:].tolist() == [0, 0]
    torch.testing.assert_close(got[:2], wanted, rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-6, 1), (0.64, 1), (0.65, 2), (0.88, 2), (0.9, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    # Probabilities 0.644, 0.237, 0.087, 0.032: cumulated 0.644, 0.881, 0.968, 1.
    assert int((shares(Sampling(1.0, top_p=top_p)) > 0).sum()) == kept


def test_seed_and_slot_decide_alone() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    slots = torch.arange(50)
    first = choose_tokens(logits, Sampling(1.0, seed=3), slots)
    assert torch.equal(choose_tokens(logits, Sampling(1.0, seed=3), slots), first)
    assert not torch.equal(choose_tokens(logits, Sampling(1.0, seed=4), slots), first)
    alone = [choose_tokens(logits[i : i + 1], Sampling(1.0, seed=3), slots[i : i + 1])
             for i in range(50)]  # fmt: skip
    assert torch.equal(torch.cat(alone), first)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_uniform_is_splitmix64(seed: int, slot: int) -> None:
    mask = 2**64 - 1
    state = (seed + (slot + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    wanted = ((state ^ (state >> 31)) >> 40) / 2**24
    assert float(uniform_at(seed, torch.tensor([slot]))) == wanted


def test_uniform_fills_its_range_evenly() -> None:
    values = uniform_at(7, torch.arange(100_000))
    counts = torch.histc(values, bins=20, min=0.0, max=1.0)
    assert float((counts - 5000).abs().max()) < 5 * 5000**0.5
    assert 0.0 <= float(values.min()) < float(values.max()) < 1.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_option_out_of_range_is_refused(values: dict[str, float], told: str) -> None:
    with pytest.raises(DecodingError, match=told):
        Sampling(**values)

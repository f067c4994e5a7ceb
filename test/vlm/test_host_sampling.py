import numpy as np
import pytest

from edge_perception.core.sampling import Sampling
from edge_perception.vlm.host_sampling import choose_token, uniform_at


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    logits = np.array([0.0, 3.0, 2.0], np.float32)
    assert choose_token(logits, Sampling(), 0) == 1
    assert choose_token(logits, Sampling(), 0, np.array([True, False, True])) == 2


def test_choices_have_their_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9], np.float32))
    sampling = Sampling(temperature=1.0, seed=3)
    drawn = [choose_token(logits, sampling, slot) for slot in range(4000)]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.5, 0.3, 0.2, 0], abs=0.03)


def test_masked_word_is_never_drawn() -> None:
    logits = np.zeros(8, np.float32)
    mask = np.arange(8) % 2 == 0
    sampling = Sampling(temperature=5.0)
    assert {choose_token(logits, sampling, slot, mask) % 2 for slot in range(300)} == {0}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.8, seed=5),
        Sampling(temperature=1.3, top_k=3, seed=1 << 62),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=2.0, top_k=7, top_p=0.9, seed=11),
    ],
)
def test_host_chooses_what_a_device_would(sampling: Sampling) -> None:
    torch = pytest.importorskip("torch")
    from edge_perception.vlm.sampling import choose_tokens

    logits = np.random.default_rng(0).normal(size=(200, 37)).astype(np.float32)
    slots = torch.arange(200)
    device = choose_tokens(torch.from_numpy(logits), sampling, slots).tolist()
    assert [choose_token(row, sampling, slot) for slot, row in enumerate(logits)] == device


def test_draws_are_those_of_the_device() -> None:
    torch = pytest.importorskip("torch")
    from edge_perception.vlm.sampling import uniform_at as uniform_on_device

    device = uniform_on_device(12345, torch.arange(1000)).tolist()
    assert [uniform_at(12345, slot) for slot in range(1000)] == device

import numpy as np
import pytest

from edge_perception.vlm.pace import Pace, Plan, RunningQuantile


@pytest.fixture
def pace() -> Pace:
    """20 ms to encode and 10 to the first token at 112 px, 80 and 40 at 224, 5 ms a token."""
    made = Pace((112, 224))
    made.add_encoding(112, 20)
    made.add_encoding(224, 80)
    made.add_answer(112, 10, 5)
    made.add_answer(224, 40, 5)
    return made


@pytest.mark.parametrize(
    ("left_ms", "plan"),
    [
        (1000, Plan(224, 32)),  # time for all
        (200, Plan(224, 17)),  # the better picture and half the words
        (150, Plan(112, 25)),  # seven words are too few for the better picture
        (45, Plan(112, 4)),
        (31, Plan(112, 1)),
        (29, Plan(112, 0)),  # not even one word
    ],
)
def test_deadline_decides_resolution_and_budget(pace: Pace, left_ms: float, plan: Plan) -> None:
    chosen = pace.plan(left_ms, 32)
    assert chosen.max_tokens == plan.max_tokens
    assert chosen.side_px == plan.side_px or not plan.max_tokens


def test_encoded_picture_costs_nothing_again(pace: Pace) -> None:
    assert pace.plan(100, 32, encoded_px=224) == Plan(224, 13)


def test_only_the_resolutions_in_use_are_chosen(pace: Pace) -> None:
    assert pace.plan(1000, 32, sides_px=(112,)) == Plan(112, 32)


def test_unmeasured_resolution_is_foretold_from_its_neighbour() -> None:
    pace = Pace((100, 200))
    pace.add_encoding(100, 10)
    pace.add_answer(100, 5, 1)
    assert pace.first_token_ms(200, encoded=False) == pytest.approx(60)


def test_nothing_measured_promises_everything() -> None:
    assert Pace((224,)).plan(10, 8) == Plan(224, 8)


def test_estimate_covers_nearly_all_times() -> None:
    times = np.random.default_rng(1).lognormal(3, 0.3, 4000)
    estimate, kept = RunningQuantile(0.95), []
    for time_ms in times:
        kept.append(estimate.value is not None and time_ms <= estimate.value)
        estimate.add(time_ms)
    assert 0.90 < np.mean(kept[200:]) < 0.995


def test_estimate_follows_a_slower_machine_at_once() -> None:
    estimate = RunningQuantile()
    for _ in range(100):
        estimate.add(10)
    for _ in range(10):
        estimate.add(30)
    assert estimate.value > 28

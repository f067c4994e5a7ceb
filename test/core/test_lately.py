"""What counts as lately."""

from __future__ import annotations

from edge_perception.core.lately import Lately


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_growth_is_told_for_as_long_as_it_is_recent() -> None:
    clock = Clock()
    lately = Lately(10.0, clock)
    assert not lately.grew("lost", 0), "nothing yet"
    assert lately.grew("lost", 3)
    clock.now_s += 10
    assert lately.grew("lost", 3), "still recent"
    clock.now_s += 1
    assert not lately.grew("lost", 3), "long ago"
    assert lately.grew("lost", 4), "again"


def test_first_look_at_a_count_that_has_grown_already_is_growth() -> None:
    assert Lately(10.0, Clock()).grew("lost", 1)


def test_counts_do_not_mix() -> None:
    lately = Lately(10.0, Clock())
    assert lately.grew("lost", 1)
    assert not lately.grew("rejected", 0)

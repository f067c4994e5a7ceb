import pytest

pytest.importorskip("torch")

from edge_perception.errors import DecodingError
from edge_perception.vlm.speculation import PromptLookup


def test_draft_is_what_followed_the_same_words_last() -> None:
    lookup = PromptLookup(3)
    lookup.extend([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 1, 2, 3])
    assert lookup.draft() == [5, 6, 7]


def test_longer_match_wins_over_a_later_shorter_one() -> None:
    lookup = PromptLookup(1)
    lookup.extend([1, 2, 3, 4, 9, 2, 3, 8, 1, 2, 3])
    assert lookup.draft() == [4]


def test_no_match_makes_no_draft() -> None:
    lookup = PromptLookup(4)
    lookup.extend([1, 2, 3, 4])
    assert lookup.draft() == []


def test_earlier_answers_are_looked_up_too() -> None:
    lookup = PromptLookup(4, earlier=[7, 8, 9, 10])
    lookup.extend([1, 7, 8])
    assert lookup.draft() == [9, 10, 1, 7]


@pytest.mark.parametrize("length", [0, 8])
def test_draft_length_out_of_range_is_refused(length: int) -> None:
    with pytest.raises(DecodingError, match="1 to 7"):
        PromptLookup(length)

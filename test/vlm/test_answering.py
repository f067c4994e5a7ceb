import pytest
from fake_vlm import END, FakeFeatures, FakeModel

from edge_perception.core.sampling import GREEDY
from edge_perception.errors import DecodingError
from edge_perception.vlm.answering import Limits, Question, complete

FEATURES = FakeFeatures(7, 224)


def begin(model: FakeModel, text: str = "What is this?"):
    return model.begin(FEATURES, Question(text), GREEDY)


def test_answer_ends_by_its_end_token() -> None:
    model = FakeModel()
    completion = complete(model, begin(model), Limits(64))
    assert (completion.text, completion.reason) == ("this is frame 7", "end")
    assert completion.tokens == tuple(b"this is frame 7")


def test_answer_is_streamed_piece_by_piece() -> None:
    model, pieces = FakeModel(), []
    completion = complete(model, begin(model), Limits(64), on_text=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == completion.text


def test_budget_ends_the_answer() -> None:
    model = FakeModel()
    completion = complete(model, begin(model), Limits(4))
    assert (completion.text, completion.reason, len(completion.tokens)) == ("this", "length", 4)


def test_stop_string_is_left_out() -> None:
    model = FakeModel()
    completion = complete(model, begin(model), Limits(64, stop=(" frame",)))
    assert (completion.text, completion.reason) == ("this is", "stop")


def test_full_context_ends_the_answer() -> None:
    model = FakeModel(context=20)
    completion = complete(model, begin(model, "123456789 1234"), Limits(64))
    assert (completion.text, completion.reason) == ("this i", "context")


@pytest.mark.parametrize("after", range(6))
def test_answer_can_be_stopped_after_any_token(after: int) -> None:
    model = FakeModel()
    asked = iter([""] * (2 * after) + ["cancelled"] * 99)  # before each token, and within it
    completion = complete(model, begin(model), Limits(64), should_stop=lambda: next(asked))
    assert (completion.text, completion.reason) == ("this is frame"[:after], "cancelled")


def test_stop_within_the_prompt_leaves_an_empty_answer() -> None:
    model = FakeModel()
    asked = iter(["", "deadline"])
    completion = complete(model, begin(model), Limits(64), should_stop=lambda: next(asked))
    assert (completion.text, completion.tokens, completion.reason) == ("", (), "deadline")


class Ladder:
    """Allows 'a', then 'b' or the end, then nothing but the end."""

    def __init__(self, steps: list[set[int]]) -> None:
        self.steps = steps
        self.taken: list[int] = []

    def mask(self):
        import numpy as np

        mask = np.zeros(260, bool)
        mask[sorted(self.steps[len(self.taken)])] = True
        return mask

    def take(self, token: int) -> None:
        self.taken.append(token)

    @property
    def finished(self) -> bool:
        return self.steps[len(self.taken)] == {END}


def test_constraint_decides_over_the_model() -> None:
    model = FakeModel()
    ladder = Ladder([{ord("a")}, {ord("b"), END}, {END}])
    completion = complete(model, begin(model), Limits(64), constraint=ladder)
    assert (completion.text, completion.reason) == ("ab", "end")


def test_constraint_that_allows_nothing_is_an_error() -> None:
    model = FakeModel()
    with pytest.raises(DecodingError, match="can go on"):
        complete(model, begin(model), Limits(64), constraint=Ladder([set()]))


def test_what_the_waiting_raises_ends_the_answer() -> None:
    model = FakeModel()

    def give_up() -> None:
        raise RuntimeError("turns are broken")

    with pytest.raises(RuntimeError, match="turns are broken"):
        complete(model, begin(model), Limits(64), between=give_up)
    assert complete(model, begin(model), Limits(64)).reason == "end"

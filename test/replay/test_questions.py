import numpy as np
import pytest

from edge_perception.core.answers import Answer
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.questions import BagQuestion, accuracy_of, bag_questions, judge


def boxes(*objects: tuple[str, float], size: float = 60.0, stamp_ns: int = 1) -> LabelledBoxes:
    """Objects of a size by the middle of each, across the picture."""
    corners = [[x - size / 2, 100, x + size / 2, 100 + size] for _, x in objects]
    names = tuple(name for name, _ in objects)
    scores = np.ones(len(names), np.float32)
    return LabelledBoxes(stamp_ns, np.array(corners, np.float32).reshape(-1, 4), scores, names)


PRESENCE = BagQuestion("presence", "Is there a cone?", ("cone",))
COUNT = BagQuestion("count", "How many cones are there?", ("cone",))
SIDE = BagQuestion("side", "Is the cone left or right of the box?", ("cone", "box"))
NEAR = boxes(("cone", 100), ("cone", 400), ("box", 500))


@pytest.mark.parametrize(
    ("question", "frame", "truth"),
    [
        (PRESENCE, NEAR, "yes"),
        (PRESENCE, boxes(("box", 10)), "no"),
        (PRESENCE, boxes(("cone", 100), size=10), None),  # too small to insist on
        (PRESENCE, boxes(), "no"),
        (COUNT, NEAR, "2"),
        (COUNT, boxes(), "0"),
        (SIDE, boxes(("cone", 100), ("box", 300)), "left"),
        (SIDE, boxes(("box", 100), ("cone", 300)), "right"),
        (SIDE, boxes(("box", 100), ("cone", 120)), None),  # nearly the same column
        (SIDE, NEAR, None),  # which of the two cones?
        (SIDE, boxes(("box", 100)), None),
    ],
)
def test_boxes_tell_the_right_answer(
    question: BagQuestion, frame: LabelledBoxes, truth: str | None
) -> None:
    assert question.truth(frame) == truth


def test_every_class_is_asked_about_in_turn() -> None:
    questions = bag_questions([NEAR, boxes(("person", 5))])
    assert {q.prompt for q in questions} >= {
        "Is there a cone?", "How many people are there?", "How many boxes are there?",
    }  # fmt: skip
    assert questions[0].kind != questions[1].kind
    assert questions[0].request(3) == {
        "id": "presence 3", "prompt": "Is there a cone?", "choices": ["yes", "no"],
    }  # fmt: skip


def test_sides_are_asked_of_pairs_that_most_frames_can_judge() -> None:
    apart = boxes(("box", 100), ("person", 500), ("cone", 120))  # box and cone in one column
    questions = bag_questions([apart, apart, boxes(("cone", 100), ("cone", 300))])
    pairs = [set(q.classes) for q in questions if q.kind == "side"]
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(("box", "person")), frozenset(("cone", "person")),
    }  # fmt: skip


def test_bag_without_truth_has_no_questions() -> None:
    assert bag_questions([]) == bag_questions([boxes()]) == []


def answer(prompt: str, text: str, stamp_ns: int = 1, reason: str = "end") -> Answer:
    return Answer("q", prompt, text, reason, stamp_ns=stamp_ns)


def test_answers_are_judged_by_the_truth_of_their_own_frame() -> None:
    truths = {1: NEAR, 2: boxes(("box", 10))}
    answers = [
        answer(PRESENCE.prompt, "Yes."),
        answer(PRESENCE.prompt, "yes", stamp_ns=2),  # no cone there
        answer(COUNT.prompt, "2"),
        answer(COUNT.prompt, "3", stamp_ns=9),  # a frame without truth
        answer(COUNT.prompt, "", reason="cancelled"),
        answer("What else?", "nothing"),
    ]
    judged = judge(answers, [PRESENCE, COUNT], truths)
    assert [each.right for each in judged] == [True, False, True, None, None]
    assert accuracy_of(judged) == {
        "judged": 3,
        "right": 0.6667,
        "by_kind": {"count": {"judged": 1, "right": 1.0}, "presence": {"judged": 2, "right": 0.5}},
    }


def test_nothing_judged_is_no_accuracy() -> None:
    assert accuracy_of([]) == {"judged": 0, "right": None, "by_kind": {}}

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from edge_perception.world.captions import CAPTION_PROMPTS, caption, location, locations
from edge_perception.world.questions import (
    KINDS,
    Question,
    answer_limits,
    balanced,
    questions_of,
    reference,
    reference_by_place,
)
from edge_perception.world.sight import SeenObject, Sight


def seen(name, x, *, colour=None, distance=2.0, side=60, share=1.0):
    """An object whose box's middle lies at column ``x``."""
    box = (x - side / 2, 200.0, x + side / 2, 200.0 + side)
    right = (x - 320) / 500 * distance
    return SeenObject(name, colour, box, share, side * side, (right, 0.0, distance))


def sight(*objects, layout="table", way_free=None):
    return Sight(layout, way_free, objects)


def answers(view, kind, tries=60):
    """Every question of a kind that is ever asked about a sight, with its answer."""
    rng = np.random.default_rng(0)
    asked = [q for _ in range(tries) for q in questions_of(view, rng) if q.kind == kind]
    return {question.prompt: question.answer for question in asked}


@pytest.mark.parametrize(
    ("kind", "view", "prompt", "answer"),
    [
        ("presence", sight(seen("cup", 300)), "Is there a cup?", "yes"),
        ("presence", sight(seen("cup", 300)), "Is there a robot?", "no"),
        ("count", sight(seen("box", 100), seen("box", 300)), "Count the boxes.", "2"),
        ("count", sight(), "How many people are there?", "0"),
        ("colour", sight(seen("cup", 9, colour="red")), "What colour is the cup?", "red"),
        (
            "colour",
            sight(seen("cup", 100, colour="red"), seen("cup", 400)),
            "What colour is the leftmost cup?",
            "red",
        ),
        (
            "side",
            sight(seen("cup", 100), seen("box", 300)),
            "Is the cup left or right of the box?",
            "left",
        ),
        (
            "depth",
            sight(seen("cup", 100, distance=1.0), seen("box", 300)),
            "Is the cup in front of or behind the box?",
            "in front",
        ),
        ("place", sight(seen("cup", 600)), "Where is the cup?", "right"),
        ("way", sight(layout="aisle", way_free=True), "Is the way free?", "yes"),
        ("way", sight(layout="aisle", way_free=True), "Is something in the way?", "no"),
    ],
)
def test_question_has_the_answer_that_the_facts_give(kind, view, prompt, answer):
    assert answers(view, kind)[prompt] == answer


@pytest.mark.parametrize(
    ("kind", "view", "word", "reason"),
    [
        ("presence", sight(seen("cup", 300, side=10)), "cup", "too small for yes, there for no"),
        ("presence", sight(seen("cup", 300, share=0.3)), "cup", "mostly hidden"),
        ("count", sight(seen("cup", 100), seen("cup", 300, share=0.3)), "cup", "is it one or two?"),
        ("count", sight(*[seen("cup", 100 * i) for i in range(5)]), "cup", "too many to count"),
        ("colour", sight(seen("cup", 300)), "cup", "no colour"),
        ("colour", sight(seen("cup", 300, colour="red"), seen("cup", 320)), "cup", "which?"),
        ("side", sight(seen("cup", 300), seen("box", 340)), "cup", "almost one above the other"),
        ("depth", sight(seen("cup", 300), seen("box", 320, distance=2.3)), "cup", "almost as far"),
        ("place", sight(seen("cup", 215)), "cup", "between left and centre"),
        ("way", sight(layout="aisle"), "", "neither free nor blocked"),
    ],
)  # fmt: skip
def test_what_people_would_argue_about_is_not_asked(kind, view, word, reason):
    assert not [prompt for prompt in answers(view, kind) if word in prompt], reason


def test_reference_names_the_colour_where_the_class_does_not_tell():
    red, blue, plain = (
        seen("cup", 100, colour="red"),
        seen("cup", 300, colour="blue"),
        seen("cup", 9),
    )
    assert reference(sight(red), red) == "cup"
    assert reference(sight(red, blue), red) == "red cup"
    assert reference(sight(red, replace(blue, colour="red")), red) is None
    assert reference(sight(red, plain), red) is None, "the other may be red, too"


def test_reference_by_place_needs_room_to_the_next():
    left, near, far = seen("cup", 100), seen("cup", 130), seen("cup", 300)
    assert reference_by_place(sight(left, far), far) == "rightmost cup"
    assert reference_by_place(sight(left, near), left) is None


def test_mirrored_sight_turns_left_into_right_and_back():
    view = sight(seen("cup", 100, distance=1.0), seen("box", 400), layout="aisle", way_free=False)
    assert answers(view, "side")["Is the cup left or right of the box?"] == "left"
    assert answers(view.mirrored(), "side")["Is the cup left or right of the box?"] == "right"
    assert answers(view.mirrored(), "depth") == answers(view, "depth")
    assert view.mirrored().mirrored() == view


def test_limits_are_those_of_the_third_most_common_answer():
    counts = Counter({("count", "cup", str(n)): c for n, c in enumerate((9, 7, 5, 2))})
    counts |= {("way", "free", "yes"): 8, ("way", "free", "no"): 3, ("depth", "a, b", "behind"): 6}
    assert answer_limits(counts) == {("count", "cup"): 5, ("way", "free"): 3, ("depth", "a, b"): 0}


def test_who_does_not_look_answers_half_at_most():
    rng = np.random.default_rng(1)
    names = ("cup", "box", "ball", "robot")
    views = [
        sight(
            *[
                seen(names[rng.choice(4, p=[0.6, 0.2, 0.1, 0.1])], rng.uniform(0, 640),
                     colour=["red", "blue", None][rng.integers(3)], distance=rng.uniform(0.5, 4))
                for _ in range(rng.integers(1, 7))
            ],
            layout="aisle", way_free=[True, False, False, False, None][rng.integers(5)],
        )
        for _ in range(600)
    ]  # fmt: skip
    every = [question for view in views for question in questions_of(view, rng)]
    kept = balanced(every, lambda question: question, rng, per_kind=200)
    by_subject: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in kept:
        by_subject[question.kind, question.subject][question.answer] += 1
    assert {question.kind for question in kept} == set(KINDS)
    assert max(Counter(question.kind for question in kept).values()) <= 200
    for kind in KINDS:
        subjects = [counts for (found, _), counts in by_subject.items() if found == kind]
        best_guess = sum(max(counts.values()) for counts in subjects)
        assert best_guess <= 0.56 * sum(sum(counts.values()) for counts in subjects), kind


def test_balancing_keeps_the_order_and_the_same_for_the_same_seed():
    every = [Question("way", "free", "?", ("yes", "no")[i % 2]) for i in range(20)]
    first, again = (
        balanced(list(enumerate(every)), lambda item: item[1], np.random.default_rng(3), 10)
        for _ in range(2)
    )
    assert first == again
    assert [index for index, _ in first] == sorted(index for index, _ in first)
    assert Counter(question.answer for _, question in first) == {"yes": 5, "no": 5}


def test_caption_names_clear_objects_the_nearest_and_the_way():
    view = sight(
        seen("cup", 100, side=90), seen("cup", 300),
        seen("box", 560, colour="orange", distance=1.0),
        seen("ball", 400, share=0.3), layout="aisle", way_free=False,
    )  # fmt: skip
    assert caption(view) == (
        "An aisle with two cups and a box. The nearest is an orange box on the right."
        " The way is blocked."
    )
    assert caption(sight()) == "A table with nothing to name."
    assert "Describe the picture." in CAPTION_PROMPTS


def test_locations_are_the_box_in_steps_of_a_64th():
    thing = SeenObject("cup", "red", (0.0, 240.0, 639.9, 480.0), 1.0, 5000, (0.0, 0.0, 1.0))
    assert location(thing) == "<loc00><loc32><loc63><loc63>"
    assert locations(sight(thing), np.random.default_rng(0)) == [
        ("Locate the cup.", "<loc00><loc32><loc63><loc63>")
    ]

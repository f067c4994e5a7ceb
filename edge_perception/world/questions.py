"""Questions about a picture with one right answer each, from its exact facts.

Every kind of question leaves out what people would argue about: small or hidden objects, almost
equal distances, almost the same column, colours without one name. A question's ``subject`` names
what it asks about; within a subject ``balanced`` keeps no answer more often than others, so that
who does not look at the picture, but knows the questions, still guesses no better than half.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

from numpy.random import Generator

from edge_perception.world.sight import SeenObject, Sight
from edge_perception.world.spec import CLASS_NAMES, IMAGE_WIDTH_PX

MAX_COUNT = 4
"""More objects of a class than this are not counted."""

_ASIDE_PX = 0.12 * IMAGE_WIDTH_PX
_OUTERMOST_PX = 0.08 * IMAGE_WIDTH_PX
_DISTANCE_RATIO = 1.25
# Thirds of the picture, with the space between them left out.
_PLACES = (("left", 0.0, 0.28), ("centre", 0.39, 0.61), ("right", 0.72, 1.0))

_PHRASES: dict[str, tuple[str, ...]] = {
    "presence": ("Is there a {a}?", "Can you see a {a}?", "Do you see any {as_}?"),
    "count": ("How many {as_} are there?", "How many {as_} do you see?", "Count the {as_}."),
    "colour": ("What colour is the {a}?", "Which colour does the {a} have?"),
    "side": (
        "Is the {a} left or right of the {b}?",
        "On which side of the {b} is the {a}, left or right?",
    ),
    "depth": (
        "Is the {a} in front of or behind the {b}?",
        "Is the {a} behind or in front of the {b}?",
    ),
    "place": ("Where is the {a}?", "Where in the picture is the {a}?"),
    "way_free": ("Is the way free?", "Is the path free?", "Is the path clear?"),
    "way_blocked": ("Is the way blocked?", "Is the path blocked?", "Is something in the way?"),
}

KINDS = ("presence", "count", "colour", "side", "depth", "place", "way")
"""The kinds of questions, as the data set and the exam name them."""


@dataclass(frozen=True)
class Question:
    """A prompt, its one right answer, what kind it is and what it asks about."""

    kind: str
    subject: str
    prompt: str
    answer: str


_Made = Iterator[Question]
_Kind = TypeVar("_Kind")


def plural(class_name: str) -> str:
    """More than one of a class."""
    special = {"person": "people", "box": "boxes"}
    return special.get(class_name, f"{class_name}s")


def phrase(rng: Generator, form: str, a: str = "", b: str = "") -> str:
    """One of the ways to ask a form of question."""
    forms = _PHRASES[form]
    return forms[int(rng.integers(len(forms)))].format(a=a, b=b, as_=plural(a))


def questions_of(sight: Sight, rng: Generator, *, most: int = 4) -> list[Question]:
    """What can be asked of a picture, at most ``most`` questions of a kind and side."""
    made: list[Question] = []
    for ask in (_presence, _count, _colour, _side, _depth, _place, _way):
        every = list(ask(sight, rng))
        order = rng.permutation(len(every))[:most]
        made += [every[int(index)] for index in order]
    return made


def _presence(sight: Sight, rng: Generator) -> _Made:
    """Equally many that are there and that are not, as far as the picture allows."""
    there = [name for name in CLASS_NAMES if any(t.is_clear for t in sight.of_class(name))]
    absent = [name for name in CLASS_NAMES if not sight.of_class(name)]
    for names, answer in ((there, "yes"), (absent, "no")):
        for index in rng.permutation(len(names))[:2]:
            name = names[int(index)]
            yield Question("presence", name, phrase(rng, "presence", name), answer)


def _count(sight: Sight, rng: Generator) -> _Made:
    for name in CLASS_NAMES:
        things = sight.of_class(name)
        if len(things) <= MAX_COUNT and all(thing.is_clear for thing in things):
            yield Question("count", name, phrase(rng, "count", name), str(len(things)))


def _colour(sight: Sight, rng: Generator) -> _Made:
    for thing in sight.clear:
        reference = reference_by_place(sight, thing)
        if thing.colour and reference:
            prompt = phrase(rng, "colour", reference)
            yield Question("colour", thing.class_name, prompt, thing.colour)


def _pairs(sight: Sight, rng: Generator) -> Iterator[tuple[SeenObject, str, SeenObject, str]]:
    """Two objects that can be named, in random order."""
    named = [(thing, reference(sight, thing)) for thing in sight.clear]
    known = [(thing, name) for thing, name in named if name]
    pairs = list(permutations(known, 2))
    for index in rng.permutation(len(pairs))[:12]:
        (one, its_name), (other, other_name) = pairs[int(index)]
        yield one, its_name, other, other_name


def _side(sight: Sight, rng: Generator) -> _Made:
    for one, a, other, b in _pairs(sight, rng):
        apart = one.centre_px - other.centre_px
        if abs(apart) >= _ASIDE_PX:
            subject = f"{one.class_name}, {other.class_name}"
            answer = "left" if apart < 0 else "right"
            yield Question("side", subject, phrase(rng, "side", a, b), answer)


def _depth(sight: Sight, rng: Generator) -> _Made:
    for one, a, other, b in _pairs(sight, rng):
        ratio = one.distance_m / other.distance_m
        if max(ratio, 1 / ratio) >= _DISTANCE_RATIO:
            subject = f"{one.class_name}, {other.class_name}"
            answer = "in front" if ratio < 1 else "behind"
            yield Question("depth", subject, phrase(rng, "depth", a, b), answer)


def _place(sight: Sight, rng: Generator) -> _Made:
    for thing in sight.clear:
        name = reference(sight, thing)
        where = place_of(thing)
        if name and where:
            yield Question("place", thing.class_name, phrase(rng, "place", name), where)


def place_of(thing: SeenObject) -> str | None:
    """The third of the picture that an object's middle lies in; None near the borders of two."""
    across = thing.centre_px / IMAGE_WIDTH_PX
    return next((name for name, low, high in _PLACES if low <= across <= high), None)


def _way(sight: Sight, rng: Generator) -> _Made:
    if sight.way_free is None:
        return
    for form, answer in (("way_free", sight.way_free), ("way_blocked", not sight.way_free)):
        yield Question("way", form, phrase(rng, form), "yes" if answer else "no")


def reference(sight: Sight, thing: SeenObject) -> str | None:
    """What tells the object from all others in view: its class, or its colour and class."""
    same = sight.of_class(thing.class_name)
    if len(same) == 1:
        return thing.class_name
    colours = [other.colour for other in same]
    if thing.colour and None not in colours and colours.count(thing.colour) == 1:
        return f"{thing.colour} {thing.class_name}"
    return None


def reference_by_place(sight: Sight, thing: SeenObject) -> str | None:
    """The same without the colour: its class, or that it is the leftmost or rightmost of it."""
    same = sight.of_class(thing.class_name)
    if len(same) == 1:
        return thing.class_name
    others = [other.centre_px for other in same if other is not thing]
    if thing.centre_px <= min(others) - _OUTERMOST_PX:
        return f"leftmost {thing.class_name}"
    if thing.centre_px >= max(others) + _OUTERMOST_PX:
        return f"rightmost {thing.class_name}"
    return None


def answer_limits(counts: Counter[tuple[str, str, str]]) -> dict[tuple[str, str], int]:
    """How often an answer may stay within each (kind, subject), from counts with the answer.

    The third most common answer sets the limit, or the second of two: so none has more than half,
    nor more than a third where there are three. A subject with one answer only is left out.
    """
    by_subject: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (kind, subject, _), count in counts.items():
        by_subject[kind, subject].append(count)
    return {
        key: sorted(found, reverse=True)[min(2, len(found) - 1)] if len(found) > 1 else 0
        for key, found in by_subject.items()
    }


def balanced(
    items: Sequence[_Kind], question: Callable[[_Kind], Question], rng: Generator, per_kind: int
) -> list[_Kind]:
    """A part of ``items`` with balanced answers, at most ``per_kind`` of each kind, in order.

    ``question`` gives an item's question.
    """
    limits = answer_limits(Counter(_key(question(item)) for item in items))
    kept: list[int] = []
    answers: Counter[tuple[str, str, str]] = Counter()
    for index in rng.permutation(len(items)):
        key = _key(question(items[int(index)]))
        if answers[key] < limits[key[:2]]:
            answers[key] += 1
            kept.append(int(index))
    chosen = _level(kept, [question(items[index]) for index in kept], per_kind)
    return [items[index] for index in sorted(chosen)]


def _key(question: Question) -> tuple[str, str, str]:
    return question.kind, question.subject, question.answer


def _level(indices: Iterable[int], questions: Iterable[Question], per_kind: int) -> Iterator[int]:
    """At most ``per_kind`` of each kind, taking every answer of a subject in turn."""
    turns: Counter[tuple[str, str, str]] = Counter()
    ranked: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, question in zip(indices, questions):
        key = _key(question)
        ranked[question.kind].append((turns[key], index))
        turns[key] += 1
    for places in ranked.values():
        yield from (index for _, index in sorted(places)[:per_kind])

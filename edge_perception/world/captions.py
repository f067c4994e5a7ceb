"""Sentences about a whole picture, and where things are: from the same facts as the questions."""

from __future__ import annotations

from collections import Counter

from numpy.random import Generator

from edge_perception.world.questions import place_of, plural, reference
from edge_perception.world.sight import SeenObject, Sight
from edge_perception.world.spec import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX

CAPTION_PROMPTS = (
    "Describe the picture.",
    "Describe the image.",
    "Describe the scene.",
    "Describe what you see.",
    "What do you see?",
    "What is in front of you?",
    "What is in the picture?",
)
"""Ways to ask for a caption."""

LOCATIONS = 64
"""Steps across the picture, and down it, in which ``location`` tells places."""

LOCATION_TOKENS = tuple(f"<loc{step:02d}>" for step in range(LOCATIONS))

_NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NAMED = 5


def caption(sight: Sight) -> str:
    """What a person would say first: the place, the objects by size, the nearest, the way.

    "A table with two cups, a bowl and a box. The nearest is a red cup on the left."
    """
    start = "An aisle" if sight.layout == "aisle" else "A table"
    sentences = [f"{start} with {_listed(sight)}."]
    nearest = min(sight.clear, key=lambda thing: thing.distance_m, default=None)
    if nearest is not None:
        sentences.append(f"The nearest is {_described(nearest)}.")
    if sight.way_free is not None:
        sentences.append(f"The way is {'free' if sight.way_free else 'blocked'}.")
    return " ".join(sentences)


def _listed(sight: Sight) -> str:
    """Clear objects by class, those that fill most of the picture first."""
    area: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for thing in sight.clear:
        area[thing.class_name] += thing.visible_pixels
        count[thing.class_name] += 1
    named = [_counted(name, count[name]) for name, _ in area.most_common(_NAMED)]
    if len(named) < 2:
        return named[0] if named else "nothing to name"
    return f"{', '.join(named[:-1])} and {named[-1]}"


def _counted(name: str, count: int) -> str:
    number = _NUMBERS[count] if count < len(_NUMBERS) else "many"
    return f"{number} {name if count == 1 else plural(name)}"


def _described(thing: SeenObject) -> str:
    colour = thing.colour or ""
    name = f"{colour} {thing.class_name}".strip()
    where = place_of(thing)
    at = {"left": " on the left", "right": " on the right", "centre": " in the centre"}
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}{at.get(where or '', '')}"


def locations(sight: Sight, rng: Generator, most: int = 4) -> list[tuple[str, str]]:
    """Prompts and answers that tell an object's box: left, top, right, bottom as four tokens."""
    named = [(reference(sight, thing), thing) for thing in sight.clear]
    known = [(name, thing) for name, thing in named if name]
    chosen = [known[int(index)] for index in rng.permutation(len(known))[:most]]
    return [(f"Locate the {name}.", location(thing)) for name, thing in chosen]


def location(thing: SeenObject) -> str:
    """The object's box in ``LOCATION_TOKENS``."""
    sides = (IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX)
    steps = [int(edge / side * LOCATIONS) for edge, side in zip(thing.box_xyxy, sides)]
    return "".join(LOCATION_TOKENS[min(max(step, 0), LOCATIONS - 1)] for step in steps)

"""Questions that a bag's own boxes can answer, and how often they were answered right.

A bag tells where the objects are, so presence, number and side can be asked and judged without
anybody's help. What people would argue about is not judged: objects that are small, cut off at the
picture's edge, or beside one another within a tenth of its width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from edge_perception.core.answers import YES_NO, Answer
from edge_perception.replay.messages import LabelledBoxes

_MOST_CLASSES = 6
_CLEAR_SIDE_PX = 24.0
_CLEAR_AREA_PX = 900.0
_ASIDE_PX = 64.0


@dataclass(frozen=True)
class BagQuestion:
    """A prompt about classes of the bag; ``kind`` is "presence", "count" or "side"."""

    kind: str
    prompt: str
    classes: tuple[str, ...]

    def request(self, number: int) -> dict[str, Any]:
        """The prompt message, of a running number."""
        told: dict[str, Any] = {"id": f"{self.kind} {number}", "prompt": self.prompt}
        if self.kind == "presence":
            told["choices"] = list(YES_NO)
        elif self.kind == "side":
            told["choices"] = ["left", "right"]
        return told

    def truth(self, boxes: LabelledBoxes) -> str | None:
        """The right answer for a frame; None where there is none to insist on."""
        if not all(_is_clear(boxes, index) for index in _of_classes(boxes, self.classes)):
            return None
        counts = Counter(boxes.class_names)
        if self.kind == "presence":
            return "yes" if counts[self.classes[0]] else "no"
        if self.kind == "count":
            return str(counts[self.classes[0]])
        return _side(boxes, *self.classes)


def plural(name: str) -> str:
    """More than one of a class."""
    if name == "person":
        return "people"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"


def bag_questions(truths: Iterable[LabelledBoxes]) -> list[BagQuestion]:
    """What to ask about a bag, in an order that changes kind and class from one to the next."""
    frames = list(truths)
    seen = Counter(name for boxes in frames for name in boxes.class_names)
    names = [name for name, _ in seen.most_common(_MOST_CLASSES)]
    presence = [BagQuestion("presence", f"Is there a {name}?", (name,)) for name in names]
    count = [BagQuestion("count", f"How many {plural(n)} are there?", (n,)) for n in names]
    side = _side_questions(names, frames)
    longest = max(len(presence), len(count), len(side), 0)
    rows = zip(*(kind * longest for kind in (presence, count, side) if kind))
    return [question for row in list(rows)[:longest] for question in row]


def _side_questions(names: Sequence[str], frames: Sequence[LabelledBoxes]) -> list[BagQuestion]:
    """About the pairs of classes that most frames can judge; every other pair the other way."""
    pairs = list(combinations(names, 2))
    asked = [_side_question(*(pair if k % 2 else pair[::-1])) for k, pair in enumerate(pairs)]
    judged = {question: sum(question.truth(b) is not None for b in frames) for question in asked}
    best = sorted((q for q in asked if judged[q]), key=lambda q: -judged[q])
    return best[: len(names)]


def _side_question(one: str, other: str) -> BagQuestion:
    return BagQuestion("side", f"Is the {one} left or right of the {other}?", (one, other))


@dataclass(frozen=True)
class Judged:
    """An answer beside the truth; ``truth`` None where the frame has none to insist on."""

    question: BagQuestion
    answer: Answer
    truth: str | None

    @property
    def right(self) -> bool | None:
        """Whether the answer is the truth to the letter; None where there is no truth."""
        if self.truth is None or self.answer.finish_reason in ("cancelled", "error"):
            return None
        return self.answer.text.strip().rstrip(".").lower() == self.truth


def judge(
    answers: Sequence[Answer],
    questions: Sequence[BagQuestion],
    truths: Mapping[int, LabelledBoxes],
) -> list[Judged]:
    """Put answers beside the truth of their frames; ``truths`` by stamp in ns, as in answers."""
    by_prompt = {question.prompt: question for question in questions}
    judged = []
    for answer in answers:
        question, boxes = by_prompt.get(answer.prompt), truths.get(answer.stamp_ns)
        if question is not None:
            truth = None if boxes is None else question.truth(boxes)
            judged.append(Judged(question, answer, truth))
    return judged


def accuracy_of(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares of right answers, 0..1, over all and by kind; None where nothing was judged."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for each in judged:
        if each.right is not None:
            by_kind[each.question.kind].append(each.right)
    every = [right for rights in by_kind.values() for right in rights]
    return {
        "judged": len(every),
        "right": _share(every),
        "by_kind": {
            kind: {"judged": len(rights), "right": _share(rights)}
            for kind, rights in sorted(by_kind.items())
        },
    }


def _share(rights: Sequence[bool]) -> float | None:
    return round(sum(rights) / len(rights), 4) if rights else None


def _of_classes(boxes: LabelledBoxes, classes: Sequence[str]) -> list[int]:
    return [index for index, name in enumerate(boxes.class_names) if name in classes]


def _is_clear(boxes: LabelledBoxes, index: int) -> bool:
    left, top, right, bottom = boxes.boxes_xyxy[index].tolist()
    width, height = right - left, bottom - top
    return min(width, height) >= _CLEAR_SIDE_PX and width * height >= _CLEAR_AREA_PX


def _side(boxes: LabelledBoxes, one: str, other: str) -> str | None:
    places: dict[str, list[float]] = defaultdict(list)
    for index in _of_classes(boxes, (one, other)):
        left, _, right, _ = boxes.boxes_xyxy[index].tolist()
        places[boxes.class_names[index]].append((left + right) / 2)
    if len(places[one]) != 1 or len(places[other]) != 1:
        return None
    apart = places[one][0] - places[other][0]
    if abs(apart) < _ASIDE_PX:
        return None
    return "left" if apart < 0 else "right"

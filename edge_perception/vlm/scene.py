"""What the detector sees, as the language side needs it: when to speak, and what was spoken of."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

_NEAR_NS = 500_000_000
"""Detections of a frame so near in time may stand for those of an answer's own."""

_MOST_VIEWS = 64  # two seconds of a usual camera


@dataclass(frozen=True)
class SeenObject:
    """One detection: its class's name and its box in px of the source image."""

    name: str
    score: float
    box_xyxy: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        left, top, right, bottom = self.box_xyxy
        return (left + right) / 2, (top + bottom) / 2

    @property
    def diagonal(self) -> float:
        """The length of the box's diagonal."""
        left, top, right, bottom = self.box_xyxy
        return float(((right - left) ** 2 + (bottom - top) ** 2) ** 0.5)


class Views:
    """The detections of the newest frames, by the frames' headers.

    ``add`` on one thread, ``near`` on any.
    """

    def __init__(self) -> None:
        self._views: OrderedDict[tuple[str, int], tuple[SeenObject, ...]] = OrderedDict()

    def add(self, frame_id: str, stamp_ns: int, objects: tuple[SeenObject, ...]) -> None:
        """Take a frame's detections; the oldest are forgotten."""
        self._views[frame_id, stamp_ns] = objects
        if len(self._views) > _MOST_VIEWS:
            self._views.popitem(last=False)

    def near(self, frame_id: str, stamp_ns: int) -> tuple[int | None, tuple[SeenObject, ...]]:
        """A frame's detections, or else the nearest in time, and their stamp; None if far."""
        views = {
            stamp: objects
            for (camera, stamp), objects in tuple(self._views.items())
            if camera == frame_id and abs(stamp - stamp_ns) <= _NEAR_NS
        }
        if not views:
            return None, ()
        nearest = min(views, key=lambda stamp: abs(stamp - stamp_ns))
        return nearest, views[nearest]

    def clear(self) -> None:
        """Forget everything."""
        self._views.clear()


def describe_change(before: Sequence[SeenObject], now: Sequence[SeenObject], far: float) -> str:
    """What changed between two views in words, "" where nothing did that matters.

    A new class, another number of objects, or an object whose centre moved by more than ``far``
    times its own diagonal. Objects of a class are paired with the nearest.
    """
    counts, counts_before = _count(now), _count(before)
    for name in sorted(counts.keys() | counts_before.keys()):
        if name not in counts_before:
            return f"new class {name}"
        if counts[name] != counts_before[name]:
            return f"{counts_before[name]} {name} became {counts[name]}"
    for seen in now:
        same = [other for other in before if other.name == seen.name]
        if min(_distance(seen, other) for other in same) > far * seen.diagonal:
            return f"{seen.name} moved"
    return ""


def _count(objects: Sequence[SeenObject]) -> Counter[str]:
    return Counter(seen.name for seen in objects)


def _distance(one: SeenObject, other: SeenObject) -> float:
    (x1, y1), (x2, y2) = one.centre, other.centre
    return float(((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5)


class SceneGate:
    """Opens when the detections changed since it was last closed; not thread-safe.

    A change counts once it has been seen in ``patience`` messages in a row: a detector's scores
    flicker around its threshold.
    """

    def __init__(self, far: float, patience: int = 3) -> None:
        self.far = far
        self.why = "first view"
        self.patience = patience
        self._spoken_of: tuple[SeenObject, ...] = ()
        self._now: tuple[SeenObject, ...] = ()
        self._changed_for = 0

    def see(self, objects: Sequence[SeenObject]) -> None:
        """Take the newest detections."""
        self._now = tuple(objects)
        if self.is_open:
            return
        change = describe_change(self._spoken_of, self._now, self.far)
        self._changed_for = self._changed_for + 1 if change else 0
        if self._changed_for >= self.patience:
            self.why = change

    @property
    def is_open(self) -> bool:
        """Whether there is something new to speak of."""
        return bool(self.why)

    def close(self) -> None:
        """What is seen now is being spoken of."""
        self._spoken_of, self.why, self._changed_for = self._now, "", 0


def mentioned(text: str, names: Sequence[str]) -> tuple[int, ...]:
    """The indices of ``names`` (classes, one for each detection) that a text speaks of.

    A class is spoken of where its words stand in the text one after the other, in singular or
    plural (-s, -es, -ies; people), whatever their case; underscores count as blanks. Every
    detection of such a class is meant: which of two chairs is "the chair on the left" is not
    decided here.
    """
    words = _words(text)
    spoken = {name: any(_stands_in(form, words) for form in _forms(name)) for name in set(names)}
    return tuple(index for index, name in enumerate(names) if spoken[name])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _forms(name: str) -> list[list[str]]:
    words = _words(name)
    if not words:
        return []
    last = words[-1]
    plurals = [last, f"{last}s", f"{last}es"]
    if last.endswith("y"):
        plurals.append(f"{last[:-1]}ies")
    if last == "person":
        plurals.append("people")
    return [[*words[:-1], form] for form in plurals]


def _stands_in(form: Sequence[str], words: Sequence[str]) -> bool:
    return any(
        list(words[start : start + len(form)]) == list(form)
        for start in range(len(words) - len(form) + 1)
    )

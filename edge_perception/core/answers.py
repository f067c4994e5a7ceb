"""Prompts and answers as they travel on topics: JSON in a string, by the schemas in docs/vlm.md.

A prompt comes from anywhere, so nothing about it is believed: its length is looked at before its
text is, and whatever is wrong becomes a ``RequestError`` that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from edge_perception.errors import RequestError

FINISH_REASONS = (
    "end",
    "stop",
    "length",
    "context",
    "deadline",
    "cancelled",
    "stale",
    "error",
)
"""Why an answer ended: the model's own end; a stop string; ``max_tokens``; the model's context; the
prompt's deadline; a cancel; a frame too old to speak of; a prompt that could not be answered."""

MAX_ID_CHARACTERS = 128
MAX_CHOICES = 64
MAX_REGION_PX = 1 << 20
YES_NO = ("yes", "no")

_REPLACEMENT = "�"  # what broken UTF-8 has become when it arrives here


@dataclass(frozen=True)
class Request:
    """One prompt. None and () mean: as the node's parameters say, or not at all.

    ``region`` is (left, top, right, bottom) in px of the source image. ``deadline_ms`` counts from
    the prompt's arrival. ``schema`` (JSON Schema) and ``choices`` constrain the answer, one of them
    at most. A request without a prompt cancels those of its id.
    """

    prompt: str
    id: str = ""
    region: tuple[float, float, float, float] | None = None
    max_tokens: int | None = None
    deadline_ms: float | None = None
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text("id", self.id, MAX_ID_CHARACTERS)
        _check_text("prompt", self.prompt)
        _check_region(self.region)
        _check_choices(self.choices)
        if self.cancels and not self.id:
            raise RequestError("empty prompt", expected="a prompt, or the id of one to cancel")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError("max_tokens", expected="1 or more", got=self.max_tokens)
        if self.deadline_ms is not None and not 0 < self.deadline_ms <= 3.6e6:
            raise RequestError("deadline_ms", expected="above 0, to an hour", got=self.deadline_ms)
        if self.schema is not None and self.choices:
            raise RequestError("schema and choices", expected="one of them at most")

    @property
    def cancels(self) -> bool:
        """Whether this ends earlier requests of its id instead of asking something."""
        return not self.prompt.strip()


def parse_request(text: str, max_bytes: int) -> Request:
    """Read a prompt message: JSON where it begins with a brace, otherwise the question itself.

    Raises ``RequestError`` for text that is too long, not UTF-8, or not a request.
    """
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise RequestError(
            "prompt message is too long",
            expected=f"at most {max_bytes} bytes",
            got=len(text),
            mend="Shorten it, or raise the parameter max_prompt_bytes.",
        )
    if _REPLACEMENT in text:
        raise RequestError("prompt message is not UTF-8", expected="UTF-8 without U+FFFD")
    if not text.lstrip().startswith("{"):
        return Request(text.strip())
    mapping = _parse_json(text)
    try:
        return _from_mapping(mapping)
    except RequestError as error:
        error.request_id = str(mapping.get("id") or "")[:MAX_ID_CHARACTERS]
        raise


def _parse_json(text: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"prompt message is no JSON ({error or 'too deep'})") from error
    return parsed  # begins with a brace, so an object


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_WANTED: Mapping[str, tuple[type, ...]] = {
    "prompt": (str,),
    "id": (str, int),
    "region": (list,),
    "max_tokens": (int,),
    "deadline_ms": (int, float),
    "schema": (dict,),
    "choices": (list,),
}


def _from_mapping(mapping: Mapping[str, Any]) -> Request:
    if unknown := sorted(set(mapping) - set(_WANTED)):
        raise RequestError(
            "prompt message has unknown fields", expected=", ".join(_WANTED), got=unknown[:5]
        )
    given = {name: value for name, value in mapping.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, _WANTED[name]) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in _WANTED[name])
            raise RequestError(f"field {name}", expected=wanted, got=type(value).__name__)
    given["id"] = str(given.get("id", ""))
    for name in ("region", "choices"):
        if name in given:
            given[name] = tuple(given[name])
    return Request(**{"prompt": "", **given})


def _check_text(name: str, text: str, longest: int | None = None) -> None:
    if longest is not None and len(text) > longest:
        raise RequestError(name, expected=f"at most {longest} characters", got=len(text))
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(name, expected="Unicode text without lone surrogates")


def _check_region(region: Sequence[object] | None) -> None:
    if region is None:
        return
    # Compared, not converted: JSON's whole numbers may be larger than any float.
    numbers = [s for s in region if isinstance(s, (int, float)) and 0 <= s <= MAX_REGION_PX]
    if len(region) != 4 or len(numbers) != 4:
        raise RequestError("region", expected="[left, top, right, bottom] in px", got=region)
    left, top, right, bottom = numbers
    if right - left < 1 or bottom - top < 1:
        raise RequestError("region", expected="at least one pixel of the image", got=region)


def _check_choices(choices: Sequence[object]) -> None:
    texts = [choice for choice in choices if isinstance(choice, str) and choice.strip()]
    if len(texts) != len(choices) or len(choices) > MAX_CHOICES:
        raise RequestError(
            "choices", expected=f"1 to {MAX_CHOICES} texts that are not blank", got=choices[:3]
        )
    for text in texts:
        _check_text("choices", text)


@dataclass(frozen=True)
class Answer:
    """What was said about one frame.

    ``finish_reason`` is one of ``FINISH_REASONS``, or "" while the answer is being written.
    ``stamp_ns`` and ``frame_id`` are that frame's, unchanged; 0 and "" where no frame was looked
    at. ``stale_ms`` is how long the frame had been on this computer when the answer was told,
    ``stale`` whether that is more than was allowed. ``ttft_ms`` runs from the prompt's arrival to
    the first token, waiting and vision included; None without a token. ``grounded`` are indices
    into the detections stamped ``grounded_stamp_ns`` that the text speaks of: those of the very
    same frame, or else the nearest in time; both None where there are none near.
    ``image_side_px`` and ``features_cached`` tell how the picture was seen. ``error`` says what was
    wrong where ``finish_reason`` is "error".
    """

    id: str
    prompt: str
    text: str
    finish_reason: str
    stamp_ns: int = 0
    frame_id: str = ""
    stale_ms: float | None = None
    stale: bool = False
    ttft_ms: float | None = None
    total_ms: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    grounded: tuple[int, ...] | None = None
    grounded_stamp_ns: int | None = None
    image_side_px: int | None = None
    features_cached: bool = False
    model: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        if self.finish_reason not in ("", *FINISH_REASONS):
            raise ValueError(f"finish_reason {self.finish_reason!r}")

    def to_json(self) -> str:
        """Return the message's text."""
        told = asdict(self)
        for name in ("stamp", "grounded_stamp"):
            told[name] = _to_stamp(told.pop(f"{name}_ns"))
        return json.dumps(told)

    @classmethod
    def from_json(cls, text: str) -> Answer:
        """Read a message's text; ``RequestError`` where it is none of ours."""
        try:
            told = json.loads(text)
            told["stamp_ns"] = _from_stamp(told["stamp"])
            if told.get("grounded_stamp") is not None:
                told["grounded_stamp_ns"] = _from_stamp(told["grounded_stamp"])
            if told.get("grounded") is not None:
                told["grounded"] = tuple(told["grounded"])
            known = {entry.name for entry in fields(cls)}
            return cls(**{name: value for name, value in told.items() if name in known})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"not an answer of the VLM node ({error!r})") from error


def _to_stamp(stamp_ns: int | None) -> dict[str, int] | None:
    """A time as ROS messages have it."""
    if stamp_ns is None:
        return None
    return {"sec": stamp_ns // 1_000_000_000, "nanosec": stamp_ns % 1_000_000_000}


def _from_stamp(stamp: Mapping[str, Any]) -> int:
    return int(stamp["sec"]) * 1_000_000_000 + int(stamp["nanosec"])

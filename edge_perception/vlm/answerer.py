"""From a request and a picture to an answer, within its deadline and the device's memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_perception.core.answers import YES_NO, Answer, Request
from edge_perception.core.image import UInt8Array
from edge_perception.core.sampling import GREEDY, Sampling
from edge_perception.errors import (
    DecodingError,
    DeviceMemoryError,
    ImageError,
    RequestError,
)
from edge_perception.vlm.answering import (
    Completion,
    Constraint,
    ImageFeatures,
    Limits,
    Question,
    StopReason,
    VisionLanguageModel,
    complete,
    never_stop,
)
from edge_perception.vlm.constraints import constrain_to_choices, constrain_to_schema
from edge_perception.vlm.inbox import Asked
from edge_perception.vlm.pace import Pace, Plan
from edge_perception.vlm.turns import Yield, go_on
from edge_perception.vlm.vision_cache import Picture, VisionCache

TELLING_MS = 3.0
"""Kept back of a deadline for what follows the last token: text, JSON, publishing."""


@dataclass(frozen=True)
class AnswerSettings:
    """What holds for every answer; see the node's parameters of the same names."""

    system_prompt: str = ""
    sampling: Sampling = GREEDY
    max_tokens: int = 64
    max_image_side: int = 0
    max_stale_ms: float = 0.0


@dataclass
class _Look:
    """How one request's picture is looked at."""

    features: ImageFeatures
    side_px: int
    cached: bool


@dataclass
class Answerer:
    """Answers requests by one model, on one thread.

    ``memory_failures`` counts how often memory was short. The resolution is then lowered, and stays
    so, since what filled the memory is most likely still there.
    """

    model: VisionLanguageModel
    cache: VisionCache
    settings: AnswerSettings = AnswerSettings()
    between: Yield = go_on
    memory_failures: int = 0
    pace: Pace = field(init=False)
    _sides_px: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._sides_px = tuple(sorted(self.model.image_sides_px))
        self.pace = Pace(self._sides_px)

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Resolutions in use: those that memory and ``max_image_side`` allow, the least always."""
        most = self.settings.max_image_side
        allowed = tuple(side for side in self._sides_px if not most or side <= most)
        return allowed or self._sides_px[:1]

    def warm_up(self) -> None:
        """Measure each resolution on a grey picture, so that the first deadline can be kept.

        Raises ``DeviceMemoryError`` where not even the smallest fits.
        """
        with suppress(RequestError):  # without llguidance, or with a vocabulary it cannot read
            constrain_to_choices(self.model.vocabulary, YES_NO)
        grey = np.full((480, 640, 3), 127, np.uint8)
        picture = Picture(grey, 0, "", time.monotonic_ns())
        for _ in range(2):  # the first run of all pays for what is made lazily
            self.pace = Pace(self._sides_px)
            for side_px in self._sides_px[::-1]:
                self.answer(
                    Asked(Request("Describe the picture."), is_caption=True),
                    picture,
                    plan=Plan(side_px, 4),
                )
                self.cache.clear()

    def answer(
        self,
        asked: Asked,
        picture: Picture,
        *,
        should_stop: StopReason = never_stop,
        on_text: Callable[[str], Any] | None = None,
        plan: Plan | None = None,
    ) -> Answer:
        """Answer a request about a picture; whatever is wrong with the request is told in it.

        ``on_text`` is handed all that has been written so far, whenever that has grown or, where
        memory was short, was begun again.

        Raises ``DeviceMemoryError`` where memory is short even at the smallest resolution.
        """
        try:
            pixels = picture.crop(asked.request.region)
            constraint = self._constraint(asked.request)
            while True:
                now = plan or self._plan(asked, pixels)
                try:
                    return self._attempt(
                        asked, picture, pixels, now, constraint, should_stop, on_text
                    )
                except DeviceMemoryError:
                    self._lower_resolution(now.side_px)
                    constraint, plan = self._constraint(asked.request), None
        except (RequestError, DecodingError, ImageError) as error:
            return self.tell(asked, picture, "error", error=str(error))

    def tell(self, asked: Asked, picture: Picture | None, reason: str, **known: Any) -> Answer:
        """Make an answer that ends for ``reason``, with what is ``known`` beside it."""
        now_ns = time.monotonic_ns()
        answer = Answer(
            id=asked.request.id,
            prompt=asked.request.prompt,
            finish_reason=reason,
            total_ms=_ms(now_ns - asked.arrived_ns),
            model=self.model.name,
            **{"text": "", **known},
        )
        if picture is None:
            return answer
        stale_ms = _ms(now_ns - picture.receive_ns)
        most = self.settings.max_stale_ms
        return replace(
            answer,
            stamp_ns=picture.stamp_ns,
            frame_id=picture.frame_id,
            stale_ms=stale_ms,
            stale=bool(most) and stale_ms > most,
        )

    def _attempt(
        self,
        asked: Asked,
        picture: Picture,
        pixels: UInt8Array,
        plan: Plan,
        constraint: Constraint | None,
        should_stop: StopReason,
        on_text: Callable[[str], Any] | None,
    ) -> Answer:
        if plan.max_tokens < 1:
            return self.tell(asked, picture, "deadline")
        look = self._look(pixels, plan.side_px, asked.request.region)
        first_ms = self.pace.first_token_ms(look.side_px, encoded=True)
        if reason := should_stop() or self._late(asked, first_ms):  # encoding may have taken long
            return self.tell(asked, picture, reason, image_side_px=look.side_px)
        question = Question(asked.request.prompt, self.settings.system_prompt)
        source = self.model.begin(look.features, question, self.settings.sampling)
        begun_ns = time.monotonic_ns()
        completion = complete(
            self.model,
            source,
            Limits(plan.max_tokens),
            constraint=constraint,
            on_text=None if on_text is None else _gathered(on_text),
            should_stop=lambda: should_stop() or self._late(asked, self.pace.token_ms),
            between=self.between,
        )
        if completion.tokens:
            self.pace.add_answer(look.side_px, completion.first_ms, completion.token_ms)
        cut = plan.max_tokens < self._wanted_tokens(asked.request)
        return self._told(asked, picture, look, completion, begun_ns, cut_for_deadline=cut)

    def _look(self, pixels: UInt8Array, side_px: int, region: Any) -> _Look:
        features = self.cache.find(pixels, side_px, region)
        if features is not None:
            return _Look(features, side_px, cached=True)
        start_ns = time.monotonic_ns()
        features = self.model.encode_image(pixels, side_px, self.between)
        self.pace.add_encoding(side_px, _ms(time.monotonic_ns() - start_ns))
        self.cache.keep(pixels, side_px, region, features)
        return _Look(features, side_px, cached=False)

    def _told(
        self,
        asked: Asked,
        picture: Picture,
        look: _Look,
        completion: Completion,
        begun_ns: int,
        *,
        cut_for_deadline: bool,
    ) -> Answer:
        reason = completion.reason
        if reason == "length" and cut_for_deadline:
            reason = "deadline"
        count, rest_ms = len(completion.tokens), completion.rest_ms
        waited_ms = _ms(begun_ns - asked.arrived_ns)
        return self.tell(
            asked,
            picture,
            reason,
            text=completion.text.strip(),
            tokens=count,
            ttft_ms=round(waited_ms + completion.first_ms, 3) if count else None,
            tokens_per_s=round((count - 1) * 1e3 / rest_ms, 2) if count > 1 and rest_ms else None,
            image_side_px=look.side_px,
            features_cached=look.cached,
        )

    def _plan(self, asked: Asked, pixels: UInt8Array) -> Plan:
        left_ms = asked.left_ms(time.monotonic_ns())
        most_tokens = self._wanted_tokens(asked.request)
        if left_ms is None:
            return Plan(self.sides_px[-1], most_tokens)
        encoded_px = self.cache.encoded_side(pixels, self.sides_px, asked.request.region)
        return self.pace.plan(
            left_ms - TELLING_MS, most_tokens, sides_px=self.sides_px, encoded_px=encoded_px
        )

    def _wanted_tokens(self, request: Request) -> int:
        return min(request.max_tokens or self.settings.max_tokens, self.settings.max_tokens)

    def _constraint(self, request: Request) -> Constraint | None:
        if request.choices:
            return constrain_to_choices(self.model.vocabulary, request.choices)
        if request.schema is not None:
            return constrain_to_schema(self.model.vocabulary, request.schema)
        return None

    def _late(self, asked: Asked, needed_ms: float) -> str:
        """Tell whether what takes so long would come too late."""
        left_ms = asked.left_ms(time.monotonic_ns())
        return "deadline" if left_ms is not None and left_ms < needed_ms + TELLING_MS else ""

    def _lower_resolution(self, side_px: int) -> None:
        """Do without ``side_px`` from now on; raises ``DeviceMemoryError`` if it was the last."""
        self.memory_failures += 1
        self.cache.clear()
        smaller = tuple(side for side in self._sides_px if side < side_px)
        if not smaller:
            raise DeviceMemoryError(
                f"memory is short even for pictures of {side_px} px",
                mend="Free memory of the device, or choose a smaller model.",
            )
        self._sides_px = smaller


def _gathered(on_text: Callable[[str], Any]) -> Callable[[str], None]:
    """What takes an answer's pieces and hands all of them on."""
    pieces: list[str] = []

    def on_piece(piece: str) -> None:
        pieces.append(piece)
        on_text("".join(pieces))

    return on_piece


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)

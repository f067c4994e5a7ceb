"""The latency ledger: what each stage of a frame's way took, and percentiles that do not lie.

A percentile is told only where enough samples carry it: p90 needs 10 of them, p99 needs 100, and
p99.9 needs 10,000 (with fewer than ten samples beyond it, it would be one accident's figure).
Fewer give None, never a guess.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

# Smallest number of samples that carries each percentile.
SAMPLES_NEEDED: Mapping[str, int] = {"p50": 1, "p90": 10, "p99": 100, "p99_9": 10_000}
_QUANTILES: Mapping[str, float] = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}

# The stages of one image's way, in order. "receive" runs from the sensor's stamp to the camera
# node's callback, "wait" from the decoded frame to the detector's turn (the write into the ring
# included), "deliver" from the end of publishing to the planner's callback. Together they make
# "end_to_end"; "track" is there only while tracking is on.
STAGES = (
    "receive",
    "decode",
    "wait",
    "preprocess",
    "infer",
    "postprocess",
    "track",
    "publish",
    "deliver",
)


@dataclass(frozen=True)
class LatencySummary:
    """Percentiles of ``n`` durations in milliseconds; None where ``n`` is too small to tell."""

    n: int
    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None

    @classmethod
    def of_ns(cls, durations_ns: Sequence[int] | Iterable[int]) -> LatencySummary:
        """Summarise durations in nanoseconds."""
        samples_ms = np.fromiter(durations_ns, np.float64) / 1e6
        told: dict[str, float | None] = {
            name: float(np.percentile(samples_ms, _QUANTILES[name]))
            if samples_ms.size >= needed
            else None
            for name, needed in SAMPLES_NEEDED.items()
        }
        largest = float(samples_ms.max()) if samples_ms.size else None
        return cls(n=int(samples_ms.size), max=largest, **told)


@dataclass(frozen=True)
class StageSpan:
    """One stage of one frame, in ``time.monotonic_ns``."""

    stage: str
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from start to end."""
        return self.end_ns - self.start_ns


class SpanRecorder:
    """Collects the spans of one frame in the order in which they end."""

    def __init__(self) -> None:
        self.spans: list[StageSpan] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as stage ``name``; the span is kept also when the body raises."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.spans.append(StageSpan(name, start_ns, time.monotonic_ns()))

    def add(self, name: str, start_ns: int, end_ns: int) -> None:
        """Add a span that was measured elsewhere."""
        self.spans.append(StageSpan(name, start_ns, end_ns))


@dataclass
class LatencyWindow:
    """The newest ``capacity`` durations of each stage, for percentiles over a running system.

    Bounded, so that a robot may run for weeks: the full history is the ledger file's.
    """

    capacity: int = 10_000
    _samples: dict[str, deque[int]] = field(default_factory=dict)

    def add(self, stage: str, duration_ns: int) -> None:
        """Remember one duration; the oldest goes when the window is full."""
        self._samples.setdefault(stage, deque(maxlen=self.capacity)).append(duration_ns)

    def summaries(self) -> dict[str, LatencySummary]:
        """Summarise every stage seen so far."""
        return {stage: LatencySummary.of_ns(samples) for stage, samples in self._samples.items()}

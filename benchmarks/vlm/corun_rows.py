"""The rows of ``corun``: what each changes, and what is told of the language model's speed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

PROMPT_TOKENS = 640
"""A picture of 576 tokens, as LLaVA's, and a question."""

ANSWER_TOKENS = 64
FRAMES, MANY_FRAMES = 1020, 10_100  # some are skipped
CAMERA_HZ, FAST_HZ = 30.0, 120.0
YIELD_MS, LEAD_MS = 10.0, 1.5


@dataclass(frozen=True)
class LanguageSetting:
    """How the model runs; what ``docs/benchmarks/vlm_corun_h100.json`` tells of each row."""

    model: str
    segments: int = 4
    prefill_chunk: int = 512
    low_priority: bool = True


@dataclass
class Speed:
    """Times of the answers of one run."""

    ttft_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    decode_s: float = 0.0
    answers: int = 0
    elapsed_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """For the file: TTFT's median and p99, tokens a second while decoding, and overall."""
        ordered = sorted(self.ttft_ms) or [float("nan")]
        return {
            "answers": self.answers,
            "ttft_p50_ms": round(ordered[len(ordered) // 2], 3),
            "ttft_p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
            "tokens_per_s": round(self.tokens / self.decode_s, 1) if self.decode_s else None,
            "answers_per_s": round(self.answers / self.elapsed_s, 3) if self.elapsed_s else None,
        }


CHOSEN = LanguageSetting("nvila-8b")
SMALL = replace(CHOSEN, model="nvila-2b")
TORCH, TORCH_PROCESS, TENSORRT = (
    "torch FP16",
    "torch FP16, own process",
    "TensorRT INT8, own process",
)


@dataclass(frozen=True)
class Setting:
    """One row: the detector's arrivals, and what runs beside it (``vlm.turns`` has the waits)."""

    name: str
    language: LanguageSetting | None = None
    rate_hz: float = FAST_HZ
    frames: int = FRAMES
    yield_ms: float = YIELD_MS
    lead_ms: float = LEAD_MS
    detector: str = TORCH

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return self.frames / self.rate_hz + 1.0


def all_settings() -> list[Setting]:
    """Every row, the most important first."""
    camera = Setting("alone", rate_hz=CAMERA_HZ)
    faster = Setting("chosen, 120 Hz", CHOSEN)
    rough = replace(faster, name="no yielding", yield_ms=0.0, lead_ms=0.0)
    many = Setting("alone, 10,000 frames", frames=MANY_FRAMES)

    def changed(name: str, **how: Any) -> Setting:
        return replace(faster, name=name, language=replace(CHOSEN, **how))

    return [
        camera,
        replace(camera, name="chosen", language=CHOSEN),
        replace(camera, name="2B", language=SMALL),
        Setting("alone, 120 Hz"),
        faster,
        rough,
        replace(faster, name="no lead", lead_ms=0.0),
        replace(rough, name="no yielding, two processes", detector=TORCH_PROCESS),
        replace(
            rough,
            name="no yielding, equal priorities",
            language=replace(CHOSEN, low_priority=False),
        ),
        changed("prefill chunk 128", prefill_chunk=128),
        changed("segments 1", segments=1),
        changed("segments 8", segments=8),
        many,
        replace(many, name="chosen, 10,000 frames", language=CHOSEN),
        Setting("TensorRT alone", detector=TENSORRT),
        replace(rough, name="TensorRT, two processes", detector=TENSORRT),
    ]

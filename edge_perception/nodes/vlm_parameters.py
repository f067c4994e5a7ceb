"""The parameters of the VLM node, and what they mean to those who do its work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_perception.core.sampling import Sampling
from edge_perception.embedded import demo_vlm_manifest
from edge_perception.nodes.params import Declaration
from edge_perception.vlm.answerer import AnswerSettings
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.worker import CAPTION_MODES, STALE_POLICIES, WorkerSettings

_MODEL = (
    Declaration(
        "model",
        "",
        "Path of the model's manifest, or of a transformers checkpoint's directory; empty means the"
        " embedded demo model.",
        fixed=True,
    ),
    Declaration(
        "frames_topic",
        "camera/frames",
        "Topic of frame handles to read; not used inside the container.",
        fixed=True,
    ),
    Declaration(
        "camera",
        "",
        "Name of the camera node to read in a container; empty is the first.",
        fixed=True,
    ),
    Declaration(
        "torch_device",
        "cpu",
        "Where a transformers checkpoint runs: cpu, or cuda:0 and so on.",
        fixed=True,
    ),
    Declaration(
        "threads",
        0,
        "Threads of a model on the CPU; 0 means one a physical core.",
        bounds=(0, 256),
        fixed=True,
    ),
    Declaration(
        "vision_int8",
        False,
        "Whether the vision tower multiplies in 8 bits; docs/vlm.md says where that gains.",
        fixed=True,
    ),
    Declaration(
        "context",
        2048,
        "Tokens that picture, prompt and answer may take together.",
        bounds=(64, 1 << 20),
        fixed=True,
    ),
    Declaration(
        "segments",
        4,
        "Parts of a decode step on a GPU, between which the detector may go first.",
        bounds=(1, 256),
        fixed=True,
    ),
)

_CAPTIONS = (
    Declaration(
        "captions",
        "change",
        "When to caption: never, at caption_rate_hz, or when the detections change, at that rate"
        " at most. Only while somebody listens.",
        choices=CAPTION_MODES,
    ),
    Declaration("caption_prompt", "Describe the picture.", "What is asked for a caption."),
    Declaration("caption_rate_hz", 1.0, "Captions a second, at most.", bounds=(0.001, 100.0)),
    Declaration(
        "gate_far",
        0.5,
        "How far an object must have moved to count as a change, in diagonals of its box.",
        bounds=(0.01, 100.0),
    ),
    Declaration(
        "gate_patience",
        3,
        "In how many messages in a row a change must be seen to count.",
        bounds=(1, 1000),
    ),
)

_ANSWERS = (
    Declaration("system_prompt", "", "System prompt; empty means the model's own."),
    Declaration("temperature", 0.0, "Of sampling; 0 is greedy.", bounds=(0.0, 100.0)),
    Declaration("top_k", 0, "Likeliest words sampled from; 0 is all.", bounds=(0, 1 << 20)),
    Declaration(
        "top_p",
        1.0,
        "Probability of the words sampled from, the likeliest first.",
        bounds=(0.001, 1.0),
    ),
    Declaration("seed", 0, "Of sampling.", bounds=(0, (1 << 62))),
    Declaration("max_tokens", 64, "Most tokens of any answer.", bounds=(1, 1 << 16)),
    Declaration(
        "deadline_ms",
        0.0,
        "Deadline of prompts that name none, from their arrival; 0 is none.",
        bounds=(0.0, 3.6e6),
    ),
    Declaration(
        "max_image_side",
        0,
        "Largest resolution in px at which pictures are looked at; 0 is the model's.",
        bounds=(0, 1 << 14),
    ),
    Declaration(
        "cache_threshold",
        8.0,
        "Change in grey levels from which a picture is encoded anew; 0 encodes every one.",
        bounds=(0.0, 255.0),
    ),
    Declaration(
        "max_stale_ms",
        2000.0,
        "Age of a frame from which an answer about it is stale; 0 is never.",
        bounds=(0.0, 3.6e6),
    ),
    Declaration(
        "stale_answers",
        "mark",
        "Whether stale answers are told with stale set, or without their text.",
        choices=STALE_POLICIES,
    ),
    Declaration(
        "max_frame_age_ms",
        500.0,
        "Age up to which the newest frame is good enough to be asked about.",
        bounds=(1.0, 3.6e6),
    ),
    Declaration(
        "frame_timeout_ms",
        1000.0,
        "How long a younger frame is waited for before the prompt is answered with an error.",
        bounds=(1.0, 3.6e6),
    ),
    Declaration("max_prompt_bytes", 16384, "Longest prompt message taken.", bounds=(64, 1 << 24)),
    Declaration(
        "queue_size", 8, "Prompts that may wait; more are refused.", bounds=(1, 1024), fixed=True
    ),
)

_TURNS = (
    Declaration(
        "yield_ms",
        0.0,
        "Longest wait between two parts of the model's work while the detector works; 0 is none.",
        bounds=(0.0, 1000.0),
    ),
    Declaration(
        "yield_lead_ms",
        0.0,
        "How long before the next frame is due nothing new is begun.",
        bounds=(0.0, 1000.0),
    ),
)

PARAMETERS = (*_MODEL, *_CAPTIONS, *_ANSWERS, *_TURNS)


def model_choice(values: Mapping[str, Any]) -> ModelChoice:
    """Which model to open, and how."""
    path = values["model"]
    return ModelChoice(
        path=Path(path).expanduser() if path else demo_vlm_manifest(),
        device=values["torch_device"],
        threads=values["threads"],
        context=values["context"],
        segments=values["segments"],
        vision_int8=values["vision_int8"],
    )


def answer_settings(values: Mapping[str, Any]) -> AnswerSettings:
    """What holds for every answer."""
    return AnswerSettings(
        system_prompt=values["system_prompt"],
        sampling=Sampling(values["temperature"], values["top_k"], values["top_p"], values["seed"]),
        max_tokens=values["max_tokens"],
        max_image_side=values["max_image_side"],
        max_stale_ms=values["max_stale_ms"],
    )


def worker_settings(values: Mapping[str, Any]) -> WorkerSettings:
    """When to caption, and which frames will do."""
    return WorkerSettings(
        captions=values["captions"],
        caption_prompt=values["caption_prompt"],
        caption_rate_hz=values["caption_rate_hz"],
        stale_answers=values["stale_answers"],
        max_frame_age_ms=values["max_frame_age_ms"],
        frame_timeout_ms=values["frame_timeout_ms"],
    )

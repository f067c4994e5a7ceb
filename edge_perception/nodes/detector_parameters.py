"""The parameters of the detector node, and what they mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_perception.backends.engine_store import BUILD_POLICIES
from edge_perception.detection.detector import DetectionSettings
from edge_perception.detection.runtimes import BACKENDS, ENGINE_PRECISIONS, RuntimeChoice
from edge_perception.embedded import demo_manifest
from edge_perception.errors import ConfigError
from edge_perception.nodes.params import Declaration

PARAMETERS = (
    Declaration(
        "manifest",
        "",
        "Path of the model's manifest; empty means the embedded demo model.",
        fixed=True,
    ),
    Declaration(
        "frames",
        ["camera/frames"],
        "Topics of frame handles to read, one a camera; not used inside the container.",
        fixed=True,
    ),
    Declaration(
        "threads",
        0,
        "Threads of the CPU runtime; 0 means one a physical core.",
        bounds=(0, 256),
        fixed=True,
    ),
    Declaration(
        "backend",
        "onnxruntime",
        "Runtime of the model: onnxruntime on the CPU, or an engine on the GPU.",
        choices=BACKENDS,
        fixed=True,
    ),
    Declaration(
        "build",
        "if_missing",
        "Whether an engine that is missing, damaged or does not fit is built (which takes seconds"
        " to many minutes) or refused.",
        choices=BUILD_POLICIES,
        fixed=True,
    ),
    Declaration(
        "precision",
        "auto",
        "Of the engine; auto is int8 for a quantised model and float16 for a float one.",
        choices=ENGINE_PRECISIONS,
        fixed=True,
    ),
    Declaration("device", 0, "Ordinal of the GPU.", bounds=(0, 63), fixed=True),
    Declaration(
        "engine_store", "", "Folder of engines; empty means the user's own cache.", fixed=True
    ),
    Declaration("track", False, "Follow objects from frame to frame and fill in their ids."),
    Declaration("score_threshold", 0.3, "Smallest score told.", bounds=(0.0, 1.0)),
    Declaration(
        "nms_iou", 0.65, "Overlap above which the lower score is suppressed.", bounds=(0.0, 1.0)
    ),
    Declaration("max_detections", 300, "Most detections told an image.", bounds=(1, 5000)),
    Declaration("classes", ["*"], "Names of the classes told; shell patterns, such as '*bottle*'."),
)


def manifest_path(parameter: str) -> Path:
    """Return which model's manifest is meant; the embedded one's where none is named."""
    return Path(parameter).expanduser() if parameter else demo_manifest()


def runtime_choice(values: Mapping[str, Any]) -> RuntimeChoice:
    """How to run it."""
    folder = values["engine_store"]
    return RuntimeChoice(
        backend=values["backend"],
        threads=values["threads"],
        device=values["device"],
        build=values["build"],
        precision=values["precision"],
        store=Path(folder).expanduser() if folder else None,
    )


def detection_settings(values: Mapping[str, Any], class_names: Sequence[str]) -> DetectionSettings:
    """What may change between two images; ``ConfigError`` for a class that the model lacks."""
    return DetectionSettings(
        score_threshold=values["score_threshold"],
        nms_iou=values["nms_iou"],
        max_detections=values["max_detections"],
        class_ids=_matching_classes(values["classes"], class_names),
    )


def _matching_classes(patterns: Sequence[str], class_names: Sequence[str]) -> frozenset[int] | None:
    """Return the ids whose names match a pattern; None where all do."""
    for pattern in patterns:
        if not fnmatch.filter(class_names, pattern):
            raise ConfigError(
                "parameter classes names a class that the model does not know",
                expected=f"patterns of {', '.join(class_names)}",
                got=pattern,
            )
    ids = frozenset(
        i
        for i, name in enumerate(class_names)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )
    return None if len(ids) == len(class_names) else ids

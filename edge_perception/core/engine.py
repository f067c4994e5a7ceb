"""What an engine is: a plan built from a model for one runtime on one GPU, and all it depends on.

A plan runs only where it was built for, and nothing in its bytes can be trusted to say so in a way
that a person can act on. ``EngineSpec`` names everything that a plan depends on; its ``key`` is
what the engine store files a plan under, and ``differences`` says in words why another plan does
not fit. ``EngineRecord`` is the engine's own manifest, which lies beside its plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any

from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError, ManifestError

RECORD_SCHEMA = 1
RUNTIMES = ("tensorrt", "tensorrt_rtx")
PRECISIONS = ("float32", "float16", "int8")

# How a person calls the fields of a spec.
_IN_WORDS = {
    "model": "model name",
    "onnx_sha256": "ONNX sha256",
    "precision": "precision",
    "calibration_sha256": "calibration set",
    "inputs": "input shapes",
    "outputs": "output shapes",
    "runtime": "runtime",
    "runtime_version": "runtime version",
    "compute_capability": "GPU compute capability",
    "gpu_name": "GPU",
    "flags": "build flags",
}


@dataclass(frozen=True)
class Gpu:
    """The GPU that an engine is for: ``compute_capability`` such as "8.6", and its name.

    An empty name stands for any GPU of that capability.
    """

    compute_capability: str
    name: str = ""

    def __post_init__(self) -> None:
        major, _, minor = self.compute_capability.partition(".")
        if not (major.isdigit() and minor.isdigit()):
            raise EngineError(
                "GPU compute capability", expected="such as 8.6", got=self.compute_capability
            )


@dataclass(frozen=True)
class EngineSpec:
    """All that a plan depends on: equal specs need the same plan.

    ``precision`` is the lowest that layers may run in: "int8" takes INT8 where the graph has Q/DQ
    nodes and FP16 elsewhere. ``calibration_sha256`` is the hash of the calibration set, empty for
    float models. ``gpu_name`` is empty where plans run on every GPU of the capability. ``flags``
    are the build options that change the plan, as ``name=value``.
    """

    model: str
    onnx_sha256: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str
    runtime_version: str
    compute_capability: str
    gpu_name: str = ""
    calibration_sha256: str = ""
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (("runtime", RUNTIMES), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise EngineError(
                    f"engine {name}",
                    expected=f"one of {', '.join(choices)}",
                    got=getattr(self, name),
                )

    @property
    def key(self) -> str:
        """SHA-256, as 64 hex digits, of everything in this spec."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, built: EngineSpec) -> tuple[str, ...]:
        """Say where an engine that was ``built`` for another spec does not fit this one."""
        told = []
        for known in fields(self):
            wanted, found = getattr(self, known.name), getattr(built, known.name)
            if wanted != found:
                told.append(
                    f"{_IN_WORDS[known.name]}: built for {_show(found)}, here {_show(wanted)}"
                )
        return tuple(told)


@dataclass(frozen=True)
class EngineRecord:
    """The manifest of an engine.

    ``plan`` is the plan's file name beside the record, with the hash and size of its bytes.
    ``model_manifest`` holds what the model's own manifest said when the plan was built: source,
    licence, head family, class names, preprocessing. ``measured`` is empty until somebody measures
    (``latency_p50_ms`` and the like).
    """

    spec: EngineSpec
    plan: str
    plan_sha256: str
    plan_bytes: int
    built_at: str
    build_s: float
    model_manifest: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.plan or self.plan != PurePath(self.plan).name:
            raise EngineError("the plan of an engine", expected="a bare file name", got=self.plan)

    def to_mapping(self) -> dict[str, Any]:
        """Return what stands in the record's file."""
        values = asdict(self)
        return {"schema": RECORD_SCHEMA, "key": self.spec.key, **values}


def parse_record(mapping: object) -> EngineRecord:
    """Turn the mapping read from a record's file into an ``EngineRecord``.

    Raises:
        EngineError: not a record of this schema, or its key is not the hash of its spec.
    """
    if not isinstance(mapping, dict) or mapping.get("schema") != RECORD_SCHEMA:
        raise EngineError("not the record of an engine", expected=f"schema {RECORD_SCHEMA}")
    values = {name: item for name, item in mapping.items() if name not in ("schema", "key")}
    try:
        spec = dict(values.pop("spec"))
        for side in ("inputs", "outputs"):
            spec[side] = tuple(
                TensorSpec(item["name"], tuple(item["shape"]), item["dtype"]) for item in spec[side]
            )
        record = EngineRecord(EngineSpec(**{**spec, "flags": tuple(spec["flags"])}), **values)
    except (KeyError, TypeError, ValueError, ManifestError, EngineError) as error:
        raise EngineError(f"the record of an engine is damaged: {error}") from error
    if record.spec.key != mapping.get("key"):
        raise EngineError(
            "the record of an engine is damaged",
            expected=f"key {record.spec.key}",
            got=mapping.get("key"),
        )
    return record


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value)) or "none"
    if isinstance(value, TensorSpec):
        return f"{value.name} {value.dtype} {'x'.join(map(str, value.shape))}"
    return str(value) or "none"

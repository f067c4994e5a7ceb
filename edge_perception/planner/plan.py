"""The whole question: does a model fit on a device beside the detector, and how fast is it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from edge_perception.core.manifest import Manifest, parse_manifest
from edge_perception.errors import ConfigError, ManifestError
from edge_perception.planner.devices import GIB, DeviceProfile, Efficiency
from edge_perception.planner.latency import DECODE_FORMULA, PREFILL_FORMULA, Prediction, predict
from edge_perception.planner.memory import (
    WeightScheme,
    activation_bytes,
    count_weights,
    kv_bytes_per_token,
    loading_bytes,
)
from edge_perception.planner.models import PlannedModel

SCHEMA = 1
DETECTOR_WORKSPACE_BYTES = 256 * 2**20
"""Assumed: what an engine takes for activations and tactics beside its weights."""

_ELEMENT_BYTES = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Detector:
    """What the detector takes: ``nbytes`` of weights, inputs, outputs and workspace."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class FrameRing:
    """Frames of ``width`` x ``height`` px, three bytes each, in ``slots`` slots."""

    width: int = 1920
    height: int = 1080
    slots: int = 6

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.slots) < 1:
            raise ConfigError("frame ring", expected="sizes of 1 or more", got=self)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.width * self.height * 3 * self.slots


@dataclass(frozen=True)
class PlanRequest:
    """What is to run where. ``context`` is the cache's capacity, in tokens.

    Raises ``ConfigError`` where prompt and context do not fit together or into the model.
    """

    model: PlannedModel
    device: DeviceProfile
    efficiency: Efficiency
    weights: WeightScheme
    head: WeightScheme
    kv_format: str
    context: int
    prompt_tokens: int
    detector: Detector | None = None
    ring: FrameRing = FrameRing()

    def __post_init__(self) -> None:
        most = self.model.shape.max_positions
        if not 1 <= self.context <= most:
            raise ConfigError("context", expected=f"1 to {most} tokens", got=self.context)
        if not 1 <= self.prompt_tokens <= self.context:
            raise ConfigError(
                "prompt",
                expected=f"1 to {self.context} tokens, the context",
                got=self.prompt_tokens,
            )


@dataclass(frozen=True)
class Plan:
    """Bytes by part, what there is, and the predictions; everything here is predicted."""

    request: PlanRequest
    parts: Mapping[str, int]
    available_bytes: int
    prediction: Prediction

    @property
    def needed_bytes(self) -> int:
        """Bytes while running. Loading's transient is a part too: the cache comes after it."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all parts fit beside the reserve."""
        return self.needed_bytes <= self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """The plan for machines."""
        request, device = self.request, self.request.device
        return {
            "schema": SCHEMA,
            "predicted": True,
            "model": request.model.name,
            "device": device.name,
            "weights": request.weights.name,
            "head": request.head.name,
            "kv": request.kv_format,
            "context": request.context,
            "prompt_tokens": request.prompt_tokens,
            "fits": self.fits,
            "bytes": dict(self.parts),
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "decode_ms_per_token": round(self.prediction.decode_ms, 3),
            "ttft_ms": round(self.prediction.ttft_ms, 2),
            "decode_bytes": self.prediction.decode_bytes,
            "prefill_operations": self.prediction.prefill_operations,
            "formulas": {"decode": DECODE_FORMULA, "prefill": PREFILL_FORMULA},
            "efficiency": asdict(request.efficiency),
            "device_sources": list(device.sources),
        }


def make_plan(request: PlanRequest) -> Plan:
    """Count and predict."""
    shape, device = request.model.shape, request.device
    weights = count_weights(shape, request.weights, request.head)
    # Stacking a layer's matrices is over before the cache and the chunk's tensors are allocated.
    kv = request.context * kv_bytes_per_token(shape, request.kv_format)
    running = activation_bytes(shape, request.weights, request.context)
    loading = max(0, loading_bytes(shape, request.weights) - kv - running)
    parts = {
        "language layers": weights.layers + weights.norms,
        "embedding and head": weights.embedding + weights.head,
        "vision tower": request.model.vision_bytes,
        "KV cache": kv,
        "activations and workspace": running,
        "loading, beyond these": loading,
        "detector": 0 if request.detector is None else request.detector.nbytes,
        "frame ring": request.ring.nbytes,
    }
    reserve = device.carveout_gib + device.system_reserve_gib
    prediction = predict(
        shape,
        device,
        request.efficiency,
        weights=request.weights,
        head=request.head,
        kv_format=request.kv_format,
        context=request.context,
        prompt_tokens=request.prompt_tokens,
    )
    return Plan(request, parts, int((device.memory_gib - reserve) * GIB), prediction)


def load_detector(manifest_path: Path) -> Detector:
    """The needs of the detector that a manifest names; raises ``ManifestError``."""
    try:
        manifest = parse_manifest(yaml.safe_load(manifest_path.read_text(encoding="utf-8")))
        weights = (manifest_path.parent / manifest.model).stat().st_size
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ManifestError(f"cannot read manifest {str(manifest_path)!r}: {error}") from error
    return Detector(manifest.name, weights + _tensor_bytes(manifest) + DETECTOR_WORKSPACE_BYTES)


def _tensor_bytes(manifest: Manifest) -> int:
    tensors = (*manifest.inputs, *manifest.outputs)
    return sum(prod(tensor.shape) * _ELEMENT_BYTES[tensor.dtype] for tensor in tensors)


def format_plan(plan: Plan) -> str:
    """The plan as a table for people; says that it is predicted and by what."""
    request, device = plan.request, plan.request.device
    mib = 2**20
    lines = [
        f"PREDICTED, not measured: {request.model.name} on {device.title}",
        f"weights {request.weights.name}, head {request.head.name}, KV {request.kv_format},"
        f" context {request.context}, prompt {request.prompt_tokens} tokens",
        "",
        *(f"  {name:28s}{size / mib:>11,.1f} MiB" for name, size in plan.parts.items() if size),
        f"  {'needed':28s}{plan.needed_bytes / mib:>11,.1f} MiB",
        f"  {'available':28s}{plan.available_bytes / mib:>11,.1f} MiB"
        f"  ({device.memory_gib:g} GiB less {device.carveout_gib:g} carve-out"
        f" and {device.system_reserve_gib:g} system, both assumed)",
        f"  {'fits' if plan.fits else 'DOES NOT FIT':28s}"
        f"{abs(plan.available_bytes - plan.needed_bytes) / mib:>11,.1f} MiB"
        f" {'to spare' if plan.fits else 'short'}",
        "",
        f"  predicted decode  {plan.prediction.decode_ms:9.2f} ms/token at a full context"
        f" ({1e3 / plan.prediction.decode_ms:.1f} tokens/s)",
        f"  predicted TTFT    {plan.prediction.ttft_ms:9.1f} ms",
        "",
        f"  {DECODE_FORMULA}",
        f"  {PREFILL_FORMULA}",
        f"  bandwidth {device.bandwidth_gb_s:g} GB/s, FP16 {device.fp16_dense_tflops:g} TFLOPS",
        *_shares(request.efficiency),
    ]
    return "\n".join(lines)


def _shares(efficiency: Efficiency) -> list[str]:
    rows = (("decode", efficiency.decode), ("prefill", efficiency.prefill))
    shares = [f"  {name} share {share.share:g}: {share.source}" for name, share in rows]
    return [*shares, f"  kernel gap {efficiency.kernel_gap_us:g} us"]

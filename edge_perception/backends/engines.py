"""From a model's manifest to a plan that fits the GPU: found in the store, or built.

This needs no GPU for what TensorRT for RTX builds: it takes the GPU as a value, not as a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_perception.backends.build import (
    BuildOptions,
    build_plan,
    is_rtx,
    is_strongly_typed,
)
from edge_perception.backends.engine_store import (
    BuiltPlan,
    EngineStore,
    Progress,
    StoredEngine,
    default_folder,
    tell_nobody,
)
from edge_perception.backends.tensorrt import import_tensorrt
from edge_perception.backends.tensorrt_rtx import import_tensorrt_rtx
from edge_perception.core.engine import EngineSpec, Gpu
from edge_perception.core.manifest import Manifest
from edge_perception.errors import EngineError

IMPORTERS = {"tensorrt": import_tensorrt, "tensorrt_rtx": import_tensorrt_rtx}
AUTO = "auto"
_HALF = "half=1"  # counted up whenever half.py makes another graph


@dataclass(frozen=True)
class EngineRequest:
    """Which engine is wanted of a model.

    ``precision`` "auto" means INT8 for a quantised model and FP16 for a float one. ``policy`` is
    one of ``engine_store.BUILD_POLICIES``. ``store`` None means the user's own.
    """

    runtime: str = "tensorrt"
    precision: str = AUTO
    policy: str = "if_missing"
    store: Path | None = None
    options: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        if self.runtime not in IMPORTERS:
            raise EngineError(
                "engine runtime", expected=f"one of {', '.join(IMPORTERS)}", got=self.runtime
            )

    def open_store(self) -> EngineStore:
        """Return the store that engines are kept in."""
        return EngineStore(self.store or default_folder())

    def options_for(self, manifest: Manifest) -> BuildOptions:
        """Return the build options with the precision decided.

        Raises:
            EngineError: INT8 of a model that has no scales for it.
        """
        quantised = manifest.precision == "int8"
        precision = self.precision
        if precision == AUTO:
            precision = "int8" if quantised else "float16"
        if quantised != (precision == "int8"):
            raise EngineError(
                f"engine precision of {manifest.name!r}",
                expected="int8" if quantised else "float32 or float16, as it has no Q/DQ nodes",
                got=precision,
                mend="Quantise a float model first: edge-perception quantize-int8.",
            )
        return replace(self.options, precision=precision)


def obtain_engine(
    manifest_path: Path,
    manifest: Manifest,
    model: Path,
    request: EngineRequest,
    gpu: Gpu,
    on_progress: Progress = tell_nobody,
) -> StoredEngine:
    """Return the engine of a model for a GPU, built first where the request allows it.

    Args:
        manifest_path: for the command that an error tells.
        manifest: the model's manifest, whose hash of the model has been checked.
        model: the ONNX file.
        request: runtime, precision, policy and store.
        gpu: what to build for.
        on_progress: told what is being done.

    Raises:
        EngineError: refused, with the reason and the command that mends it; or the build failed.
        ManifestError: the model's tensors are not those that the manifest promises.
    """
    trt = IMPORTERS[request.runtime]()
    options = request.options_for(manifest)
    if is_rtx(trt):
        # Named, so that a GPU that it does not support is refused here and not at the first frame.
        options = replace(options, target=gpu.compute_capability)
    spec = engine_spec(manifest, trt, gpu, options)

    def build(timing_caches: Sequence[bytes]) -> BuiltPlan:
        onnx_bytes = _read_model(model)
        if _wants_half(trt, options):
            from edge_perception.backends.half import to_half

            on_progress("converting the graph to FP16")
            onnx_bytes = to_half(onnx_bytes)
        built = build_plan(trt, onnx_bytes, options, timing_caches, on_progress)
        manifest.check_tensors(built.inputs, built.outputs)
        return built

    return request.open_store().obtain(
        spec,
        build,
        policy=request.policy,
        model_manifest=manifest_facts(manifest),
        on_progress=on_progress,
        mend=_build_command(manifest_path, request, gpu),
    )


def engine_spec(manifest: Manifest, trt: Any, gpu: Gpu, options: BuildOptions) -> EngineSpec:
    """Return all that the engine of a model depends on."""
    rtx = is_rtx(trt)
    return EngineSpec(
        model=manifest.name,
        onnx_sha256=manifest.sha256,
        precision=options.precision,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        runtime="tensorrt_rtx" if rtx else "tensorrt",
        runtime_version=trt.__version__,
        compute_capability=gpu.compute_capability,
        # Plans of TensorRT for RTX run on every GPU of their capability.
        gpu_name="" if rtx else gpu.name,
        calibration_sha256=_calibration_hash(manifest),
        flags=(*options.flags(trt), *([_HALF] if _wants_half(trt, options) else [])),
    )


def _wants_half(trt: Any, options: BuildOptions) -> bool:
    return is_strongly_typed(trt) and options.precision != "float32"


def manifest_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what an engine's record repeats of its model's manifest."""
    return {
        "source": manifest.source,
        "license": manifest.license,
        "head": manifest.head,
        "class_names": list(manifest.class_names),
        "preprocessing": asdict(manifest.preprocessing),
    }


def _read_model(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot load {str(model)!r}: {error}") from error


def _calibration_hash(manifest: Manifest) -> str:
    """Return the hash of the frames that a model was quantised with, as the quantiser noted it."""
    facts = manifest.provenance.get("int8")
    return str(facts.get("calibration_set", "")) if isinstance(facts, Mapping) else ""


def _build_command(manifest_path: Path, request: EngineRequest, gpu: Gpu) -> str:
    command = f"edge-perception build {manifest_path} --backend {request.runtime}"
    if request.precision != AUTO:
        command += f" --precision {request.precision}"
    if request.store is not None:
        command += f" --store {request.store}"
    if request.options.target:
        command += f" --compute-capability {gpu.compute_capability}"
    return command

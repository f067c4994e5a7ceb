"""From an ONNX graph to a plan, by TensorRT 8.5 to 11 or TensorRT for RTX.

The modules differ in how a network says its precision, and that is told by their features, never
by comparing version numbers:

* *weakly typed* (8.5 to 10): flags allow FP16 and INT8, and the builder chooses. Q/DQ nodes make
  INT8 explicit, so no calibrator is ever involved.
* *strongly typed* (11, and TensorRT for RTX): there are no such flags; the graph's own types are
  obeyed. What is to run in FP16 has to be FP16 in the graph (see ``half.py``).

Nothing here imports TensorRT: the module to build with comes in as ``trt``, so that one code
serves both and a test can hand in a small fake.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_perception.backends.engine_store import BuiltPlan, Progress, tell_nobody
from edge_perception.backends.timing_cache import without_empty_text
from edge_perception.core.engine import PRECISIONS
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

_LOG = logging.getLogger("edge_perception.tensorrt")
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
}


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    ``precision`` is the lowest that layers may run in, "int8" meaning INT8 where the graph has Q/DQ
    nodes and FP16 elsewhere. ``workspace_mib`` bounds the scratch memory of a layer.
    ``tactic_sources`` names ``trt.TacticSource`` members, empty for TensorRT's own choice.
    ``target`` is a compute capability such as "8.6" to build for on any machine, which TensorRT for
    RTX alone can do; empty for the GPU at hand.
    """

    precision: str = "float16"
    workspace_mib: int = 1024
    tactic_sources: tuple[str, ...] = ()
    target: str = ""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            expected = f"one of {', '.join(PRECISIONS)}"
            raise EngineError("engine precision", expected=expected, got=self.precision)
        if self.workspace_mib < 1:
            raise EngineError("workspace", expected="1 MiB or more", got=self.workspace_mib)

    def flags(self, trt: Any) -> tuple[str, ...]:
        """Return what of these options and of the module's ways changes a plan, for its key."""
        tactics = "+".join(sorted(self.tactic_sources)) or "default"
        typing = "strong" if is_strongly_typed(trt) else "weak"
        return (f"typing={typing}", f"workspace_mib={self.workspace_mib}", f"tactics={tactics}")


def is_strongly_typed(trt: Any) -> bool:
    """Whether a module has no precision flags, so that the graph's own types are obeyed."""
    return not hasattr(trt.BuilderFlag, "FP16")


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT for RTX."""
    return str(trt.__name__).startswith("tensorrt_rtx")


def build_plan(
    trt: Any,
    model: bytes,
    options: BuildOptions,
    timing_caches: Sequence[bytes] = (),
    on_progress: Progress = tell_nobody,
) -> BuiltPlan:
    """Build a plan; takes seconds to many minutes.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        model: a serialised ONNX model with static shapes, for a strongly typed module already in
            the types that it is to run in.
        options: how to build.
        timing_caches: what earlier builds of the same TensorRT on the same kind of GPU learnt; of
            two that timed the same, the one named first is believed.
        on_progress: told the phase and how far it is, by versions that tell (10 and newer).

    Raises:
        EngineError: TensorRT cannot parse or build the model; its own words are in the text.
    """
    logger = make_logger(trt)
    builder = _make_builder(trt, logger)
    network = builder.create_network(_network_flags(trt))
    parse_onnx(trt, network, logger, model)
    inputs, outputs = network_tensors(network)
    config = builder.create_builder_config()
    _configure(trt, config, options)
    cache = _use_timing_caches(trt, config, timing_caches)
    if hasattr(trt, "IProgressMonitor"):
        monitor = make_monitor(trt, on_progress)  # kept by us, as the configuration does not
        config.progress_monitor = monitor
    on_progress("building the engine")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot build the model: {logger.errors()}",
            mend="Its words above name the layer; a larger workspace or another export may help.",
        )
    learnt = bytes(cache.serialize()) if cache is not None else b""
    return BuiltPlan(bytes(plan), learnt, inputs, outputs)


def parse_onnx(trt: Any, network: Any, logger: Any, model: bytes) -> None:
    """Parse a model into a network.

    Raises:
        EngineError: the parser refuses it.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        told = "; ".join(_in_words(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"TensorRT {trt.__version__} cannot load the ONNX model: {told}")
    if not network.num_outputs:
        raise EngineError("TensorRT cannot load the ONNX model: it is empty")


def network_tensors(network: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a parsed network.

    Raises:
        EngineError: one has a dynamic shape, or a dtype that detectors do not use.
    """
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return tuple(map(_tensor_spec, inputs)), tuple(map(_tensor_spec, outputs))


def tensor_spec(name: str, shape: Sequence[int], dtype: Any) -> TensorSpec:
    """Make a ``TensorSpec`` of what TensorRT says of a tensor.

    Raises:
        EngineError: a dynamic shape, or a dtype that detectors do not use.
    """
    sides = tuple(int(side) for side in shape)
    if not all(side > 0 for side in sides):
        raise EngineError(
            f"tensor {name!r} has a dynamic shape",
            expected="fixed sides",
            got=sides,
            mend="Export with static shapes.",
        )
    if dtype.name not in _DTYPES:
        raise EngineError(
            f"tensor {name!r} has a dtype that detectors do not use",
            expected=f"one of {', '.join(_DTYPES.values())}",
            got=dtype.name,
        )
    return TensorSpec(name, sides, _DTYPES[dtype.name])


def make_logger(trt: Any) -> Any:
    """Return a TensorRT logger that writes to ``logging`` and keeps the last errors.

    TensorRT warns of much that nobody can change: its warnings are our debug messages.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.INFO,  # raised as an EngineError by whoever called
        severity.WARNING: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[str] = []

        def log(self, level: Any, message: str) -> None:
            _LOG.log(levels.get(level, logging.DEBUG), message)
            if level != severity.VERBOSE and level != severity.INFO:
                self.kept.append(message.strip())

        def errors(self) -> str:
            return "; ".join(self.kept[-3:]) or "it gives no reason"

    return Logger()


def make_monitor(trt: Any, on_progress: Progress) -> Any:
    """Return a progress monitor that tells the outermost phase that has steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            on_progress(f"{phase.lower()}: {step + 1} of {self.steps.get(phase, step + 1)}")
            return True  # go on

    return Monitor()


def _make_builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what its bindings make of a builder that is null
        raise EngineError(
            f"TensorRT {trt.__version__} cannot start a builder: {logger.errors()}",
            mend="It needs a GPU and its driver; tensorrt_rtx alone builds without.",
        ) from error


def _network_flags(trt: Any) -> int:
    """Return the flags of ``create_network``: 8.x must be told that the batch is explicit."""
    flags = trt.NetworkDefinitionCreationFlag
    if not is_strongly_typed(trt):
        return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    workspace_bytes = options.workspace_mib << 20
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    for flag in _builder_flags(trt, options):
        config.set_flag(flag)
    if options.tactic_sources:
        config.set_tactic_sources(_tactic_mask(trt, options.tactic_sources))
    if options.target:
        _set_target(trt, config, options.target)


def _builder_flags(trt: Any, options: BuildOptions) -> list[Any]:
    flags = trt.BuilderFlag
    if is_strongly_typed(trt):
        # Without it TensorRT for RTX may allocate while it runs, which no CUDA graph can hold.
        user_allocation = getattr(flags, "REQUIRE_USER_ALLOCATION", None)
        return [] if user_allocation is None else [user_allocation]
    wanted: dict[str, list[Any]] = {
        "float32": [],
        "float16": [flags.FP16],
        "int8": [flags.FP16, flags.INT8],
    }
    return wanted[options.precision]


def _tactic_mask(trt: Any, names: Sequence[str]) -> int:
    unknown = [name for name in names if not hasattr(trt.TacticSource, name)]
    if unknown:
        raise EngineError(f"TensorRT {trt.__version__} has no such tactic source", got=unknown)
    mask = 0
    for name in names:
        mask |= 1 << int(getattr(trt.TacticSource, name))
    return mask


def _set_target(trt: Any, config: Any, target: str) -> None:
    known = trt.ComputeCapability if is_rtx(trt) else None
    name = f"SM{target.replace('.', '')}"
    if not hasattr(known, name):
        raise EngineError(
            f"this TensorRT cannot build for compute capability {target} here",
            mend="Build on the GPU itself, or with tensorrt_rtx for a GPU that it supports.",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, name), 0)


def _use_timing_caches(trt: Any, config: Any, contents: Sequence[bytes]) -> Any:
    """Give the builder a timing cache, and return it; None where there is nothing to time.

    TensorRT calls it a mismatch when the same kind of GPU is another one, and would time all anew:
    that is not asked about. The store keeps version and kind apart.

    TensorRT for RTX times nothing at build time: its kernels are compiled where they run.
    """
    if is_rtx(trt):
        return None
    first, *others = map(without_empty_text, contents or (b"",))
    cache = config.create_timing_cache(first)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=True):
        _LOG.info("TensorRT %s refuses the timing cache: all is timed anew", trt.__version__)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=True)
    for content in others:
        other = config.create_timing_cache(content)
        if other is None or not cache.combine(other, ignore_mismatch=True):
            _LOG.info("TensorRT %s cannot add a timing cache to another", trt.__version__)
    return cache


def _in_words(error: Any) -> str:
    """Return a parser's error, with the node it is about where the version tells (10 and newer)."""
    node = f"{error.node_operator()} {error.node_name()!r}: " if _names_its_node(error) else ""
    return node + str(error.desc()).strip()


def _names_its_node(error: Any) -> bool:
    return hasattr(error, "node_operator") and bool(error.node_operator())


def _tensor_spec(tensor: Any) -> TensorSpec:
    return tensor_spec(tensor.name, tuple(tensor.shape), tensor.dtype)

"""TensorRT small enough to read: modules of several versions, and a GPU made of host memory.

A fake plan is the ONNX model itself behind a header, and ONNX Runtime runs it. What differs between
the real modules is what differs here: which flags exist, what a network must be created with, who
tells progress, who keeps a timing cache. Device addresses are host addresses.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from emulated_gpu import EmulatedClock, EmulatedDecoder, EmulatedPreprocessor

from edge_perception.core.manifest import Preprocessing
from edge_perception.gpu.head_layout import HeadLayoutArgument

HEADER = b"fake plan of "
_ELEMENT_TYPES = {1: "FLOAT", 10: "HALF", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64"}
DataType = enum.Enum("DataType", [*_ELEMENT_TYPES.values(), "UNKNOWN"])


class Tensor:
    def __init__(self, info: onnx.ValueInfoProto) -> None:
        kind = info.type.tensor_type
        self.name = info.name
        self.shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        self.dtype = DataType[_ELEMENT_TYPES.get(kind.elem_type, "UNKNOWN")]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input) if self.model else 0

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output) if self.model else 0

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])  # type: ignore[union-attr]

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])  # type: ignore[union-attr]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class Parser:
    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._errors = network, [""]

    def parse(self, model: bytes) -> bool:
        try:
            parsed = onnx.load_from_string(model)
            onnx.checker.check_model(parsed)
        except Exception as error:
            self._errors = [str(error)]
            return False
        self._network.model = parsed
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"."

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def fits(self, ignore_mismatch: bool) -> bool:
        if self.content.startswith(b"of another version"):
            return False
        return ignore_mismatch or not self.content.startswith(b"of another H100")

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        if not other.fits(ignore_mismatch):
            return False
        self.content += other.content
        return True


class Configuration:
    """A builder's; ``flag_names`` and the rest are for tests to look at."""

    last: Configuration

    def __init__(self) -> None:
        Configuration.last = self
        self.flag_names: list[str] = []
        self.pool_limits: dict[str, int] = {}
        self.tactics = -1
        self.target = ""
        self.timing_cache: Cache | None = None
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def set_flag(self, flag: enum.Enum) -> None:
        self.flag_names.append(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, limit: int) -> None:
        self.pool_limits[pool.name] = limit

    def set_tactic_sources(self, mask: int) -> bool:
        self.tactics = mask
        return True

    def set_compute_capability(self, capability: enum.Enum, index: int) -> None:
        self.target = capability.name

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.timing_cache = cache
        return cache.fits(ignore_mismatch)


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfiguration | None = None) -> None:
        self._engine, self._config = engine, config
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 16 == 0

    def execute_async_v3(self, stream: int) -> bool:
        if stream == 0:
            return False
        feed = {t.name: _array_at(self._addresses[t.name], t) for t in self._engine.inputs}
        results = self._engine.session.run(None, feed)
        for tensor, result in zip(self._engine.outputs, results, strict=True):
            _array_at(self._addresses[tensor.name], tensor)[...] = result
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def get_runtime_config(self) -> RuntimeConfiguration | None:
        return self._config


class RuntimeConfiguration:
    cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> Cache:
        return Cache(b"")

    def set_runtime_cache(self, cache: Cache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Cache:
        return self._cache


class Engine:
    def __init__(self, model: bytes) -> None:
        graph = onnx.load_from_string(model).graph
        self.inputs, self.outputs = [*map(Tensor, graph.input)], [*map(Tensor, graph.output)]
        self._by_name = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.session = open_session(model)

    @property
    def num_io_tensors(self) -> int:
        return len(self._by_name)

    def get_tensor_name(self, index: int) -> str:
        return list(self._by_name)[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._by_name[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._by_name[name].dtype

    def get_tensor_mode(self, name: str) -> str:
        return "input" if self._by_name[name] in self.inputs else "output"

    def create_execution_context(self, config: RuntimeConfiguration | None = None) -> Context:
        return Context(self, config)

    def create_runtime_config(self) -> RuntimeConfiguration:
        return RuntimeConfiguration()


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """Open a model, with FP16 quantised as ONNX and TensorRT have it.

    ONNX Runtime's own QuantizeLinear of FP16 cuts where it should round (1.23.2), so that it is
    given float32; and its optimiser would fuse Q/DQ nodes into operators that know no FP16 scales.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    parsed = onnx.load_from_string(model)
    if any(node.op_type == "QuantizeLinear" for node in parsed.graph.node):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        _quantise_in_float32(parsed)
    content = parsed.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _quantise_in_float32(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for number, node in enumerate(nodes):
        if node.op_type == "QuantizeLinear":
            for index in (0, 1):
                cast = f"{node.input[index]}/float32/{number}"
                to = onnx.TensorProto.FLOAT
                model.graph.node.append(
                    onnx.helper.make_node("Cast", [node.input[index]], [cast], to=to)
                )
                node.input[index] = cast
        model.graph.node.append(node)


def fake_tensorrt(version: str, *, rtx: bool = False) -> ModuleType:
    """Return a module with the API of a version, as far as it is used here."""
    major = int(version.split(".")[0])
    weak = major < 11 and not rtx
    trt: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = version
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(
        "Flag",
        [
            *([("EXPLICIT_BATCH", 0)] if weak else []),
            *([("STRONGLY_TYPED", 1)] if major >= 9 or rtx else []),
        ],
    )
    flags = ["TF32", *(["FP16", "INT8"] if weak else []), *(["REQUIRE_USER_ALLOCATION"] * rtx)]
    trt.BuilderFlag = enum.Enum("BuilderFlag", flags)
    trt.TacticSource = enum.IntEnum(
        "TacticSource", [("CUDNN", 2), ("EDGE_MASK_CONVOLUTIONS", 3), ("JIT_CONVOLUTIONS", 4)]
    )
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    trt.TensorIOMode = type("TensorIOMode", (), {"INPUT": "input", "OUTPUT": "output"})
    trt.ILogger = type("ILogger", (), {"Severity": _Severity})
    trt.OnnxParser = Parser
    trt.Builder = _builder_class(trt, explicit_batch=major == 8 and not rtx)
    trt.Runtime = _runtime_class(trt)
    if major >= 10 or rtx:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    if rtx:
        trt.ComputeCapability = enum.Enum("ComputeCapability", ["SM86", "SM89"])
        trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED"])
    return trt


_Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])


def _builder_class(trt: Any, *, explicit_batch: bool) -> type:
    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags or not explicit_batch, "8.x refuses ONNX models without EXPLICIT_BATCH"
            return Network(flags)

        def create_builder_config(self) -> Configuration:
            return Configuration()

        def build_serialized_network(self, network: Network, config: Configuration) -> bytes | None:
            assert network.model is not None
            if any(node.op_type == "ArgMax" for node in network.model.graph.node):
                self._logger.log(_Severity.ERROR, "no kernel for ArgMax")
                return None
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Building engine", None, 2)
                assert config.progress_monitor.step_complete("Building engine", 0)
                config.progress_monitor.phase_finish("Building engine")
            return _header(trt) + network.model.SerializeToString()

    return Builder


def _runtime_class(trt: Any) -> type:
    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if not plan.startswith(_header(trt)):
                self._logger.log(_Severity.ERROR, "the plan is of another version")
                return None
            return Engine(plan.removeprefix(_header(trt)))

    return Runtime


def _header(trt: Any) -> bytes:
    return HEADER + trt.__version__.encode() + b"\n"


def _array_at(address: int, tensor: Tensor) -> np.ndarray:
    dtype = np.dtype(
        {"FLOAT": "float32", "HALF": "float16"}.get(tensor.dtype.name, tensor.dtype.name.lower())
    )
    count = int(np.prod(tensor.shape))
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(tensor.shape)


class FakeGraph:
    def __init__(self, enqueue: Callable[[], None]) -> None:
        self._enqueue, self.launches = enqueue, 0

    def launch(self, stream: int) -> None:
        self.launches += 1
        self._enqueue()


class FakeWorkspace:
    """``gpu.workspace.Workspace`` in host memory; everything queued happens at once."""

    stream = 7

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []
        self.graphs: list[FakeGraph] = []
        self.synchronizations = self.uploads = self.downloads = 0
        self.closed = False

    def make_current(self) -> None:
        assert not self.closed

    def allocate(self, size_bytes: int) -> int:
        memory = np.zeros(size_bytes + 256, np.uint8)
        self._memory.append(memory)
        return -(-memory.ctypes.data // 256) * 256

    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        return np.zeros(size_bytes, np.uint8)

    def upload(self, address: int, source: np.ndarray) -> None:
        self.uploads += 1
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, target: np.ndarray, address: int) -> None:
        self.downloads += 1
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def capture(self, enqueue: Callable[[], None]) -> FakeGraph:
        self.graphs.append(FakeGraph(enqueue))
        return self.graphs[-1]

    def preprocessor(self, spec: Preprocessing) -> EmulatedPreprocessor:
        return EmulatedPreprocessor(spec)

    def decoder(self, layout: HeadLayoutArgument, max_kept: int) -> EmulatedDecoder:
        return EmulatedDecoder(layout, max_kept)

    def stage_clock(self, marks: int) -> EmulatedClock:
        return EmulatedClock(marks)

    def synchronize(self) -> None:
        self.synchronizations += 1

    def close(self) -> None:
        self.closed = True

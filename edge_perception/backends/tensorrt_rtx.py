"""Running a plan by TensorRT for RTX: as by TensorRT, with kernels compiled at first use.

Its plans name kernels; the GPU's own are compiled when the context first runs. What was compiled
can be kept as a *runtime cache*, which the library itself refuses where it does not fit.
"""

from __future__ import annotations

from typing import Any

from edge_perception.backends.tensorrt import Engine, import_runtime


def import_tensorrt_rtx() -> Any:
    """Return the module of TensorRT for RTX, by either name that its wheels give it.

    Raises:
        EngineError: it is not installed.
    """
    return import_runtime("tensorrt_rtx", "tensorrt_rtx_bindings")


class RtxEngine(Engine):
    """A deserialised plan; see ``Engine``. Built with ``REQUIRE_USER_ALLOCATION``."""

    def __init__(self, trt: Any, plan: bytes, runtime_cache: bytes = b"") -> None:
        self._cached = runtime_cache
        super().__init__(trt, plan)

    def can_be_captured(self, stream: int) -> bool:
        return bool(self._open_context().is_stream_capturable(stream))

    def runtime_cache(self) -> bytes:
        """Return the kernels compiled so far; complete once ``enqueue`` has run."""
        return bytes(self._open_context().get_runtime_config().get_runtime_cache().serialize())

    def _make_context(self) -> Any:
        config = self._engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if self._cached:
            cache.deserialize(self._cached)  # refuses another GPU's or driver's by itself
        config.set_runtime_cache(cache)
        # We capture CUDA graphs ourselves, in the same way for both runtimes.
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        return self._engine.create_execution_context(config)

"""An engine behind the ``Backend`` protocol: arrays of the host in and out.

Uploads the inputs, runs the engine (as a CUDA graph where that can be captured), downloads the
outputs, and waits once, at the end. Where frames are on the GPU already, ``device_path`` fills the
engine's input there and calls ``enqueue`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from edge_perception.backends.base import Tensor
from edge_perception.core.image import UInt8Array
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError
from edge_perception.gpu.lost_gpu import giving_back


class DeviceEngine(Protocol):
    """What is asked of an engine; ``backends.tensorrt.Engine`` is one."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Use device memory for tensors."""

    def enqueue(self, stream: int) -> None:
        """Queue one inference."""

    def can_be_captured(self, stream: int) -> bool:
        """Whether a CUDA graph can hold it."""

    def close(self) -> None:
        """Free it."""


class Launchable(Protocol):
    """A captured CUDA graph."""

    def launch(self, stream: int) -> None:
        """Queue what was captured."""


class DeviceWorkspace(Protocol):
    """What is asked of a GPU; ``gpu.workspace.Workspace`` is one."""

    @property
    def stream(self) -> int:
        """Handle of the stream that everything is queued on."""

    def make_current(self) -> None:
        """Bind the context to the calling thread."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of device memory."""

    def allocate_pinned(self, size_bytes: int) -> UInt8Array:
        """Return page-locked host memory."""

    def upload(self, address: int, source: UInt8Array) -> None:
        """Queue a copy to the device."""

    def download(self, target: UInt8Array, address: int) -> None:
        """Queue a copy to the host."""

    def capture(self, enqueue: Callable[[], None]) -> Launchable:
        """Capture a CUDA graph."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def close(self) -> None:
        """Free everything."""


class DeviceBackend:
    """Runs an engine on arrays of the host; see ``Backend``. Owns engine and workspace."""

    on_cpu = False

    def __init__(
        self,
        name: str,
        engine: DeviceEngine,
        workspace: DeviceWorkspace,
        *,
        cuda_graph: bool = True,
    ) -> None:
        """Allocate every tensor, run once on zeros, and capture the CUDA graph.

        Raises:
            EngineError: the engine failed.
            CudaError: the GPU's memory is full, or the graph cannot be captured.
        """
        self.name = name
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.workspace = workspace
        self._engine = engine
        self._closed = False
        specs = (*self.inputs, *self.outputs)
        self._addresses = {spec.name: workspace.allocate(_size_bytes(spec)) for spec in specs}
        self._pinned = {spec.name: workspace.allocate_pinned(_size_bytes(spec)) for spec in specs}
        self._tensors = {
            spec.name: self._pinned[spec.name].view(spec.dtype).reshape(spec.shape)
            for spec in specs
        }
        engine.bind(self._addresses)
        self._graph: Launchable | None = None
        self.infer([np.zeros(spec.shape, spec.dtype) for spec in self.inputs])
        if cuda_graph and engine.can_be_captured(workspace.stream):
            # The first inference above loaded the kernels, which a capture refuses to do.
            self._graph = workspace.capture(lambda: engine.enqueue(workspace.stream))

    @property
    def replays_graph(self) -> bool:
        """Whether inference is the replay of a CUDA graph."""
        return self._graph is not None

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the model once; see ``Backend``. The arrays returned are pinned memory."""
        self.make_ready()
        self._check(tensors)
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            np.copyto(self._tensors[spec.name], tensor)
            self.workspace.upload(self._addresses[spec.name], self._pinned[spec.name])
        self.enqueue()
        return self.download()

    def make_ready(self) -> None:
        """Bind the GPU's context to the calling thread.

        Raises:
            EngineError: the backend was closed.
        """
        if self._closed:
            raise EngineError("the model was closed", mend="Configure the node again.")
        self.workspace.make_current()

    def address(self, name: str) -> int:
        """Return the device address of a tensor, contiguous, as ``inputs`` or ``outputs`` say."""
        return self._addresses[name]

    def enqueue(self) -> None:
        """Queue one inference on what the input tensors hold, on the workspace's stream."""
        if self._graph is not None:
            self._graph.launch(self.workspace.stream)
        else:
            self._engine.enqueue(self.workspace.stream)

    def download(self) -> Sequence[Tensor]:
        """Copy the outputs to the host, wait, and return them; pinned memory, as ``infer``'s."""
        for spec in self.outputs:
            self.workspace.download(self._pinned[spec.name], self._addresses[spec.name])
        self.workspace.synchronize()
        return [self._tensors[spec.name] for spec in self.outputs]

    def close(self) -> None:
        """Free engine and memory; arrays that ``infer`` returned are invalid from here on."""
        if not self._closed:
            self._closed = True
            with giving_back(f"what {self.name} still had to do"):
                self.workspace.make_current()
                self.workspace.synchronize()
            self._engine.close()
            self.workspace.close()

    def _check(self, tensors: Sequence[Tensor]) -> None:
        found = [(tensor.shape, tensor.dtype.name) for tensor in tensors]
        expected = [(spec.shape, spec.dtype) for spec in self.inputs]
        if found != expected:
            raise EngineError("inputs of another shape or dtype", expected=f"{expected}", got=found)


def _size_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize

"""What running a network on a GPU needs: memory, a stream, CUDA graphs, kernels around it.

All of it is allocated while a node is configured and given back together. Only ``synchronize``
waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from cuda.bindings import driver

from edge_perception.core.image import UInt8Array
from edge_perception.core.manifest import Preprocessing
from edge_perception.gpu.cuda import Event, Stream, checked, get_device
from edge_perception.gpu.detections_cuda import CudaDecoder
from edge_perception.gpu.head_layout import HeadLayoutArgument
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.pinned_memory import allocate_pinned, view_host
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor


class CapturedGraph:
    """Work captured once, launched as a whole."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` queues on a stream; other threads may use CUDA meanwhile.

        Raises:
            CudaError: the work cannot be captured.
        """
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(driver.cuStreamBeginCapture(stream, mode), "beginning a capture")
        try:
            enqueue()
        finally:
            # Also after a failure: a stream left in capture is of no use to anybody.
            status, graph = driver.cuStreamEndCapture(stream)
        checked((status,), "capturing a CUDA graph")
        self._graph = graph
        self._executable: Any = checked(driver.cuGraphInstantiate(graph, 0), "making a CUDA graph")

    def launch(self, stream: int) -> None:
        """Queue the captured work on a stream; does not wait."""
        checked(driver.cuGraphLaunch(self._executable, stream), "launching a CUDA graph")

    def close(self) -> None:
        """Free the graph, which must not be running."""
        checked(driver.cuGraphExecDestroy(self._executable), "freeing a CUDA graph")
        checked(driver.cuGraphDestroy(self._graph), "freeing a captured graph")


class StageClock:
    """Times between marks in a stream's work, taken by the GPU; marking does not wait."""

    def __init__(self, stream: int, marks: int) -> None:
        self._stream = stream
        self._events = [Event(timed=True) for _ in range(marks)]

    def mark(self, index: int) -> None:
        """Mark the end of the work queued so far."""
        self._events[index].record(self._stream)

    def elapsed_ms(self) -> Sequence[float]:
        """Return the times from each mark to the next; the stream must have come to the last."""
        return [after.elapsed_ms(before) for before, after in pairwise(self._events)]

    def close(self) -> None:
        """Destroy the events."""
        for event in self._events:
            event.close()


class Workspace:
    """Memory, a high-priority stream, graphs and kernels on one GPU, for one network.

    Addresses are integers. ``close`` frees everything that was allocated through it.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Take a GPU.

        Raises:
            CudaError: no driver, or no such GPU.
        """
        self.device = get_device(ordinal)
        self.make_current()
        self._stream = Stream(self.device, high_priority=True)
        self._addresses: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[CapturedGraph] = []
        self._kernels: list[CudaDecoder | StageClock] = []

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.handle

    def make_current(self) -> None:
        """Bind the GPU's context to the calling thread; cheap when it is bound already."""
        self.device.make_current()

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        doing = f"allocating {size_bytes} bytes"
        address = int(checked(driver.cuMemAlloc(size_bytes), doing))
        self._addresses.append(address)
        return address

    def allocate_pinned(self, size_bytes: int) -> UInt8Array:
        """Return new page-locked host memory, uint8 ``(size_bytes,)``; invalid after ``close``."""
        address = allocate_pinned(size_bytes)
        self._pinned.append(address)
        return view_host(address, size_bytes)

    def upload(self, address: int, source: UInt8Array) -> None:
        """Queue a copy of pinned memory to the device."""
        result = driver.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, self.stream)
        checked(result, "uploading a tensor")

    def download(self, target: UInt8Array, address: int) -> None:
        """Queue a copy from the device to pinned memory."""
        result = driver.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, self.stream)
        checked(result, "downloading a tensor")

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Capture what ``enqueue`` queues on the stream; see ``CapturedGraph``."""
        graph = CapturedGraph(self.stream, enqueue)
        self._graphs.append(graph)
        return graph

    def preprocessor(self, spec: Preprocessing) -> CudaPreprocessor:
        """Return the kernel that fills input tensors as ``spec`` says."""
        return CudaPreprocessor(spec, self.device.ordinal)

    def decoder(self, layout: HeadLayoutArgument, max_kept: int) -> CudaDecoder:
        """Return the kernels that turn a raw head's output into boxes; freed by ``close``."""
        self._kernels.append(decoder := CudaDecoder(layout, max_kept, self.device.ordinal))
        return decoder

    def stage_clock(self, marks: int) -> StageClock:
        """Return a clock of the stream's work; freed by ``close``."""
        self._kernels.append(clock := StageClock(self.stream, marks))
        return clock

    def synchronize(self) -> None:
        """Block until the work queued so far is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Wait for the stream, then free everything; may be called twice."""
        if self.stream:
            with giving_back("a network's memory"):
                self._free()

    def _free(self) -> None:
        self.make_current()
        self.synchronize()
        for made in (*self._graphs, *self._kernels):
            made.close()
        for address in self._addresses:
            checked(driver.cuMemFree(address), "freeing device memory")
        for address in self._pinned:
            checked(driver.cuMemFreeHost(address), "freeing pinned memory")
        self._stream.close()

"""Decoding and non-maximum suppression of raw heads on the GPU, on the caller's stream.

Equals ``detection.detector`` on the CPU up to the last bits of ``exp`` and of the overlaps: boxes
are cut to the source image before they suppress one another within each class. What comes to the
host is a few kilobytes.
"""

from __future__ import annotations

import ctypes

import numpy as np
from cuda.bindings import driver

from edge_perception.core.letterbox import Letterbox
from edge_perception.gpu.cuda import checked, get_device
from edge_perception.gpu.head_layout import (
    MAX_CANDIDATES,
    DeviceDetections,
    HeadLayoutArgument,
    PlacementArgument,
)
from edge_perception.gpu.kernel_module import load_module
from edge_perception.gpu.pinned_memory import allocate_pinned, view_host

_CANDIDATE_BYTES = 32
_KEPT_BYTES = 24
_COUNTS_BYTES = 8
_RANK_THREADS = 128
_DECODE_THREADS = 128
_SUPPRESS_THREADS = 1024


class CudaDecoder:
    """Decodes one model's output; owns its working memory; one thread's. A closed one is unusable.

    Args:
        layout: from ``head_layout``.
        max_kept: most boxes that come to the host.
        ordinal: the GPU.
    """

    def __init__(self, layout: HeadLayoutArgument, max_kept: int = 300, ordinal: int = 0) -> None:
        self._device = get_device(ordinal)
        self._device.make_current()
        module = load_module("detections.cu", ordinal)
        self._decode, self._rank = module.kernel("decode"), module.kernel("rank")
        self._suppress = module.kernel("suppress")
        self._layout = layout
        self._max_kept = max_kept
        self._result_bytes = _COUNTS_BYTES + max_kept * _KEPT_BYTES
        size = 2 * MAX_CANDIDATES * _CANDIDATE_BYTES + self._result_bytes
        self._memory = int(checked(driver.cuMemAlloc(size), "allocating the decoder's memory"))
        self._ranked = self._memory + MAX_CANDIDATES * _CANDIDATE_BYTES
        self._result = self._ranked + MAX_CANDIDATES * _CANDIDATE_BYTES
        self._pinned = allocate_pinned(self._result_bytes)

    def launch(
        self,
        output: int,
        letterbox: Letterbox,
        score_threshold: float,
        nms_iou: float,
        stream: int,
    ) -> None:
        """Queue decoding, suppression and the copy to the host.

        Args:
            output: device address of the raw output, float32, contiguous, batch 1.
            letterbox: as the image went in.
            score_threshold: 0..1.
            nms_iou: 0..1.
            stream: handle; ``collect`` only after it was synchronised.
        """
        counts = ctypes.c_void_p(self._result)
        kept = ctypes.c_void_p(self._result + _COUNTS_BYTES)
        candidates, ranked = ctypes.c_void_p(self._memory), ctypes.c_void_p(self._ranked)
        checked(driver.cuMemsetD8Async(self._result, 0, _COUNTS_BYTES, stream), "clearing counts")
        self._decode.launch(
            (-(-self._layout.anchors // _DECODE_THREADS), 1, 1),
            (_DECODE_THREADS, 1, 1),
            stream,
            ctypes.c_void_p(output),
            self._layout,
            PlacementArgument.of(letterbox),
            ctypes.c_float(score_threshold),
            candidates,
            counts,
        )
        ranks = (MAX_CANDIDATES // _RANK_THREADS, 1, 1)
        self._rank.launch(ranks, (_RANK_THREADS, 1, 1), stream, candidates, counts, ranked)
        self._suppress.launch(
            (1, 1, 1),
            (_SUPPRESS_THREADS, 1, 1),
            stream,
            ranked,
            ctypes.c_float(nms_iou),
            ctypes.c_int(self._max_kept),
            kept,
            counts,
        )
        checked(
            driver.cuMemcpyDtoHAsync(self._pinned, self._result, self._result_bytes, stream),
            "copying detections to the host",
        )

    def collect(self) -> DeviceDetections:
        """Return the last launch's detections, copied out of the pinned buffer."""
        raw = view_host(self._pinned, self._result_bytes)
        candidates, kept = (int(count) for count in raw[:_COUNTS_BYTES].view(np.int32))
        rows = raw[_COUNTS_BYTES:].view(np.float32).reshape(self._max_kept, 6)[:kept].copy()
        class_ids = rows[:, 5].copy().view(np.int32)
        return DeviceDetections(rows[:, :4].copy(), rows[:, 4].copy(), class_ids, candidates)

    def close(self) -> None:
        """Free the working memory; the stream must be idle."""
        self._device.make_current()
        checked(driver.cuMemFree(self._memory), "freeing the decoder's memory")
        checked(driver.cuMemFreeHost(self._pinned), "freeing the decoder's results")

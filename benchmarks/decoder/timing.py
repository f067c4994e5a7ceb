"""Times on the GPU, by events, and the bandwidth they are judged by."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

Action = Callable[[], object]
COPY_BYTES = 1 << 31


def times_ms(run: Action, *, prepare: Action = lambda: None, times: int) -> list[float]:
    """GPU time of each of ``times`` runs on the current stream, without that of ``prepare``.

    The host queues ahead, so that only the GPU's own gaps count.
    """
    marks = [(_event(), _event()) for _ in range(times)]
    for start, stop in marks:
        prepare()
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in marks]


def wall_ms(run: Action, times: int) -> float:
    """Mean time of a run by the host's clock, everything that Python does included."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / times


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p90, rounded to a microsecond where the values are in ms."""
    return {"p50": round(median(values), 4), "p90": round(quantiles(values, n=10)[-1], 4)}


def copy_bandwidth_gb_s() -> float:
    """Bytes read and written by a device-to-device copy of 2 GiB, a second; the median of 20."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times_ms(lambda: target.copy_(source), times=5)
    each = times_ms(lambda: target.copy_(source), times=20)
    return round(2 * COPY_BYTES / median(each) / 1e6, 1)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)

"""The shares of a device's peaks that were reached, from the decode figures, for the planner.

    python -m benchmarks.decoder.efficiency docs/benchmarks/decode_h100.json --device h100

They are shares of what the planner's own formulas leave to bytes and operations, so that it
predicts the measured time; of all models and contexts the lowest, so that it promises too little
rather than too much. What a kernel costs beyond its bytes is fitted: models of 1.5 to 13 billion
parameters have as many kernels, so time over bytes is a line. To be copied into
``config/planner/efficiency.yaml``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoder.random_models import read_model
from benchmarks.decoder.results import BEST
from edge_perception.core.language_model import read_shape
from edge_perception.planner.devices import DeviceProfile, load_device
from edge_perception.planner.latency import launches_ms, prefill_operations

PROMPTS = ("2048",)
"""Shorter ones wait for the host, which no share of the throughput tells."""


def decode_shares(
    figures: dict[str, Any], device: DeviceProfile, variant: str, kernel_gap_us: float
) -> Iterator[tuple[float, str]]:
    """Share of peak bandwidth of a variant, for each shape and context, and which it is."""
    for name, found in figures["shapes"].items():
        if variant not in found["decode"]:
            continue
        launches = launches_ms(read_shape(read_model(name)), kernel_gap_us)
        measured = found["decode"][variant]
        for context, times in measured["ms"].items():
            moving_s = (times["p50"] - launches) / 1e3
            share = measured["bytes"][context] / moving_s / (device.bandwidth_gb_s * 1e9)
            yield share, f"{name}, context {context}: {times['p50']} ms"


def prefill_shares(
    figures: dict[str, Any], device: DeviceProfile, precision: str
) -> Iterator[tuple[float, str]]:
    """Share of peak FP16 throughput, for each shape and prompt, of the faster way to cut it."""
    for name, found in figures["shapes"].items():
        shape = read_shape(read_model(name))
        for length, ways in found["prefill"].get(precision, {}).items():
            if length in PROMPTS:
                ms = min(way["ms"] for way in ways.values())
                operations = prefill_operations(shape, int(length))
                share = operations / (ms / 1e3) / (device.fp16_dense_tflops * 1e12)
                yield share, f"{name}, {length} tokens: {ms} ms"


def fitted_gap_us(figures: dict[str, Any]) -> float:
    """Microseconds a kernel beyond its bytes: least squares over INT4 shapes and contexts."""
    rows, times = [], []
    for name, found in figures["shapes"].items():
        kernels = launches_ms(read_shape(read_model(name)), 1e3)
        measured = found["decode"][BEST]
        for context, ms in measured["ms"].items():
            rows.append((measured["bytes"][context], kernels))
            times.append(1e3 * ms["p50"])
    (_, gap_us), *_ = np.linalg.lstsq(np.array(rows, float), np.array(times), rcond=None)
    return round(float(gap_us), 1)


def reached(figures: dict[str, Any], device: DeviceProfile) -> dict[str, tuple[float, str]]:
    """The lowest share of each kind: decode of int4 and fp16, prefill of int4."""
    gap = fitted_gap_us(figures)
    return {
        "int4": min(decode_shares(figures, device, BEST, gap)),
        "fp16": min(decode_shares(figures, device, "fp16", gap)),
        "prefill": min(prefill_shares(figures, device, "int4")),
    }


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    print(f"kernel_gap_us: {fitted_gap_us(figures)}")
    for kind, (share, source) in reached(figures, load_device(options.device)).items():
        print(f"{kind}: {{share: {share:.2f}, source: {options.figures.name}, {source}}}")


if __name__ == "__main__":
    main()

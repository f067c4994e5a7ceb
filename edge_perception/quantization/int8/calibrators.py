"""From what a tensor's values were to the threshold at which its INT8 scale ends.

Symmetric INT8 has one number to choose a tensor: the threshold T, with scale T / 127. Values past
T are clipped; the smaller T, the finer the steps. Every calibrator here reads the same histogram
of absolute values and weighs the two errors in its own way:

* ``minmax``: nothing is clipped. One outlier decides.
* ``percentile``: all but a fixed share is kept.
* ``entropy``: the distribution before and after differ least in KL divergence (Migacz, "8-bit
  Inference with TensorRT", GTC 2017). It clips hard; detectors lose boxes by it.
* ``mse``: the values before and after differ least in squares. The default.

A histogram covers 0 to a power of two. So it can grow with the data, and those of several tensors
can be added, by adding up pairs of bins: exactly, in one pass, in 32 kB a tensor. onnxruntime's
keeps every activation of every frame until the end, which for 128 frames of a 640x480 YOLOX-Nano
is more than 10 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_perception.errors import QuantizationError

Counts = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

BINS = 4096
LEVELS = 127  # magnitudes an int8 can hold symmetrically, 0 left out
PERCENTILE = 99.99

# A tensor that was always 0 still needs a scale above 0 which float16 can hold.
_LEAST_THRESHOLD = 1e-3
_CANDIDATES = 128


class Histogram:
    """Counts of absolute values in ``BINS`` equal bins from 0 to 2 ** ``exponent``."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(BINS, np.int64)
        self.exponent = -100
        self.largest = 0.0

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Count an array's values.

        Raises:
            QuantizationError: a value is not finite.
        """
        magnitudes = np.abs(values, dtype=np.float32).reshape(-1)
        largest = float(magnitudes.max(initial=0.0))
        if not math.isfinite(largest):
            raise QuantizationError(
                "an activation is not finite",
                expected="a float model that computes numbers on every calibration frame",
                got=largest,
            )
        self._cover(largest)
        scale = np.float32(BINS * 2.0**-self.exponent)
        bins = np.minimum((magnitudes * scale).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add another tensor's counts."""
        self._cover(other.largest, other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 2.0**self.exponent / BINS

    def _cover(self, largest: float, exponent: int = -100) -> None:
        """Widen the range to hold ``largest`` and be no narrower than 2 ** ``exponent``."""
        needed = max(math.frexp(largest)[1] if largest else -100, exponent, self.exponent)
        self.counts = _coarser(self.counts, needed - self.exponent)
        self.exponent = needed
        self.largest = max(self.largest, largest)


def merged(histograms: Sequence[Histogram]) -> Histogram:
    """Return the histogram of several tensors that share a scale."""
    total = Histogram()
    for histogram in histograms:
        total.merge(histogram)
    return total


def _coarser(counts: Counts, doublings: int) -> Counts:
    """Return the counts over a range 2 ** ``doublings`` times as wide."""
    wide: Counts = np.zeros_like(counts)
    if doublings >= int(math.log2(BINS)):
        wide[0] = counts.sum()
        return wide
    sums = counts.reshape(-1, 2**doublings).sum(axis=1)
    wide[: len(sums)] = sums
    return wide


def minmax_threshold(histogram: Histogram) -> float:
    """The largest magnitude seen."""
    return histogram.largest


def percentile_threshold(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The upper edge of the bin that holds the percentile (0 to 100) of magnitudes."""
    shares = np.cumsum(histogram.counts) / max(int(histogram.counts.sum()), 1)
    index = int(np.searchsorted(shares, percentile / 100))
    return min((index + 1) * histogram.width, histogram.largest)


def mse_threshold(histogram: Histogram) -> float:
    """The threshold of least mean squared error between values and their INT8 images."""
    centres = np.asarray((np.arange(BINS) + 0.5) * histogram.width, np.float64)
    weights = histogram.counts.astype(np.float64)
    thresholds = _candidates(histogram)
    errors = [_squared_error(centres, weights, threshold) for threshold in thresholds]
    return float(thresholds[int(np.argmin(errors))])


def entropy_threshold(histogram: Histogram) -> float:
    """The threshold of least KL divergence between the clipped and the quantised distribution."""
    used = int(np.flatnonzero(histogram.counts).max(initial=0)) + 1
    ends = range(LEVELS + 1, used + 1, max(1, used // (4 * _CANDIDATES)))
    if not ends:
        return histogram.largest
    counts = histogram.counts.copy()
    counts[0] = counts[1]  # NVIDIA's: zero is exact in INT8, and after a ReLU would outweigh all
    divergences = [_divergence(counts, end) for end in ends]
    end = ends[int(np.argmin(divergences))]
    return min(end * histogram.width, histogram.largest)


CALIBRATORS: Mapping[str, Callable[[Histogram], float]] = {
    "minmax": minmax_threshold,
    "percentile": percentile_threshold,
    "entropy": entropy_threshold,
    "mse": mse_threshold,
}


def scale_of(histogram: Histogram, calibrator: str) -> float:
    """Return the INT8 scale that a calibrator chooses: a positive float32."""
    threshold = max(CALIBRATORS[calibrator](histogram), _LEAST_THRESHOLD)
    return float(np.float32(threshold / LEVELS))


def _candidates(histogram: Histogram) -> Float64Array:
    """Thresholds to try, from 1/16 of the largest magnitude up, evenly in their logarithm."""
    largest = max(histogram.largest, _LEAST_THRESHOLD)
    return np.asarray(np.geomspace(largest / 16, largest, _CANDIDATES), np.float64)


def _squared_error(centres: Float64Array, weights: Float64Array, threshold: float) -> float:
    scale = threshold / LEVELS
    images = np.minimum(np.rint(centres / scale), LEVELS) * scale
    return float(weights @ (centres - images) ** 2)


def _divergence(counts: Counts, end: int) -> float:
    """KL divergence of the first ``end`` bins, clipped, from themselves on INT8's levels."""
    kept = counts[:end].astype(np.float64)
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    levels = np.minimum(np.arange(end) * (LEVELS + 1) // end, LEVELS)
    occupied = kept > 0
    sums = np.bincount(levels, kept, LEVELS + 1)
    bins = np.bincount(levels, occupied, LEVELS + 1)
    quantised = np.where(occupied, (sums / np.maximum(bins, 1))[levels], 0.0)
    present = clipped > 0
    p = clipped[present] / clipped.sum()
    q = np.maximum(quantised[present] / max(quantised.sum(), 1e-300), 1e-12)
    return float(p @ np.log(p / q))

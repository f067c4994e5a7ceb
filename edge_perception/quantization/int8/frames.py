"""Which frames to calibrate with: those that differ most, not those that come first.

The first frames of a bag are one place in one light. Frames are therefore described by a thumbnail
of their colours and one of their edges, and picked one by one, each as far as can be from all that
were picked before (farthest-point sampling, Gonzalez 1985: within a factor of two of the best
possible cover). A seed chooses the first. The price: a broken frame, being like no other, is picked
early; percentile and MSE calibrators hardly mind one in a hundred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import QuantizationError
from edge_perception.gpu.preprocess import Preprocessor, to_bgr
from edge_perception.quantization.int8.graph import Array
from edge_perception.trust.frames import Frame

Float32Array = npt.NDArray[np.float32]

_THUMBNAIL = (16, 12)  # width, height; px


@dataclass(frozen=True)
class ChosenFrames:
    """Frames for calibration and, where there were enough, others to judge by.

    ``digest`` is the SHA-256 of the calibration frames' formats and pixels; ``seen`` counts the
    frames they were chosen from, ``indices`` are the chosen ones' places among them, rising.
    """

    calibration: tuple[Frame, ...]
    judging: tuple[Frame, ...]
    digest: str
    seen: int
    indices: tuple[int, ...]


def choose_frames(
    frames: Iterable[Frame],
    count: int,
    judging: int,
    seed: int,
    on_frame: Callable[[], None] = lambda: None,
) -> ChosenFrames:
    """Choose ``count`` frames to calibrate with and ``judging`` more; reads ``frames`` twice.

    The chosen frames are held in memory. With fewer frames than asked for in all, a third of them
    judges; a single frame does both.

    Raises:
        QuantizationError: no frame at all.
    """
    descriptors = []
    for frame in frames:
        descriptors.append(describe(frame))
        on_frame()
    seen = len(descriptors)
    if not seen:
        raise QuantizationError(
            "there is nothing to calibrate with",
            expected="at least one image that can be decoded",
            got=seen,
        )
    if seen < count + judging:
        judging = min(judging, seen // 3)
        count = seen - judging
    order = farthest_points(np.stack(descriptors), count + judging, seed)
    # The judging frames are spread over the order: those at its end are all much alike.
    judges = set(order[:: len(order) // judging][:judging].tolist()) if judging else set()
    held = _hold(frames, set(order.tolist()))
    calibration = [index for index in sorted(held) if index not in judges]
    chosen = tuple(held[index] for index in calibration)
    return ChosenFrames(
        chosen,
        tuple(held[index] for index in sorted(judges)) or chosen,
        digest_of(chosen),
        seen,
        tuple(calibration),
    )


def farthest_points(points: Float32Array, count: int, seed: int) -> npt.NDArray[np.intp]:
    """Return indices of ``count`` rows of ``(N, D)``, each the farthest from all before it."""
    first = int(np.random.default_rng(seed).integers(len(points)))
    chosen = [first]
    nearest = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < min(count, len(points)):
        nearest[chosen] = -1  # equal frames are at distance 0, but are not the same frame
        index = int(np.argmax(nearest))
        chosen.append(index)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[index], axis=1))
    return np.array(chosen, np.intp)


def describe(frame: Frame) -> Float32Array:
    """Return a frame's colours and edges on a coarse grid, float32 ``(768,)``."""
    picture = to_bgr(frame.pixels, frame.format)
    small = cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = small.mean(axis=2)
    edges = np.hypot(np.gradient(grey, axis=1), np.gradient(grey, axis=0))
    # Edges are an order of magnitude smaller than colours and say as much.
    parts = [cv2.resize(part, _THUMBNAIL, interpolation=cv2.INTER_AREA) for part in (small, edges)]
    return np.concatenate([parts[0].ravel(), 8 * parts[1].ravel()]).astype(np.float32)


def digest_of(frames: Sequence[Frame]) -> str:
    """Return the SHA-256 of frames: their formats and pixels, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.format).encode())
        digest.update(np.ascontiguousarray(frame.pixels).data)
    return digest.hexdigest()


def input_tensors(frames: Iterable[Frame], spec: Preprocessing) -> Iterator[Array]:
    """Yield each frame as the network's input, exactly as the detector makes it."""
    preprocessor = Preprocessor(spec)
    for frame in frames:
        tensor, _ = preprocessor(frame.pixels, frame.format)
        yield tensor


def _hold(frames: Iterable[Frame], wanted: set[int]) -> dict[int, Frame]:
    return {index: frame for index, frame in enumerate(frames) if index in wanted}

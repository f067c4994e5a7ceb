"""Frames that carry proof of themselves, and facts about the machine that measured them."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.machine import describe_code, describe_machine, utc_now

FULL_HD = ImageFormat.packed("rgb8", 1080, 1920)
_CRC_BYTES = 4


def info(sequence: int, image_format: ImageFormat = FULL_HD) -> FrameInfo:
    """Describe a frame written now."""
    now_ns = time.monotonic_ns()
    return FrameInfo(
        sequence=sequence,
        stamp_ns=time.time_ns(),
        frame_id="camera",
        format=image_format,
        receive_ns=now_ns,
        receive_stamp_ns=time.time_ns(),
        decoded_ns=now_ns,
    )


def random_frame(seed: int, image_format: ImageFormat = FULL_HD) -> UInt8Array:
    """Noise of a seed, uint8 ``(size_bytes,)``."""
    return np.random.default_rng(seed).integers(0, 256, image_format.size_bytes, np.uint8)


def seal(frame: UInt8Array, sequence: int) -> None:
    """Write the sequence into the first 8 bytes and the CRC of all the rest into the last 4."""
    frame[:8] = np.frombuffer(sequence.to_bytes(8, "little"), np.uint8)
    crc = zlib.crc32(frame[:-_CRC_BYTES].data)
    frame[-_CRC_BYTES:] = np.frombuffer(crc.to_bytes(_CRC_BYTES, "little"), np.uint8)


def is_whole(frame: UInt8Array, sequence: int) -> bool:
    """Whether a frame is the one sealed with this sequence, every byte of it."""
    crc = int.from_bytes(frame[-_CRC_BYTES:].tobytes(), "little")
    said = int.from_bytes(frame[:8].tobytes(), "little")
    return said == sequence and zlib.crc32(frame[:-_CRC_BYTES].data) == crc


def percentiles(values_ms: list[float]) -> dict[str, float | None]:
    """p50, p90, p99 and the maximum; a percentile that too few samples carry is None."""
    ordered = np.sort(np.asarray(values_ms))
    return {
        "n": len(ordered),
        "p50_ms": round(float(np.percentile(ordered, 50)), 4),
        "p90_ms": round(float(np.percentile(ordered, 90)), 4),
        "p99_ms": round(float(np.percentile(ordered, 99)), 4) if len(ordered) >= 100 else None,
        "max_ms": round(float(ordered[-1]), 4),
    }


def provenance(commit: str) -> dict[str, Any]:
    """Machine, date and commit of a run; ``commit`` is for a tree that is no checkout."""
    return {
        "machine": describe_machine(),
        "date": utc_now(),
        "commit": commit or describe_code()["commit"],
    }

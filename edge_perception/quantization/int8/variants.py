"""Few calibration frames, seen in more ways: mirrored, nearer, further, in other light.

How far a channel reaches on pictures to come, sixteen pictures hardly tell. Variants of them are no
less the user's own and cost nothing to get. They calibrate only; nothing is ever judged by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.gpu.preprocess import to_bgr
from edge_perception.trust.frames import Frame

_NEARER = 0.6  # the share of each side that is seen of a nearer or filled by a further picture
_GREY = 114  # the letterbox's


def with_variants(frames: Sequence[Frame], count: int) -> tuple[Frame, ...]:
    """Return ``frames`` and so many variants of them as make up ``count``, or all there are."""
    derived = (_varied(frame, variant) for variant in _VARIANTS for frame in frames)
    return (*frames, *itertools.islice(derived, max(0, count - len(frames))))


def _varied(frame: Frame, variant: Callable[[UInt8Array], UInt8Array]) -> Frame:
    picture = np.ascontiguousarray(variant(to_bgr(frame.pixels, frame.format)))
    image_format = ImageFormat.packed("bgr8", *picture.shape[:2])
    return replace(frame, pixels=picture.reshape(-1), format=image_format, truth=None)


def _mirrored(picture: UInt8Array) -> UInt8Array:
    return picture[:, ::-1]


def _further(picture: UInt8Array) -> UInt8Array:
    small = cv2.resize(picture, None, fx=_NEARER, fy=_NEARER, interpolation=cv2.INTER_AREA)
    canvas = np.full_like(picture, _GREY)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas


def _nearer(picture: UInt8Array) -> UInt8Array:
    height, width = picture.shape[:2]
    part = picture[: max(1, int(height * _NEARER)), : max(1, int(width * _NEARER))]
    return np.asarray(cv2.resize(part, (width, height)), np.uint8)


def _nearer_from_the_other_side(picture: UInt8Array) -> UInt8Array:
    return _nearer(picture[::-1, ::-1])[::-1, ::-1]


def _brighter(picture: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=1.3), np.uint8)


def _darker(picture: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=0.6), np.uint8)


_VARIANTS = (_mirrored, _further, _nearer, _nearer_from_the_other_side, _brighter, _darker)

"""What the bytes of an image message mean: encodings, sizes, and array views without a copy.

The names are those of ``sensor_msgs/image_encodings.hpp``. Only 8-bit encodings are known here:
they are what cameras send to detectors. Anything else is for whoever sends it to convert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edge_perception.errors import ImageError

UInt8Array = npt.NDArray[np.uint8]

MAX_SIDE_PX = 16384

# Packed encodings: bytes a pixel. yuv422 is the old name of uyvy, yuv422_yuy2 that of yuyv.
PACKED_BYTES_PER_PIXEL: Mapping[str, int] = MappingProxyType(
    {
        "rgb8": 3,
        "bgr8": 3,
        "rgba8": 4,
        "bgra8": 4,
        "mono8": 1,
        "yuv422": 2,
        "uyvy": 2,
        "yuv422_yuy2": 2,
        "yuyv": 2,
        "bayer_rggb8": 1,
        "bayer_bggr8": 1,
        "bayer_gbrg8": 1,
        "bayer_grbg8": 1,
    }
)
_HALF_WIDTH_CHROMA = frozenset({"yuv422", "uyvy", "yuv422_yuy2", "yuyv"})
_HALF_SIZE_CHROMA = frozenset({"nv12"})
ENCODINGS: tuple[str, ...] = (*PACKED_BYTES_PER_PIXEL, "nv12")


@dataclass(frozen=True)
class ImageFormat:
    """Encoding and geometry of an image; valid once constructed.

    ``height`` and ``width`` are in pixels, ``step`` is the length of a row in bytes, padding
    included. ``nv12`` keeps a full-size luma plane and, below it, a half-height plane of
    interleaved chroma with the same step.

    Raises:
        ImageError: unknown encoding, a side outside 1..16384, odd sides where chroma is
            subsampled, or a step shorter than a row.
    """

    encoding: str
    height: int
    width: int
    step: int

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ImageError(
                "unknown image encoding",
                expected=f"one of {', '.join(ENCODINGS)}",
                got=self.encoding[:64],
                mend="Convert it on the way: image_proc and cv_bridge know many more.",
            )
        for side, pixels in (("height", self.height), ("width", self.width)):
            if not 1 <= pixels <= MAX_SIDE_PX:
                raise ImageError(
                    f"image {side} out of range", expected=f"1 to {MAX_SIDE_PX} px", got=pixels
                )
        self._check_subsampling()
        if self.step < self.row_bytes:
            raise ImageError(
                "image step is shorter than a row",
                expected=f"at least {self.row_bytes} bytes for {self.width} px of {self.encoding}",
                got=self.step,
            )

    def _check_subsampling(self) -> None:
        if self.encoding in _HALF_WIDTH_CHROMA | _HALF_SIZE_CHROMA and self.width % 2:
            raise ImageError(f"{self.encoding} needs an even width", got=self.width)
        if self.encoding in _HALF_SIZE_CHROMA and self.height % 2:
            raise ImageError(f"{self.encoding} needs an even height", got=self.height)

    @classmethod
    def packed(cls, encoding: str, height: int, width: int) -> ImageFormat:
        """Return the format of an image without row padding."""
        return cls(encoding, height, width, width * PACKED_BYTES_PER_PIXEL.get(encoding, 1))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that carry pixels."""
        return self.width * PACKED_BYTES_PER_PIXEL.get(self.encoding, 1)

    @property
    def rows(self) -> int:
        """Rows of bytes in memory; more than ``height`` for planar encodings."""
        return self.height * 3 // 2 if self.encoding in _HALF_SIZE_CHROMA else self.height

    @property
    def size_bytes(self) -> int:
        """Bytes from the first row's start to the last row's end, padding included."""
        return self.rows * self.step


def view_image(data: UInt8Array, image_format: ImageFormat) -> UInt8Array:
    """View the bytes of an image as an array; no copy is made.

    Args:
        data: uint8 ``(n,)``; at least ``size_bytes`` long. The last row's padding may be missing,
            as some drivers send it so.
        image_format: what the bytes mean.

    Returns:
        uint8 view: ``(height, width, channels)`` for packed encodings of several bytes a pixel,
        ``(height, width)`` for mono8 and Bayer, ``(height * 3 / 2, width)`` for nv12.

    Raises:
        ImageError: fewer or more bytes than the format says.
    """
    check_size(data.size, image_format)
    channels = PACKED_BYTES_PER_PIXEL.get(image_format.encoding, 1)
    shape = (image_format.rows, image_format.width, channels)
    strides = (image_format.step, channels, 1)
    view: UInt8Array = np.ndarray(shape, np.uint8, buffer=data.data, strides=strides)
    return view[:, :, 0] if channels == 1 else view


def check_size(size_bytes: int, image_format: ImageFormat) -> None:
    """Raise ``ImageError`` unless ``size_bytes`` of data can hold exactly such an image."""
    longest = image_format.size_bytes
    shortest = longest - image_format.step + image_format.row_bytes
    if not shortest <= size_bytes <= longest:
        raise ImageError(
            f"{image_format.width}x{image_format.height} {image_format.encoding} image"
            f" with step {image_format.step} has the wrong number of bytes",
            expected=f"{shortest} to {longest} bytes",
            got=size_bytes,
        )

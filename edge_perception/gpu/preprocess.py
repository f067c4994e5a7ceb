"""From camera pixels to a network's input tensor on the CPU.

The order is the reference that the CUDA kernel (``preprocess_cuda``) is held to: colour
conversion of the whole image by OpenCV's fixed-point formulas (only for subsampled and Bayer
encodings; packed ones just change the order of their channels), crop, bilinear resize with
OpenCV's pixel centres, then ``(value * scale - mean) / std`` into a letterbox of ``pad_value``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge_perception.core.image import ImageFormat, UInt8Array, view_image
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import ImageError

Tensor = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]

# Where red, green and blue lie in a pixel of a packed encoding.
_RGB_CHANNELS = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
}
# OpenCV's Bayer names without pattern letters speak of the second row; these say what ROS says.
_TO_RGB = {
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "bayer_rggb8": cv2.COLOR_BayerRGGB2RGB,
    "bayer_bggr8": cv2.COLOR_BayerBGGR2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGBRG2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGRBG2RGB,
}


@dataclass(frozen=True)
class ImageRegion:
    """An image, or the part of it inside ``crop`` (left, top, right, bottom; px, exclusive end).

    ``pixels`` is uint8 ``(n,)``.

    Raises:
        ImageError: the crop is empty or leaves the image, or a Bayer image is under 3x3 px.
    """

    pixels: UInt8Array
    format: ImageFormat
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        check_region(self.format, self.crop)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The crop, or the whole image."""
        return self.crop or (0, 0, self.format.width, self.format.height)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        left, top, right, bottom = self.box
        return bottom - top, right - left


class Preprocessor:
    """Fills input tensors as a manifest's ``preprocessing`` section says; one thread's."""

    def __init__(self, spec: Preprocessing) -> None:
        self.spec = spec
        self._gain, self._offset = gain_and_offset(spec)
        self._tensor: Tensor = np.empty((0, *spec.input_shape[1:]), spec.dtype)
        self._letterboxes: list[Letterbox] = []

    def __call__(self, pixels: UInt8Array, image_format: ImageFormat) -> tuple[Tensor, Letterbox]:
        """Turn one image into the input tensor.

        Args:
            pixels: uint8 ``(n,)``, the bytes of the image as ``image_format`` says.
            image_format: encoding and geometry.

        Returns:
            The tensor of ``spec.input_shape``, overwritten by the next call, and the geometry
            that maps boxes back.

        Raises:
            ImageError: the bytes do not fit the format.
        """
        tensor, (letterbox,) = self.batch([ImageRegion(pixels, image_format)])
        return tensor, letterbox

    def batch(self, regions: Sequence[ImageRegion]) -> tuple[Tensor, Sequence[Letterbox]]:
        """Turn images or crops into one tensor; boxes map back to each region's own origin.

        Returns:
            The tensor, ``spec.input_shape`` with the first side ``len(regions)``, overwritten by
            the next call, and a geometry for each region.

        Raises:
            ImageError: the bytes of an image do not fit its format.
        """
        target = (self.spec.height, self.spec.width)
        letterboxes = [
            Letterbox.fit(region.size, target, self.spec.pad_align) for region in regions
        ]
        if letterboxes != self._letterboxes:
            self._start_padded(letterboxes)
        for image, region, letterbox in zip(self._tensor, regions, letterboxes, strict=True):
            self._fill(image, region, letterbox)
        return self._tensor, letterboxes

    def _start_padded(self, letterboxes: list[Letterbox]) -> None:
        """Make a tensor of padding; it stays around the pictures while their sizes do."""
        self._tensor = np.empty((len(letterboxes), *self.spec.input_shape[1:]), self.spec.dtype)
        pad = np.full((1, 1), self.spec.pad_value, np.uint8)
        for image in self._tensor:
            for channel in range(3):
                self._normalise(pad, channel, out=self._plane(image, channel))
        self._letterboxes = letterboxes

    def _fill(self, image: Tensor, region: ImageRegion, letterbox: Letterbox) -> None:
        picture, rgb_channels = _channels(region)
        height, width = letterbox.resized_height, letterbox.resized_width
        if picture.shape[:2] != (height, width):
            picture = _resize(picture, width, height)
        top, left = letterbox.pad_top, letterbox.pad_left
        order = rgb_channels if self.spec.color == "rgb" else rgb_channels[::-1]
        for channel, source in enumerate(order):
            inside = self._plane(image, channel)[top : top + height, left : left + width]
            # OpenCV picks a channel apart several times as fast as NumPy reads it in strides.
            plane = np.asarray(cv2.extractChannel(picture, source), np.uint8)
            self._normalise(plane, channel, out=inside)

    def _plane(self, image: Tensor, channel: int) -> Tensor:
        return image[channel] if self.spec.layout == "nchw" else image[:, :, channel]

    def _normalise(self, values: UInt8Array, channel: int, out: Tensor) -> None:
        """Write ``value * gain + offset``; integers are rounded and cut to 0..255."""
        if out.dtype == np.uint8:
            scaled = values * self._gain[channel] + self._offset[channel]
            out[...] = np.clip(np.rint(scaled), 0, 255)
            return
        if self._gain[channel] == 1 and not self._offset[channel]:
            np.copyto(out, values, casting="same_kind")
            return
        np.multiply(values, self._gain[channel], out=out, casting="same_kind")
        if self._offset[channel]:
            np.add(out, self._offset[channel], out=out, casting="same_kind")


def check_region(image_format: ImageFormat, crop: tuple[int, int, int, int] | None) -> None:
    """Raise ``ImageError`` unless a crop (or the whole image) can be read from such an image."""
    height, width = image_format.height, image_format.width
    if image_format.encoding.startswith("bayer") and min(height, width) < 3:
        raise ImageError(
            "Bayer image is too small", expected="at least 3x3 px", got=f"{width}x{height}"
        )
    left, top, right, bottom = crop or (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(
            "crop is empty or leaves the image", expected=f"inside {width}x{height} px", got=crop
        )


def gain_and_offset(spec: Preprocessing) -> tuple[Float32Array, Float32Array]:
    """Return ``(3,)`` each, so that ``(v * scale - mean) / std`` is ``v * gain + offset``."""
    std = np.asarray(spec.std, np.float64)
    gain = (spec.scale / std).astype(np.float32)
    return gain, (-np.asarray(spec.mean, np.float64) / std).astype(np.float32)


def _channels(region: ImageRegion) -> tuple[UInt8Array, tuple[int, int, int]]:
    """View a region as uint8 ``(h, w, c)``, and say which channels are red, green and blue."""
    encoding = region.format.encoding
    whole = view_image(region.pixels, region.format)
    if encoding in _TO_RGB:
        whole = np.asarray(cv2.cvtColor(whole, _TO_RGB[encoding]), np.uint8)
    left, top, right, bottom = region.box
    picture = whole[top:bottom, left:right]
    picture = picture[:, :, np.newaxis] if picture.ndim == 2 else picture
    return picture, _RGB_CHANNELS.get(encoding, (0, 1, 2))


def _resize(picture: UInt8Array, width: int, height: int) -> UInt8Array:
    resized: UInt8Array = np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8
    )
    return resized[:, :, np.newaxis] if resized.ndim == 2 else resized


def to_rgb(pixels: UInt8Array, image_format: ImageFormat) -> UInt8Array:
    """Return a copy of an image of any encoding as contiguous uint8 RGB ``(height, width, 3)``.

    Raises:
        ImageError: the bytes do not fit the format.
    """
    picture, order = _channels(ImageRegion(pixels, image_format))
    if order == (2, 1, 0) and picture.shape[2] == 3:  # far faster than picking channels
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
    return np.array(
        picture if order == (0, 1, 2) and picture.shape[2] == 3 else picture[:, :, order]
    )


def to_bgr(pixels: UInt8Array, image_format: ImageFormat) -> UInt8Array:
    """Return an image of any encoding as contiguous uint8 ``(height, width, 3)``, for people.

    Raises:
        ImageError: the bytes do not fit the format.
    """
    picture, (red, green, blue) = _channels(ImageRegion(pixels, image_format))
    return np.ascontiguousarray(picture[:, :, [blue, green, red]])

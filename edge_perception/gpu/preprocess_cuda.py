"""From frames in device memory to a network's input tensor, by one kernel on the caller's stream.

The same regions, the same spec and, within one level of 255, the same values as ``preprocess``.
Nothing here waits for the GPU or allocates on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from edge_perception.core.image import ImageFormat
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import ImageError
from edge_perception.gpu.preprocess import check_region, gain_and_offset

MAX_BATCH = 32
_BLOCK = (32, 8, 1)
_ENCODINGS = (
    ("rgb8",),
    ("bgr8",),
    ("rgba8",),
    ("bgra8",),
    ("mono8",),
    ("nv12",),
    ("uyvy", "yuv422"),
    ("yuyv", "yuv422_yuy2"),
    ("bayer_rggb8",),
    ("bayer_bggr8",),
    ("bayer_gbrg8",),
    ("bayer_grbg8",),
)
_ENCODING_CODES = {name: code for code, names in enumerate(_ENCODINGS) for name in names}
_DTYPE_CODES = {"float32": 0, "float16": 1, "uint8": 2}


class RegionArgument(ctypes.Structure):
    """``Region`` of preprocess.cu."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        *(
            (name, ctypes.c_int)
            for name in (
                *("encoding", "step", "height", "width"),
                *("crop_left", "crop_top", "crop_width", "crop_height"),
                *("pad_left", "pad_top", "resized_width", "resized_height"),
                *("reserved0", "reserved1"),
            )
        ),
    )


RegionsArgument = RegionArgument * MAX_BATCH


class TargetArgument(ctypes.Structure):
    """``Target`` of preprocess.cu."""

    _fields_ = (
        ("tensor", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("batch", "height", "width")),
        *((name, ctypes.c_int) for name in ("dtype", "channels_last", "bgr")),
        ("gain", ctypes.c_float * 3),
        ("offset", ctypes.c_float * 3),
        ("pad_value", ctypes.c_float),
    )


@dataclass(frozen=True)
class DeviceRegion:
    """An image on the GPU at ``pointer``, or the part of it inside ``crop``, as ``ImageRegion``.

    The whole ``format.size_bytes`` must be readable, the last row's padding excepted.
    """

    pointer: int
    format: ImageFormat
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        check_region(self.format, self.crop)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The crop, or the whole image."""
        return self.crop or (0, 0, self.format.width, self.format.height)


class CudaPreprocessor:
    """Fills input tensors as a manifest's ``preprocessing`` section says."""

    def __init__(self, spec: Preprocessing, ordinal: int = 0) -> None:
        """Compile the kernel if this process has not yet.

        Raises:
            CudaError: no GPU, or the compiler refused.
        """
        from edge_perception.gpu.kernel_module import load_module

        self.spec = spec
        self._kernel = load_module("preprocess.cu", ordinal).kernel("preprocess")

    def launch(
        self, regions: Sequence[DeviceRegion], tensor: int, stream: int
    ) -> Sequence[Letterbox]:
        """Queue the filling of a tensor.

        Args:
            regions: 1 to ``MAX_BATCH`` images or crops, of any mix of formats.
            tensor: device address of ``spec.input_shape`` with the first side ``len(regions)``,
                contiguous, of ``spec.dtype``.
            stream: handle; the regions' uploads must be ordered before it.

        Returns:
            A geometry for each region, which maps boxes back to the region's own origin.

        Raises:
            ImageError: no regions, or too many.
            CudaError: the launch failed.
        """
        if not 1 <= len(regions) <= MAX_BATCH:
            raise ImageError("regions in a batch", expected=f"1 to {MAX_BATCH}", got=len(regions))
        size = (self.spec.height, self.spec.width)
        letterboxes = []
        for region in regions:
            left, top, right, bottom = region.box
            fitted = Letterbox.fit((bottom - top, right - left), size, self.spec.pad_align)
            letterboxes.append(fitted)
        grid = (-(-size[1] // _BLOCK[0]), -(-size[0] // _BLOCK[1]), len(regions))
        target = target_argument(self.spec, tensor, len(regions))
        self._kernel.launch(grid, _BLOCK, stream, regions_argument(regions, letterboxes), target)
        return letterboxes


def regions_argument(
    regions: Sequence[DeviceRegion], letterboxes: Sequence[Letterbox]
) -> ctypes.Array[RegionArgument]:
    """Lay regions out as the kernel reads them."""
    packed = RegionsArgument()
    for at, region, letterbox in zip(packed, regions, letterboxes, strict=False):
        left, top, right, bottom = region.box
        at.pixels = region.pointer
        at.encoding = _ENCODING_CODES[region.format.encoding]
        at.step, at.height, at.width = region.format.step, region.format.height, region.format.width
        at.crop_left, at.crop_top = left, top
        at.crop_width, at.crop_height = right - left, bottom - top
        at.pad_left, at.pad_top = letterbox.pad_left, letterbox.pad_top
        at.resized_width = letterbox.resized_width
        at.resized_height = letterbox.resized_height
    return packed


def target_argument(spec: Preprocessing, tensor: int, batch: int) -> TargetArgument:
    """Lay the output out as the kernel reads it."""
    gain, offset = gain_and_offset(spec)
    return TargetArgument(
        tensor=tensor,
        batch=batch,
        height=spec.height,
        width=spec.width,
        dtype=_DTYPE_CODES[spec.dtype],
        channels_last=spec.layout == "nhwc",
        bgr=spec.color == "bgr",
        gain=(ctypes.c_float * 3)(*gain),
        offset=(ctypes.c_float * 3)(*offset),
        pad_value=spec.pad_value,
    )

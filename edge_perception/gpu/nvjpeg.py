"""JPEG to pixels on the GPU by nvJPEG, straight into a slot's device memory.

The idea. A compressed frame is a tenth of its pixels. Decoded on the GPU, only that tenth crosses
the bus, and the pixels come to be where the models read them. The library is called by ctypes:
cuda-bindings has no module for it, and six of its functions are all that is needed.

What is not plain (``jpeg_header``) is left to the CPU: files with odd headers, whose errors then
read as everywhere, and truncated ones.

The price. libjpeg, read strictly as ``decode_image`` does, refuses a picture whose entropy-coded
data is damaged; nvJPEG decodes what it can and says nothing. Such a picture comes out with smeared
blocks. Where the way to the camera loses bytes, decode on the CPU.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache

import cv2
import numpy as np
from cuda.bindings import driver

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.errors import CudaError, EdgePerceptionError, ImageError
from edge_perception.gpu.cuda import Device, Event, Stream, checked, get_device
from edge_perception.gpu.jpeg_header import is_plain_jpeg
from edge_perception.gpu.lost_gpu import giving_back

TOLERANCE_LEVELS = 1.0
"""Largest mean difference from libjpeg's picture, in levels of 255, that a probe accepts."""

_STRICT = 1 << 2  # refuse a bitstream that breaks the standard
_INTERPOLATE = 1 << 5  # chroma between its samples, as libjpeg does
_BGR_INTERLEAVED = 6
_MAX_COMPONENTS = 4


class _Status(IntEnum):
    """``nvjpegStatus_t``."""

    SUCCESS = 0
    NOT_INITIALIZED = 1
    INVALID_PARAMETER = 2
    BAD_JPEG = 3
    JPEG_NOT_SUPPORTED = 4
    ALLOCATOR_FAILURE = 5
    EXECUTION_FAILED = 6
    ARCH_MISMATCH = 7
    INTERNAL_ERROR = 8
    IMPLEMENTATION_NOT_SUPPORTED = 9
    INCOMPLETE_BITSTREAM = 10


_FAULTS_OF_THE_FILE = (_Status.BAD_JPEG, _Status.JPEG_NOT_SUPPORTED, _Status.INCOMPLETE_BITSTREAM)


class _Image(ctypes.Structure):
    """``nvjpegImage_t``."""

    _fields_ = (
        ("channel", ctypes.c_void_p * _MAX_COMPONENTS),
        ("pitch", ctypes.c_size_t * _MAX_COMPONENTS),
    )


@cache
def load_library() -> ctypes.CDLL:
    """Load nvJPEG from the CUDA toolkit or from its wheel.

    Raises:
        CudaError: it is not there.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("nvjpeg").abs_path
    except (ImportError, RuntimeError) as error:
        raise CudaError(
            f"nvJPEG is not there: {str(error).splitlines()[0]}",
            mend="Install the CUDA toolkit or the wheel nvidia-nvjpeg of its major version.",
        ) from error
    library = ctypes.CDLL(path)
    for name in ("nvjpegCreateEx", "nvjpegDecode"):
        if not hasattr(library, name):  # Tegra has another library of this name
            raise CudaError("this nvJPEG is not CUDA's", expected=f"function {name}", got=path)
    return library


class NvJpegDecoder:
    """Decodes on whatever stream it is given; one thread's at a time."""

    name = "nvjpeg"

    def __init__(
        self, ordinal: int = 0, backend: int = 0, flags: int = _STRICT | _INTERPOLATE
    ) -> None:
        """Take a GPU; ``backend`` and ``flags`` are nvJPEG's own, backend 0 its choice.

        Raises:
            CudaError: no GPU, no library, or it does not start.
        """
        self._device = get_device(ordinal)
        self._device.make_current()
        self._library = load_library()
        self._handle = ctypes.c_void_p()
        status = self._library.nvjpegCreateEx(
            backend, None, None, flags, ctypes.byref(self._handle)
        )
        _check(status, "starting nvJPEG")
        # A state's buffers are free again when its work is done. There are as many as were ever
        # under way at one time, which is one or two.
        self._states: list[tuple[ctypes.c_void_p, Event]] = []

    @staticmethod
    def can_decode(data: UInt8Array) -> bool:
        """Tell whether a file, uint8 ``(n,)``, is one for this decoder."""
        return is_plain_jpeg(data)

    def enqueue(
        self, data: UInt8Array, image_format: ImageFormat, pointer: int, stream: int
    ) -> None:
        """Queue the decoding of a file to packed bgr8.

        Args:
            data: uint8 ``(n,)``, a file that ``can_decode``; free for reuse on return.
            image_format: what ``read_image_format`` said of it.
            pointer: device memory of ``image_format.size_bytes``.
            stream: handle.

        Raises:
            ImageError: the library refuses the file.
            CudaError: the GPU failed.
        """
        self._device.make_current()
        self._check_size(data, image_format)
        state, done = self._take_state()
        target = _Image()
        target.channel[0], target.pitch[0] = pointer, image_format.step
        status = self._library.nvjpegDecode(
            self._handle,
            state,
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.size),
            _BGR_INTERLEAVED,
            ctypes.byref(target),
            ctypes.c_void_p(stream),
        )
        done.record(stream)  # after a failure too: part of the work may have been queued
        _check(status, "decoding a JPEG", data.size)

    def close(self) -> None:
        """Wait for what is under way and free everything; idempotent."""
        if not self._handle:
            return
        handle, self._handle = self._handle, ctypes.c_void_p()
        with giving_back("the JPEG decoder"):
            self._device.make_current()
            for state, done in self._states:
                done.synchronize()
                done.close()
                self._library.nvjpegJpegStateDestroy(state)
            self._library.nvjpegDestroy(handle)
        self._states.clear()

    def _check_size(self, data: UInt8Array, image_format: ImageFormat) -> None:
        """Ask nvJPEG itself for the size: it writes as much as it reads there, unchecked."""
        components, subsampling = ctypes.c_int(), ctypes.c_int()
        widths, heights = (ctypes.c_int * _MAX_COMPONENTS)(), (ctypes.c_int * _MAX_COMPONENTS)()
        status = self._library.nvjpegGetImageInfo(
            self._handle,
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.size),
            ctypes.byref(components),
            ctypes.byref(subsampling),
            widths,
            heights,
        )
        _check(status, "reading a JPEG's header", data.size)
        expected = (image_format.width, image_format.height)
        if (widths[0], heights[0]) != expected:
            raise ImageError(
                "JPEG cannot be decoded: its header says two sizes",
                expected=f"{expected[0]}x{expected[1]} px",
                got=(widths[0], heights[0]),
            )

    def _take_state(self) -> tuple[ctypes.c_void_p, Event]:
        for state, done in self._states:
            if done.done():
                return state, done
        state = ctypes.c_void_p()
        _check(
            self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(state)),
            "making a decoder's state",
        )
        self._states.append((state, Event()))
        return self._states[-1]


def open_probed(ordinal: int = 0) -> NvJpegDecoder:
    """Open a decoder that has shown on a small picture that it works here.

    Raises:
        CudaError: it does not.
    """
    decoder = NvJpegDecoder(ordinal)
    try:
        apart = _probe(decoder, get_device(ordinal))
        if apart > TOLERANCE_LEVELS:
            raise CudaError(
                "nvJPEG's picture is not libjpeg's",
                expected=f"at most {TOLERANCE_LEVELS} levels apart in the mean",
                got=apart,
            )
    except EdgePerceptionError:
        decoder.close()
        raise
    return decoder


def _probe(decoder: NvJpegDecoder, device: Device) -> float:
    """Decode a gradient on the GPU and the CPU; return the mean difference in levels."""
    image_format = ImageFormat.packed("bgr8", 48, 64)
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", np.dstack([ramp, 255 - ramp, 2 * ramp]))
    data = np.asarray(encoded, np.uint8).reshape(-1)
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR).reshape(-1)
    got = np.zeros(image_format.size_bytes, np.uint8)
    stream = Stream(device)
    target = int(checked(driver.cuMemAlloc(got.size), "allocating"))
    try:
        decoder.enqueue(data, image_format, target, stream.handle)
        stream.synchronize()
        checked(driver.cuMemcpyDtoH(got.ctypes.data, target, got.size), "downloading")
    finally:
        checked(driver.cuMemFree(target), "freeing")
        stream.close()
    return float(np.abs(got.astype(np.float32) - expected.astype(np.float32)).mean())


def _check(status: int, doing: str, size_bytes: int = 0) -> None:
    if status == _Status.SUCCESS:
        return
    name = _Status(status).name if status in list(_Status) else str(status)
    if status in _FAULTS_OF_THE_FILE:
        raise ImageError(f"JPEG cannot be decoded: nvJPEG says {name}", got=f"{size_bytes} bytes")
    raise CudaError(f"nvJPEG failed while {doing}", got=name)

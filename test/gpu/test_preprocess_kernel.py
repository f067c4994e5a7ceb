"""The preprocessing kernel's own source, on the CPU, against OpenCV's route."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from kernel_emulation import by_reference, compile_for_cpu

from edge_perception.core.image import ENCODINGS, ImageFormat
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import ImageError
from edge_perception.gpu.preprocess import ImageRegion, Preprocessor
from edge_perception.gpu.preprocess_cuda import (
    MAX_BATCH,
    DeviceRegion,
    RegionArgument,
    TargetArgument,
    regions_argument,
    target_argument,
)

Run = Callable[[Preprocessing, Sequence[ImageRegion]], np.ndarray]

_LAUNCHER = """
extern "C" void run(const Regions* regions, const Target* target) {
  const Dim grid = {(target->width + 31) / 32, (target->height + 7) / 8, target->batch};
  const Dim block = {32, 8, 1};
  FOR_EACH_THREAD(grid, block) preprocess(*regions, *target);
}
extern "C" int region_bytes() { return sizeof(Region); }
extern "C" int target_bytes() { return sizeof(Target); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("kernel")
    return compile_for_cpu("preprocess.cu", _LAUNCHER, folder)


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Run:
    """The kernel's source run on the CPU, and the kernel itself where there is a GPU."""

    def preprocess(spec: Preprocessing, regions: Sequence[ImageRegion]) -> np.ndarray:
        tensor = np.full((len(regions), *spec.input_shape[1:]), 77, spec.dtype)
        placed = [DeviceRegion(r.pixels.ctypes.data, r.format, r.crop) for r in regions]
        size = (spec.height, spec.width)
        boxes = [Letterbox.fit(r.size, size, spec.pad_align) for r in regions]
        arguments = regions_argument(placed, boxes)
        target = target_argument(spec, tensor.ctypes.data, len(regions))
        library.run(*by_reference(arguments, target))
        return tensor

    return preprocess if request.param == "cpu" else run_on_gpu


def run_on_gpu(spec: Preprocessing, regions: Sequence[ImageRegion]) -> np.ndarray:
    from gpu_arrays import download, upload

    from edge_perception.gpu.cuda import Stream, get_device
    from edge_perception.gpu.preprocess_cuda import CudaPreprocessor

    stream = Stream(get_device())
    tensor = np.full((len(regions), *spec.input_shape[1:]), 77, spec.dtype)
    placed = [DeviceRegion(upload(r.pixels), r.format, r.crop) for r in regions]
    out = upload(tensor)
    CudaPreprocessor(spec).launch(placed, out, stream.handle)
    stream.synchronize()
    return download(out, tensor)


def image_format(encoding: str, height: int, width: int, padding: int = 0) -> ImageFormat:
    packed = ImageFormat.packed(encoding, height, width)
    return ImageFormat(encoding, height, width, packed.step + padding)


def noise(fmt: ImageFormat, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, fmt.size_bytes, np.uint8)


def assert_within_one_level(run: Run, spec: Preprocessing, regions: Sequence[ImageRegion]) -> None:
    got = run(spec, regions).astype(np.float64)
    expected = Preprocessor(spec).batch(regions)[0].astype(np.float64)
    level = spec.scale / min(spec.std)
    worst = np.unravel_index(np.abs(got - expected).argmax(), got.shape)
    assert np.abs(got - expected).max() <= level * 1.001, (
        f"at {worst}: kernel {got[worst]}, OpenCV {expected[worst]}, one level is {level}"
    )


def test_structures_have_the_kernels_sizes(library: ctypes.CDLL) -> None:
    assert library.region_bytes() == ctypes.sizeof(RegionArgument) == 64
    assert library.target_bytes() == ctypes.sizeof(TargetArgument)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((96, 160), "same size: no resize at all"),
        ((288, 480), "exactly a third: taps with weight zero"),
        ((192, 320), "exactly half: OpenCV averages instead"),
        ((270, 482), "uneven reduction"),
        ((48, 80), "enlarged twice"),
        ((30, 130), "padding above and below"),
        ((200, 22), "padding left and right"),
        ((4, 4), "tiny"),
    ],
)
def test_every_encoding_matches_opencv(
    run: Run, encoding: str, size: tuple[int, int], why: str
) -> None:
    fmt = image_format(encoding, *size, padding=6)
    spec = Preprocessing(96, 160, scale=1.0)
    assert_within_one_level(run, spec, [ImageRegion(noise(fmt, seed=1), fmt)])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("pad_align", ["center", "top_left"])
def test_layout_colour_and_alignment_follow_the_manifest(
    run: Run, layout: str, color: str, pad_align: str
) -> None:
    fmt = image_format("rgb8", 50, 70)
    spec = Preprocessing(
        64, 64, color, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 9, pad_align, layout
    )
    assert_within_one_level(run, spec, [ImageRegion(noise(fmt, 2), fmt)])


def test_half_precision_is_the_rounded_single_precision(run: Run) -> None:
    fmt = image_format("bgr8", 50, 70)
    region = [ImageRegion(noise(fmt, 3), fmt)]
    single = run(Preprocessing(64, 64), region)
    half = run(Preprocessing(64, 64, dtype="float16"), region)
    assert (half == single.astype(np.float16)).all()


def test_uint8_output_is_the_rounded_value(run: Run) -> None:
    fmt = image_format("bgr8", 50, 70)
    region = [ImageRegion(noise(fmt, 3), fmt)]
    single = run(Preprocessing(64, 64, scale=1.0), region)
    whole = run(Preprocessing(64, 64, scale=1.0, dtype="uint8"), region)
    assert (whole == np.rint(single)).all()


def test_batch_mixes_encodings_sizes_and_crops(run: Run) -> None:
    formats = [
        image_format(encoding, 40 + 2 * i, 60 + 4 * i, i) for i, encoding in enumerate(ENCODINGS)
    ]
    whole = [ImageRegion(noise(fmt, i), fmt) for i, fmt in enumerate(formats)]
    crops = [ImageRegion(noise(fmt, i), fmt, (7, 3, 48, 29)) for i, fmt in enumerate(formats)]
    spec = Preprocessing(48, 80, scale=1.0)
    assert_within_one_level(run, spec, (whole + crops)[:MAX_BATCH])


@pytest.mark.parametrize("encoding", ["rgb8", "nv12", "bayer_grbg8"])
def test_kernel_never_reads_beyond_the_image(library: ctypes.CDLL, run: Run, encoding: str) -> None:
    """A guard of 255 behind a black image would show in the output."""
    fmt = image_format(encoding, 30, 44)
    buffer = np.full(fmt.size_bytes + 4096, 255, np.uint8)
    pixels = buffer[2048 : 2048 + fmt.size_bytes]
    pixels[:] = 128 if encoding == "nv12" else 0
    got = run(Preprocessing(60, 88, scale=1.0), [ImageRegion(pixels, fmt)])
    assert np.ptp(got) == 0


def test_bayer_image_without_an_inside_is_refused() -> None:
    with pytest.raises(ImageError, match="Bayer image is too small"):
        DeviceRegion(0, ImageFormat.packed("bayer_rggb8", 2, 9))

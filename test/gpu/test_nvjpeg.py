"""JPEGs decoded on the GPU, against libjpeg's pictures."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver")
pytestmark = pytest.mark.gpu

from cuda.bindings import driver

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import CudaError, ImageError
from edge_perception.gpu.cuda import Stream, checked, get_device
from edge_perception.gpu.decode_image import choose_jpeg_decoder
from edge_perception.gpu.nvjpeg import NvJpegDecoder, open_probed
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named

ROOT = Path(__file__).parent.parent.parent
SAMPLED = cv2.IMWRITE_JPEG_SAMPLING_FACTOR


@pytest.fixture(scope="module")
def decoder() -> Iterator[NvJpegDecoder]:
    try:
        opened = open_probed()
    except CudaError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()
    opened.close()


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with a few edges, as a camera sees them."""
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 4 : height // 2, width // 4 : width // 2] = (20, 200, 90)
    return image


def encode(image: np.ndarray, *options: int) -> np.ndarray:
    return np.asarray(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1]
    ).reshape(-1)


def decode(decoder: NvJpegDecoder, data: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    stream = Stream(get_device())
    got = np.zeros(image_format.size_bytes, np.uint8)
    target = int(checked(driver.cuMemAlloc(got.size), "allocating"))
    try:
        decoder.enqueue(data, image_format, target, stream.handle)
        stream.synchronize()
        checked(driver.cuMemcpyDtoH(got.ctypes.data, target, got.size), "downloading")
    finally:
        stream.close()
        checked(driver.cuMemFree(target), "freeing")
    return got.reshape(image_format.height, image_format.width, 3)


def levels_apart(got: np.ndarray, data: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(int) - cv2.imdecode(data, cv2.IMREAD_COLOR))


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (123, 77), (16, 16)])
@pytest.mark.parametrize(
    ("options", "mean"),
    [
        pytest.param((), 0.5, id="4:2:0"),
        pytest.param((SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422), 2.0, id="4:2:2"),
        pytest.param((SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), 0.5, id="4:4:4"),
        pytest.param((cv2.IMWRITE_JPEG_RST_INTERVAL, 4), 0.5, id="restart markers"),
    ],
)
def test_picture_is_libjpegs_within_a_few_levels(
    decoder: NvJpegDecoder, size: tuple[int, int], options: tuple[int, ...], mean: float
) -> None:
    data = encode(picture(*size), *options)
    assert decoder.can_decode(data)
    apart = levels_apart(decode(decoder, data, ImageFormat.packed("bgr8", *size)), data)
    print(f"{size} {options}: {apart.mean():.3f}, {np.percentile(apart, 99.9)}, {apart.max()}")
    assert apart.mean() <= mean


def test_grey_picture_has_three_equal_channels(decoder: NvJpegDecoder) -> None:
    data = encode(picture(120, 160)[..., 1])
    got = decode(decoder, data, ImageFormat.packed("bgr8", 120, 160))
    assert (got[..., 0] == got[..., 1]).all()
    assert (got[..., 1] == got[..., 2]).all()
    assert levels_apart(got, data).max() <= 2


def test_damaged_files_never_hurt_the_gpu() -> None:
    """In a process of its own, which one of them would end."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "test" / "data" / "jpeg_wounds.py"), "3000"],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    became = ast.literal_eval(run.stdout)
    assert min(became["decoded"], became["left to the CPU"]) > 200


def test_decoding_does_not_wait_for_the_work_before_it(decoder: NvJpegDecoder) -> None:
    device, data = get_device(), encode(picture(480, 640))
    image_format = ImageFormat.packed("bgr8", 480, 640)
    stream, busy_bytes = Stream(device), 1 << 30
    target = int(checked(driver.cuMemAlloc(image_format.size_bytes), "allocating"))
    busy = int(checked(driver.cuMemAlloc(busy_bytes), "allocating"))
    decoder.enqueue(data, image_format, target, stream.handle)  # makes its buffers
    stream.synchronize()
    for _ in range(200):
        checked(driver.cuMemsetD8Async(busy, 1, busy_bytes, stream.handle), "keeping it busy")
    for _ in range(3):
        decoder.enqueue(data, image_format, target, stream.handle)
    (status,) = driver.cuStreamQuery(stream.handle)
    stream.synchronize()
    got = np.empty(image_format.size_bytes, np.uint8)
    checked(driver.cuMemcpyDtoH(got.ctypes.data, target, got.size), "downloading")
    checked(driver.cuMemFree(busy), "freeing")
    checked(driver.cuMemFree(target), "freeing")
    stream.close()
    assert status == driver.CUresult.CUDA_ERROR_NOT_READY, "enqueue waited for the stream"
    assert levels_apart(got.reshape(480, 640, 3), data).mean() <= 0.5


@pytest.mark.parametrize("transport", ["cuda_in_process", "cuda_ipc"])
def test_slots_are_filled_on_the_gpu_and_held_frames_stay(
    decoder: NvJpegDecoder, transport: str
) -> None:
    image_format = ImageFormat.packed("bgr8", 96, 128)
    files = [encode(np.full((96, 128, 3), 10 * i, np.uint8)) for i in range(20)]
    spec = RingSpec("test", slot_bytes=image_format.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:

        def write(sequence: int) -> None:
            def enqueue(pointer: int, stream: int) -> FrameInfo:
                decoder.enqueue(files[sequence], image_format, pointer, stream)
                now_ns = time.monotonic_ns()
                return FrameInfo(sequence, 0, "camera", image_format, now_ns, 0, now_ns)

            told = ring.write_on_device(image_format, enqueue)
            assert told is not None
            assert told.sequence == sequence

        write(1)
        held = ring.acquire_newest()
        assert held is not None
        for sequence in range(2, 20):
            write(sequence)
            with ring.acquire_newest(sequence - 1) as lease:  # type: ignore[union-attr]
                assert np.abs(lease.to_host().astype(int) - 10 * sequence).max() <= 2
        assert np.abs(held.to_host().astype(int) - 10).max() <= 2
        held.release()


def test_file_that_the_library_refuses_is_never_seen_in_the_ring(decoder: NvJpegDecoder) -> None:
    image_format = ImageFormat.packed("bgr8", 96, 128)
    data = encode(picture(96, 128))
    with FrameRing.create(RingSpec("test"), transport_named("cuda_in_process")) as ring:

        def enqueue(pointer: int, stream: int) -> FrameInfo:
            decoder.enqueue(data[:60].copy(), image_format, pointer, stream)
            raise AssertionError("60 bytes were decoded")

        for _ in range(8):
            with pytest.raises(ImageError, match="JPEG cannot be decoded"):
                ring.write_on_device(image_format, enqueue)
        assert ring.acquire_newest() is None
        assert ring.counters.written == 0


def test_choice_says_who_decodes_and_why() -> None:
    on_host = choose_jpeg_decoder(device_memory=False)
    assert (on_host.name, on_host.why) == ("simplejpeg", "frames lie in host memory")
    on_gpu = choose_jpeg_decoder(device_memory=True)
    assert on_gpu.why
    if on_gpu.on_gpu is not None:
        assert on_gpu.name == "nvjpeg"
        on_gpu.on_gpu.close()

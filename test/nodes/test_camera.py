"""What the camera node makes of sound messages, and what it tells of its source."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticStatus
from emulated_gpu import EmulatedTransport
from pictures import GREEN, picture, raw_fields
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from edge_perception.core.image import ImageFormat
from edge_perception.gpu import transports
from edge_perception.gpu.decode_image import JpegChoice, decode_into
from edge_perception.gpu.jpeg_header import is_plain_jpeg
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.frame_streams import LocalFrameStream
from edge_perception.nodes.messages import to_header

PERIOD_NS = 33_000_000


@pytest.fixture
def camera(ros: None) -> Iterator[CameraNode]:
    node = CameraNode("camera_by_itself")
    node.set_parameters([Parameter("image_transport", value="raw")])
    node.trigger_configure()
    node.trigger_activate()
    yield node
    node.stop()
    node.destroy_node()


def image(stamp_ns: int, **fields: Any) -> Image:
    return Image(header=to_header(stamp_ns, "camera"), **{**raw_fields(picture(GREEN)), **fields})


def now_ns(node: CameraNode) -> int:
    return int(node.get_clock().now().nanoseconds)


def test_frame_carries_its_messages_bytes_format_and_times(camera: CameraNode) -> None:
    before_ns = now_ns(camera)
    message = image(7_000_000_001, **raw_fields(picture(GREEN), "bgr8", 5))
    camera._on_image(message, {})
    lease = LocalFrameStream(camera).acquire_newest()
    assert lease is not None
    with lease:
        info = lease.info
        assert bytes(lease.pixels) == bytes(message.data)
        assert info.format == ImageFormat("bgr8", 128, 128, 128 * 3 + 5)
        assert (info.sequence, info.stamp_ns, info.frame_id) == (1, 7_000_000_001, "camera")
        assert before_ns <= info.receive_stamp_ns <= now_ns(camera)
        assert info.receive_ns <= info.decoded_ns


def test_readers_are_woken_once_a_written_frame_and_not_for_a_rejected_one(
    camera: CameraNode,
) -> None:
    woken: list[int] = []
    stream = LocalFrameStream(camera)
    stream.start(camera, lambda: woken.append(1), eager=True)
    camera._on_image(image(1), {})
    camera._on_image(image(2, encoding="smoke"), {})
    camera._on_image(image(3), {})
    assert len(woken) == 2
    stream.stop()
    camera._on_image(image(4), {})
    assert len(woken) == 2


def test_stream_gives_the_newest_frame_once_and_counts_those_it_skipped(
    camera: CameraNode,
) -> None:
    stream = LocalFrameStream(camera)
    assert stream.acquire_newest() is None
    seen = []
    for burst in (1, 3, 2):
        for _ in range(burst):
            camera._on_image(image(1), {})
        lease = stream.acquire_newest()
        assert lease is not None
        with lease:
            seen.append(lease.sequence)
        assert stream.acquire_newest() is None
    assert seen == [1, 4, 6]
    assert stream.skipped == 3


def test_rejected_frames_are_nobodys_drops(camera: CameraNode) -> None:
    stream = LocalFrameStream(camera)
    for encoding in ("rgb8", "smoke", "smoke", "rgb8"):
        camera._on_image(image(1, encoding=encoding), {})
        lease = stream.acquire_newest()
        if lease is not None:
            lease.release()
    camera._on_image(image(1, data=raw_fields(picture())["data"][:-1]), {})  # too short
    camera._on_image(image(1), {})
    lease = stream.acquire_newest()
    assert lease is not None
    lease.release()
    assert stream.skipped == 0


def test_frame_that_is_held_is_not_overwritten(camera: CameraNode) -> None:
    camera._on_image(image(1), {})
    held = LocalFrameStream(camera).acquire_newest()
    assert held is not None
    before = np.array(held.pixels)
    for _ in range(20):
        camera._on_image(image(2, **raw_fields(picture((9, 9, 9)))), {})
    assert np.array_equal(held.pixels, before)
    held.release()


def test_losses_before_the_node_are_told_with_what_mends_them(camera: CameraNode) -> None:
    start_ns = now_ns(camera)
    for i in range(40):
        if i not in (20, 21, 30):
            camera._on_image(image(start_ns + i * PERIOD_NS), {})
    level, message = camera.health()
    assert level == DiagnosticStatus.WARN
    assert "3 frames were lost" in message
    assert "config/fastdds.xml" in message
    assert camera.counters()["lost_before_camera"] == 3


def numbered(number: int) -> dict[str, int]:
    return {"publication_sequence_number": number}


def test_holes_in_the_publishers_numbers_are_losses_whatever_the_stamps(camera: CameraNode) -> None:
    start_ns = now_ns(camera)
    for i, number in enumerate((1, 2, 5, 6, 1, 2)):  # two are lost, then the driver starts anew
        camera._on_image(image(start_ns + i * PERIOD_NS), numbered(number))
    assert camera.counters()["lost_before_camera"] == 2


def test_numbers_of_two_publishers_on_one_topic_are_no_losses(camera: CameraNode) -> None:
    drivers = [rclpy.create_node(f"driver_{side}") for side in ("left", "right")]
    try:
        for driver in drivers:
            driver.create_publisher(Image, "image", 1)
        deadline = time.monotonic() + 10
        while camera.count_publishers("/image") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        start_ns = now_ns(camera)
        for i in range(20):
            number = i // 2 + (1000 if i % 2 else 1)
            camera._on_image(image(start_ns + i * PERIOD_NS), numbered(number))
        assert camera.counters()["lost_before_camera"] == 0
    finally:
        for driver in drivers:
            driver.destroy_node()


def test_steady_camera_is_well_and_a_silent_one_is_not(camera: CameraNode) -> None:
    assert camera.health() == (DiagnosticStatus.WARN, "no image yet")
    start_ns = now_ns(camera)
    for i in range(20):
        camera._on_image(image(start_ns + i * PERIOD_NS), {})
    assert camera.health() == (DiagnosticStatus.OK, "active")


def test_camera_that_falls_silent_is_told_and_old_losses_no_longer_are(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera._on_image(image(1, encoding="smoke"), {})
    assert camera.health()[0] == DiagnosticStatus.WARN
    monkeypatch.setattr(camera, "_last_receive_s", time.monotonic() - 60)
    assert camera.health() == (DiagnosticStatus.WARN, "no image for 60 s")
    monkeypatch.setattr(camera.lately, "_clock", lambda: time.monotonic() + 60)
    camera._on_image(image(2), {})
    assert camera.health() == (DiagnosticStatus.OK, "active")
    assert camera.counters()["rejected"] == 1


def test_camera_finds_its_publisher_before_simulated_time_begins(ros: None) -> None:
    simulated = [Parameter("use_sim_time", value=True)]
    node = CameraNode("camera_in_simulation", "late_image", parameter_overrides=simulated)
    node.trigger_configure()
    node.trigger_activate()
    world = rclpy.create_node("late_world")
    world.create_publisher(Image, "late_image", 1)
    while node._subscription is None:
        rclpy.spin_once(node, timeout_sec=1)
    assert node.get_clock().now().nanoseconds == 0, "nobody has published /clock"
    node.stop()
    node.destroy_node()
    world.destroy_node()


def test_rejected_images_are_told(camera: CameraNode) -> None:
    camera._on_image(image(1, encoding="smoke"), {})
    level, message = camera.health()
    assert level == DiagnosticStatus.WARN
    assert "unknown image encoding" in message


def test_odd_stamps_are_counted_and_their_images_used(camera: CameraNode) -> None:
    start_ns = now_ns(camera)
    for stamp_ns in (start_ns, start_ns - 1, 0, start_ns, start_ns + 10**10, -(10**9)):
        camera._on_image(image(stamp_ns), {})
    counters = camera.counters()
    told = {name: counters[f"stamps_{name}"] for name in ("zero", "backward", "future")}
    assert told == {"zero": 1, "backward": 2, "future": 1}
    assert counters["ring_written"] == 6


def test_messages_after_cleanup_are_nobodys(camera: CameraNode) -> None:
    camera.trigger_deactivate()
    camera.trigger_cleanup()
    camera._on_image(image(1), {})
    assert camera.counters()["received"] == 0
    assert LocalFrameStream(camera).acquire_newest() is None


def test_messages_are_taken_only_while_a_reader_waits(camera: CameraNode) -> None:
    subscription = camera._subscription
    assert camera.demand.can_execute(subscription), "no reader: taken for those who cannot ask"
    stream = LocalFrameStream(camera)
    stream.start(camera, lambda: None, eager=False)
    assert camera.demand.can_execute(subscription), "the first frame needs no asking"
    camera._on_image(image(1), {})
    assert not camera.demand.can_execute(subscription), "served"
    stream.want_next()
    assert camera.demand.can_execute(subscription)
    camera._on_image(image(2, encoding="smoke"), {})
    assert camera.demand.can_execute(subscription), "a rejected image serves nobody"
    stream.stop()
    camera._on_image(image(3), {})
    assert camera.demand.can_execute(subscription), "nobody left to ask"


class LeftWaiting:
    """A subscription in place of the node's, where messages wait that nobody listened for."""

    msg_type = Image
    topic_name = "image"

    def __init__(self, camera: CameraNode) -> None:
        self.handle = self
        self.callback = camera._on_image
        self.messages: list[tuple[Image, dict[str, int]]] = []

    def __enter__(self) -> LeftWaiting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take_message(self, _type: object, _raw: bool) -> tuple[Image, dict[str, int]] | None:
        return self.messages.pop() if self.messages else None


def asking_stream(
    camera: CameraNode, waiting: LeftWaiting, monkeypatch: pytest.MonkeyPatch
) -> LocalFrameStream:
    """A reader that asks for each frame, of a camera whose messages are left ``waiting``."""
    monkeypatch.setattr(camera, "_subscription", waiting)
    stream = LocalFrameStream(camera)
    stream.start(camera, lambda: None, eager=False)
    return stream


def test_what_comes_while_no_reader_asks_is_superseded_and_not_lost(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = LeftWaiting(camera)
    stream = asking_stream(camera, waiting, monkeypatch)
    camera._on_image(image(1), {"publication_sequence_number": 10})
    waiting.messages = [(image(2), {"publication_sequence_number": 14})]
    stream.want_next()  # takes the one that waits: three before it were replaced
    stream.want_next()  # none waits: the executor listens from now on
    camera._on_image(image(3), {"publication_sequence_number": 17})
    counters = camera.counters()
    assert counters["received"] == 3
    assert (counters["superseded"], counters["lost_before_camera"]) == (3, 2)


def test_a_reader_that_asks_takes_the_waiting_message_itself(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription, waiting = camera._subscription, LeftWaiting(camera)
    stream = asking_stream(camera, waiting, monkeypatch)
    camera._on_image(image(1), {})
    waiting.messages = [(image(2), {})]
    stream.want_next()
    assert camera.counters()["ring_written"] == 2
    assert not camera.demand.can_execute(subscription), "served: the executor need not listen"
    waiting.messages = [(image(3, encoding="smoke"), {})]
    stream.want_next()
    assert camera.demand.can_execute(subscription), "a rejected image serves nobody"
    stream.stop()


def test_error_that_nobody_foresaw_fails_the_camera_and_not_the_reader_that_asked(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription, waiting = camera._subscription, LeftWaiting(camera)
    stream = asking_stream(camera, waiting, monkeypatch)
    camera._on_image(image(1), {})
    monkeypatch.setattr(camera, "_write_raw", lambda *_: 1 / 0)
    waiting.messages = [(image(2), {})]
    stream.want_next()
    assert camera.demand.can_execute(subscription), "the reader still wants a frame"
    monkeypatch.setattr(camera, "_subscription", subscription)
    while camera._configured:
        rclpy.spin_once(camera, timeout_sec=5)  # the camera's own thread
    assert camera._health() == (DiagnosticStatus.ERROR, camera._broken)
    assert "ZeroDivisionError" in camera._broken
    stream.stop()


class HostJpegs:
    """A decoder "on the GPU" that leaves the work to the CPU, as far as the camera can tell."""

    name = "nvjpeg"

    def __init__(self) -> None:
        self.decoded = 0
        self.closed = False

    def can_decode(self, data: np.ndarray) -> bool:
        return is_plain_jpeg(data)

    def enqueue(
        self, data: np.ndarray, image_format: ImageFormat, pointer: int, stream: int
    ) -> None:
        memory = (ctypes.c_uint8 * image_format.size_bytes).from_address(pointer)
        decode_into(np.frombuffer(memory, np.uint8), data, image_format)
        self.decoded += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def camera_on_gpu(
    ros: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[CameraNode, HostJpegs]]:
    decoder = HostJpegs()
    monkeypatch.setitem(transports._TRANSPORTS, "cuda_in_process", EmulatedTransport)
    monkeypatch.setattr(
        "edge_perception.nodes.camera.choose_jpeg_decoder",
        lambda *, device_memory: JpegChoice(decoder if device_memory else None, "as a test has it"),
    )
    node = CameraNode("camera_on_gpu")
    node.set_parameters([Parameter("frame_transport", value="cuda_in_process")])
    node.trigger_configure()
    node.trigger_activate()
    yield node, decoder
    node.stop()
    node.destroy_node()


def compressed(*options: int, kept: int | None = None) -> CompressedImage:
    data = cv2.imencode(".jpg", picture(GREEN), list(options))[1].tobytes()[:kept]
    return CompressedImage(header=to_header(1, "camera"), format="jpeg", data=data)


def test_jpegs_are_decoded_on_the_gpu_where_frames_lie_there(
    camera_on_gpu: tuple[CameraNode, HostJpegs],
) -> None:
    camera, decoder = camera_on_gpu
    stream = LocalFrameStream(camera)
    for number, message in enumerate(
        (compressed(), compressed(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), 1
    ):
        camera._on_compressed_image(message, {})
        lease = stream.acquire_newest()
        assert lease is not None
        with lease:
            assert (lease.sequence, lease.info.format.encoding) == (number, "bgr8")
            expected = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(lease.to_host().astype(int) - expected.reshape(-1)).max() <= 2
    counters = camera.counters()
    assert (counters["jpeg_decoder"], counters["jpeg_decoder_why"]) == (
        "nvjpeg",
        "as a test has it",
    )
    assert decoder.decoded == counters["jpegs_decoded_on_gpu"] == 1  # the progressive one is not
    camera.trigger_deactivate()
    camera.trigger_cleanup()
    assert decoder.closed


def test_truncated_jpeg_is_refused_in_the_same_words_on_both(
    camera: CameraNode, camera_on_gpu: tuple[CameraNode, HostJpegs]
) -> None:
    on_gpu, decoder = camera_on_gpu
    for node in (camera, on_gpu):
        node._on_compressed_image(compressed(kept=400), {})
        assert node.counters()["rejected"] == 1
        assert LocalFrameStream(node).acquire_newest() is None
    told = [node.counters()["last_rejection"] for node in (camera, on_gpu)]
    assert told[0] == told[1]
    assert "JPEG cannot be decoded" in str(told[0])
    assert decoder.decoded == 0


def test_compressed_frame_reaches_the_ring_by_one_decoding(camera: CameraNode) -> None:
    camera._on_compressed_image(compressed(), {})
    lease = LocalFrameStream(camera).acquire_newest()
    assert lease is not None
    with lease:
        expected = cv2.imdecode(np.frombuffer(compressed().data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(lease.pixels.astype(int) - expected.reshape(-1)).max() <= 2
    counters = camera.counters()
    assert counters["jpeg_decoder"] == "simplejpeg"
    assert counters["jpeg_decoder_why"] == "frames lie in host memory"

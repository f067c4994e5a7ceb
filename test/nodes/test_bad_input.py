"""Whatever a camera sends, the node lives on and counts it.

Ten thousand malformed messages go straight into the callbacks of a live camera node, hundreds
more over DDS into a running container, some of them not even messages.
"""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import BLUE, GREEN, RED, encode_file, picture, raw_fields, to_array
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_perception.core.image import ENCODINGS
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.frame_streams import LocalFrameStream

MESSAGES = 10_000
PICTURE = picture(GREEN)
FILES = {suffix: bytes(encode_file(PICTURE, suffix)) for suffix in (".jpg", ".png")}
STRINGS = ["", " ", "rgb8 ", "RGB8", "rgb16", "32FC1", "bayer_rggb16", "jpeg", "\t\n", "\x7f"]
STRINGS += ["кодировка", "图像", "🤖" * 50, "x" * 5000, "../../etc", "%s%n", "{0}", "\ufffd"]


def any_header(chance: random.Random) -> Header:
    header = Header(frame_id=chance.choice([*STRINGS, "camera", "camera"]))
    header.stamp.sec = chance.choice([0, 1, -1, -(2**31), 2**31 - 1, int(time.time())])
    header.stamp.nanosec = chance.choice([0, 1, 999_999_999, 10**9, 2**32 - 1])
    return header


def unknown_encoding(chance: random.Random, fields: dict[str, Any]) -> None:
    fields["encoding"] = chance.choice(STRINGS)


def wrong_length(chance: random.Random, fields: dict[str, Any]) -> None:
    data = fields["data"]
    length = chance.choice([0, 1, len(data) // 2, len(data) - 1, len(data) + 1, 3 * len(data)])
    fields["data"] = to_array((bytes(data) * 3)[:length])


def wrong_step(chance: random.Random, fields: dict[str, Any]) -> None:
    fields["step"] = chance.choice([0, 1, fields["step"] - 1, fields["step"] + 1, 2**32 - 1])


def wrong_sides(chance: random.Random, fields: dict[str, Any]) -> None:
    sides = [0, 1, 3, 16384, 16385, 2**31, 2**32 - 1]
    fields[chance.choice(["height", "width"])] = chance.choice(sides)


def empty(chance: random.Random, fields: dict[str, Any]) -> None:
    fields.update(height=0, width=0, step=0, data=to_array(b""))


def ultra_high_definition(chance: random.Random, fields: dict[str, Any]) -> None:
    fields.update(encoding="rgb8", height=4320, width=7680, step=7680 * 3)


def big_endian(chance: random.Random, fields: dict[str, Any]) -> None:
    fields["is_bigendian"] = chance.choice([1, 2, 255])


WOUNDS = (
    unknown_encoding,
    wrong_length,
    wrong_step,
    wrong_sides,
    empty,
    ultra_high_definition,
    big_endian,
)


def malformed_image(chance: random.Random) -> Image:
    """A raw image with one to three things wrong; by chance the wounds may heal each other."""
    padding = chance.choice([0, 0, 5])
    fields = dict(RAW[chance.choice(ENCODINGS), padding])
    for wound in chance.sample(WOUNDS, chance.choice([1, 1, 2, 3])):
        wound(chance, fields)
    return Image(header=any_header(chance), **fields)


RAW = {
    (encoding, padding): raw_fields(PICTURE, encoding, padding)
    for encoding in ENCODINGS
    for padding in (0, 5)
}


def malformed_file(chance: random.Random) -> CompressedImage:
    """A JPEG or PNG that is cut, overwritten, swollen, or no such file at all."""
    data = bytearray(FILES[chance.choice([".jpg", ".png"])])
    match chance.randrange(5):
        case 0:
            data = data[: chance.randrange(len(data))]
        case 1:
            for _ in range(chance.randint(1, 30)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 2:
            data = bytearray(hostile_size(bytes(data), chance))
        case 3:
            data = bytearray(chance.randbytes(chance.randrange(300)))
        case 4:
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randint(1, 200))
    header = any_header(chance)
    return CompressedImage(header=header, format=chance.choice(STRINGS), data=to_array(bytes(data)))


def hostile_size(data: bytes, chance: random.Random) -> bytes:
    """The same file, but its header claims a size that no memory holds."""
    side = chance.choice([0, 16384, 65535])
    if data.startswith(b"\x89PNG"):
        return data[:16] + struct.pack(">II", side << 10, side << 10) + data[24:]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


@pytest.fixture
def camera(ros: None) -> Iterator[CameraNode]:
    """A live camera node of this process."""
    node = CameraNode("camera_under_fire")
    node.set_parameters([Parameter("image_transport", value="raw")])
    node.trigger_configure()
    node.trigger_activate()
    node.get_logger().set_level(50)
    yield node
    node.stop()
    node.destroy_node()


def assert_all_counted(counters: Any, received: int) -> None:
    assert counters["received"] == received
    lost = counters["ring_dropped_all_slots_leased"]
    assert counters["received"] == counters["rejected"] + counters["ring_written"] + lost


def test_ten_thousand_malformed_messages_are_counted_and_end_nothing(camera: CameraNode) -> None:
    chance = random.Random(20_26)
    stream = LocalFrameStream(camera)
    for i in range(MESSAGES):
        if i % 3:
            camera._on_image(malformed_image(chance), {})
        else:
            camera._on_compressed_image(malformed_file(chance), {})
        lease = stream.acquire_newest()
        if lease is not None:  # whatever came through can be read as its format says
            with lease:
                assert lease.pixels.size <= lease.info.format.size_bytes
    counters = dict(camera.counters())
    assert_all_counted(counters, MESSAGES)
    assert counters["rejected"] > 0.8 * MESSAGES
    assert counters["stamps_zero"] > 0
    assert counters["stamps_backward"] > 0
    assert counters["stamps_future"] > 0
    assert len(str(counters["last_rejection"])) < 2000

    camera._on_image(Image(header=Header(frame_id="good"), **raw_fields(PICTURE)), {})
    lease = stream.acquire_newest()
    assert lease is not None
    with lease:
        assert lease.info.frame_id == "good"
        assert np.array_equal(lease.pixels.reshape(PICTURE.shape), PICTURE)


@pytest.mark.parametrize(
    ("wound", "told"),
    [
        (lambda f: f.update(encoding="rgb16"), "unknown image encoding"),
        (lambda f: f.update(data=f["data"][:-1]), "wrong number of bytes"),
        (lambda f: f.update(data=f["data"] + f["data"][:1]), "wrong number of bytes"),
        (lambda f: f.update(step=f["step"] - 1), "step is shorter"),
        (lambda f: f.update(step=f["step"] + 1), "wrong number of bytes"),
        (lambda f: f.update(height=0), "height out of range"),
        (lambda f: f.update(width=0, step=0), "width out of range"),
        (lambda f: f.update(height=4320, width=7680, step=23040), "too large"),
        (lambda f: f.update(is_bigendian=1), "big-endian"),
    ],
)
def test_each_mistake_is_told_by_its_name(
    camera: CameraNode, wound: Callable[[dict[str, Any]], None], told: str
) -> None:
    fields = raw_fields(PICTURE)
    wound(fields)
    camera._on_image(Image(header=Header(frame_id="camera"), **fields), {})
    counters = camera.counters()
    assert counters["rejected"] == 1
    assert told in str(counters["last_rejection"])
    assert camera.ring is not None
    assert camera.ring.acquire_newest() is None


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"nanosec": 10**9}, "stamp is no time"),
        ({"frame_id": "x" * 1025}, "frame_id is too long"),
    ],
)
def test_header_that_could_not_be_told_unchanged_is_refused(
    camera: CameraNode, header: dict[str, Any], told: str
) -> None:
    made = Header(frame_id=header.get("frame_id", ""))
    made.stamp.nanosec = header.get("nanosec", 0)
    camera._on_image(Image(header=made, **raw_fields(PICTURE)), {})
    assert told in str(camera.counters()["last_rejection"])


def test_big_endian_single_bytes_are_no_mistake(camera: CameraNode) -> None:
    camera._on_image(Image(is_bigendian=1, **raw_fields(PICTURE, "mono8")), {})
    assert camera.counters()["ring_written"] == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    encoding=st.sampled_from(ENCODINGS) | st.text(max_size=12),
    height=st.integers(0, 40),
    width=st.integers(0, 40),
    step=st.integers(0, 130),
    data=st.binary(max_size=400),
    sec=st.integers(-(2**31), 2**31 - 1),
    nanosec=st.integers(0, 2**32 - 1),
)
def test_any_fields_at_all_are_written_or_rejected(
    camera: CameraNode,
    encoding: str,
    height: int,
    width: int,
    step: int,
    data: bytes,
    sec: int,
    nanosec: int,
) -> None:
    before = Counter({k: v for k, v in camera.counters().items() if isinstance(v, int)})
    header = Header()
    header.stamp.sec, header.stamp.nanosec = sec, nanosec
    camera._on_image(
        Image(
            header=header,
            encoding=encoding,
            height=height,
            width=width,
            step=step,
            data=to_array(data),
        ),
        {},
    )
    after = Counter({k: v for k, v in camera.counters().items() if isinstance(v, int)})
    change = after - before
    assert change["received"] == 1
    assert change["rejected"] + change["ring_written"] == 1


# Over DDS.


def assert_alive(running: Any) -> None:
    assert running.container.poll() is None, running.logs()
    for colour in (RED, BLUE):
        answer = running.answer_to(running.send(picture(colour)), running.detections)
        assert len(answer.detections) == 1


def test_malformed_messages_over_dds_end_nothing(running: Any) -> None:
    assert running.set_parameters("camera", max_image_bytes=1 << 20).successful
    chance = random.Random(7)
    publisher = running.publisher(Image, "image")
    before = running.counters("camera")
    for _ in range(400):
        publisher.publish(malformed_image(chance))
        time.sleep(0.003)
    assert_alive(running)
    after = running.counters("camera")
    assert after["received"] - before["received"] > 100
    assert after["rejected"] > before["rejected"]
    assert after["received"] == after["rejected"] + after["ring_written"]


def test_bytes_that_are_no_message_end_nothing(running: Any) -> None:
    chance = random.Random(8)
    good = serialize_message(Image(header=running.next_header(), **raw_fields(PICTURE)))
    publisher = running.publisher(Image, "image")
    for _ in range(100):
        data = bytearray(good[: chance.randrange(4, len(good))])
        for _ in range(chance.randint(0, 20)):
            data[chance.randrange(4, min(len(data), 200))] = chance.randrange(256)
        publisher.publish(bytes(data))
        time.sleep(0.003)
    assert_alive(running)


def test_string_that_is_no_utf8_ends_nothing(running: Any) -> None:
    header = running.next_header(frame_id="AAAAAAAA")
    good = bytes(serialize_message(Image(header=header, **raw_fields(PICTURE))))
    running.publisher(Image, "image").publish(
        good.replace(b"AAAAAAAA", b"\xff\xfe\xc3\x28\x80\x80AA")
    )
    running.spin_for(0.1)
    assert_alive(running)


def test_flood_of_a_thousand_frames_a_second_is_survived_and_counted(running: Any) -> None:
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = running.node.create_publisher(Image, "image", qos)
    running.wait_for(publisher.get_subscription_count)
    message = Image(**raw_fields(PICTURE))
    start, sent = time.monotonic(), 0
    while sent < 3000:
        message.header = running.next_header()
        publisher.publish(message)
        sent += 1
        ahead_s = sent / 1000 - (time.monotonic() - start)
        if ahead_s > 0:
            time.sleep(ahead_s)
    assert_alive(running)
    counters, detector = running.counters("camera"), running.counters("detector")
    assert counters["received"] == counters["rejected"] + counters["ring_written"]
    assert detector["processed"] + detector["dropped"] == counters["ring_written"]
    running.node.destroy_publisher(publisher)

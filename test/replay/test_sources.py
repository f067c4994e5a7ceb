"""Bags of every kind, image folders, videos; and what is wrong with those that cannot be read."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.bags import BagSource
from edge_perception.replay.source import TimedMessage
from edge_perception.replay.sources import open_source


def read_all(where: Path) -> list[TimedMessage]:
    with open_source(str(where)) as source:
        return list(source.messages())


def storage_file(bag: Path) -> Path:
    return next(path for path in bag.iterdir() if path.name != "metadata.yaml")


@pytest.mark.parametrize(
    ("storage", "compression", "version"),
    [
        pytest.param(StoragePlugin.MCAP, CompressionMode.NONE, 9, id="mcap, Jazzy"),
        pytest.param(StoragePlugin.MCAP, CompressionMode.STORAGE, 9, id="mcap, zstd chunks"),
        pytest.param(StoragePlugin.MCAP, CompressionMode.FILE, 8, id="mcap, zstd file"),
        pytest.param(StoragePlugin.MCAP, CompressionMode.MESSAGE, 8, id="mcap, zstd messages"),
        pytest.param(StoragePlugin.SQLITE3, CompressionMode.NONE, 8, id="sqlite3"),
        pytest.param(StoragePlugin.SQLITE3, CompressionMode.FILE, 8, id="sqlite3, zstd file"),
        pytest.param(
            StoragePlugin.SQLITE3, CompressionMode.MESSAGE, 8, id="sqlite3, zstd messages"
        ),
    ],
)
def test_bag_of_each_kind_yields_the_recorded_bytes(
    make_bag: Any, storage: StoragePlugin, compression: CompressionMode, version: int
) -> None:
    played = read_all(make_bag(storage, compression, version))
    images = [m for m in played if m.topic == "/image/compressed"]
    truths = [m for m in played if m.topic == "/ground_truth"]
    assert [bytes(m.cdr) for m in images] == [make_bag.image(i) for i in range(make_bag.FRAMES)]
    assert [bytes(m.cdr) for m in truths] == [make_bag.truth(i) for i in range(make_bag.FRAMES)]
    assert [m.recorded_ns for m in images] == make_bag.times_ns()
    assert {m.topic for m in played} == {"/image/compressed", "/ground_truth"}


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_storage_file_alone_is_a_bag_too(make_bag: Any, storage: StoragePlugin) -> None:
    assert len(read_all(storage_file(make_bag(storage)))) == 2 * make_bag.FRAMES


def test_bag_as_humble_writes_it_is_read(make_bag: Any) -> None:
    """Humble's metadata is version 5, and its sqlite3 files hold no definitions."""
    bag = make_bag(StoragePlugin.SQLITE3, version=8)
    as_humble_wrote_it(bag)
    assert len(read_all(bag)) == 2 * make_bag.FRAMES


def as_humble_wrote_it(bag: Path) -> None:
    database = sqlite3.connect(storage_file(bag))
    with database:
        database.execute("DROP TABLE message_definitions")
        database.execute("UPDATE schema SET schema_version = 3")
        database.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
    database.close()
    metadata = bag / "metadata.yaml"
    content = yaml.safe_load(metadata.read_text())
    info = content["rosbag2_bagfile_information"]
    info["version"] = 5
    for newer in ("custom_data", "ros_distro"):
        del info[newer]
    for topic in info["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]
    metadata.write_text(yaml.safe_dump(content))


def test_messages_can_be_read_again(make_bag: Any) -> None:
    with BagSource(make_bag()) as source:
        assert list(source.messages()) == list(source.messages())


def test_image_times_are_the_recorded_ones(make_bag: Any) -> None:
    with BagSource(make_bag()) as source:
        assert source.image_times_ns() == make_bag.times_ns()


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bag_without_images_says_what_it_holds(make_bag: Any, storage: StoragePlugin) -> None:
    with pytest.raises(BagError, match=r"holds no images: .*'/ground_truth'.*"):
        read_all(make_bag(storage, version=8, images=0))


@pytest.mark.parametrize("kept_share", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_truncated_bag_is_a_bag_error(
    make_bag: Any, storage: StoragePlugin, kept_share: float
) -> None:
    file = storage_file(make_bag(storage, version=8))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept_share)])
    with pytest.raises(BagError, match="cannot be read"):
        read_all(file)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
@pytest.mark.parametrize(
    "data", [b"", b"\x89MCAP0\r\n", b"SQLite format 3\x00", bytes(range(256)) * 64], ids=repr
)
def test_garbage_is_a_bag_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    file = tmp_path / f"garbage{suffix}"
    file.write_bytes(data)
    with pytest.raises(BagError, match="cannot be read"):
        read_all(file)


def test_damage_inside_a_compressed_chunk_is_a_bag_error(make_bag: Any) -> None:
    file = storage_file(make_bag(compression=CompressionMode.STORAGE))
    data = bytearray(file.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")  # zstd's magic
    data[start : start + 40] = b"\xee" * 40
    file.write_bytes(data)
    with pytest.raises(BagError, match="cannot be read"):
        read_all(file)


def test_folder_with_broken_metadata_is_a_bag_error(make_bag: Any) -> None:
    bag = make_bag()
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(BagError, match="cannot be read"):
        read_all(bag)


def test_folder_whose_storage_is_gone_is_a_bag_error(make_bag: Any) -> None:
    bag = make_bag()
    storage_file(bag).unlink()
    with pytest.raises(BagError, match="missing"):
        read_all(bag)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.mcap", "nothing to play there"),
        ("old.bag", "ROS 1 bags are not played.*rosbags-convert"),
        ("notes.txt", "no frame can be read"),
        ("empty", "holds no images"),
        ("/dev/video99", "nothing to play there|camera cannot be opened"),
    ],
)
def test_what_is_not_a_source_says_so(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0")
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=reason):
        read_all(tmp_path / name)


def test_topic_whose_type_has_other_fields_is_left_out(
    make_bag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = make_bag()
    metadata = bag / "metadata.yaml"
    known = "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    metadata.write_text(metadata.read_text().replace(known, "RIHS01_" + "0" * 64))
    with BagSource(bag) as source:
        assert source.foreign_topics == ("/ground_truth",)
        assert set(source.topics) == {"/image/compressed"}


def test_image_folder_plays_files_undecoded_in_natural_order(tmp_path: Path) -> None:
    for name in ("frame10.jpg", "frame9.JPG", "frame1.png", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    with open_source(str(tmp_path), fps=10) as source:
        played = list(source.messages())
        assert source.image_times_ns() == [m.recorded_ns for m in played]
    images = [messages.deserialize(m.cdr, m.msgtype) for m in played]
    assert [bytes(image.data) for image in images] == [b"frame1.png", b"frame9.JPG", b"frame10.jpg"]
    assert [image.format for image in images] == ["png", "jpeg", "jpeg"]
    assert np.diff([m.recorded_ns for m in played]).tolist() == [10**8, 10**8]


def test_video_plays_its_frames_at_its_own_rate(tmp_path: Path) -> None:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    for level in (0, 80, 160, 240):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    with open_source(str(path)) as source:
        played = list(source.messages())
        assert source.image_times_ns() == [m.recorded_ns for m in played]
    images = [messages.deserialize(m.cdr, m.msgtype) for m in played]
    assert [round(float(image.data.mean()), -1) for image in images] == [0, 80, 160, 240]
    assert [(image.height, image.width, image.encoding) for image in images] == [
        (48, 64, "bgr8")
    ] * 4
    assert np.diff([m.recorded_ns for m in played]).tolist() == [5 * 10**7] * 3


def test_bag_folder_may_be_moved(make_bag: Any, tmp_path: Path) -> None:
    shutil.move(make_bag(), tmp_path / "moved")
    assert len(read_all(tmp_path / "moved")) == 2 * make_bag.FRAMES

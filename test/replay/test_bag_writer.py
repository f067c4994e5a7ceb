"""The bag writer: what it writes can be read back, and half a bag never appears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.bag_writer import BagWriter
from edge_perception.replay.bags import BagSource

BOXES = np.array([[1, 2, 3, 4]], np.float32)


def write_frames(bag: BagWriter, count: int) -> None:
    for index in range(count):
        stamp_ns = 10**18 + index * 10**7
        bag.write_camera_info(stamp_ns, (480, 640), np.diag([500.0, 500.0, 1.0]))
        bag.write_image(stamp_ns, b"\xff\xd8jpeg")
        bag.write_ground_truth(stamp_ns, BOXES, ["mug"])


def test_written_bag_reads_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo.mcap"
    with BagWriter(path) as bag:
        write_frames(bag, 3)
    with BagSource(path) as source:
        played = list(source.messages())
    assert [m.topic for m in played[:3]] == ["/camera_info", "/image/compressed", "/ground_truth"]
    assert [messages.read_stamp_ns(m.cdr) for m in played[::3]] == [
        10**18 + index * 10**7 for index in range(3)
    ]
    assert messages.deserialize_detections(played[2].cdr).class_names == ("mug",)


def test_namespace_comes_before_each_topic(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "a.mcap", namespace="/left") as bag:
        write_frames(bag, 1)
    with BagSource(tmp_path / "a.mcap") as source:
        assert set(source.topics) == {
            "/left/image/compressed",
            "/left/camera_info",
            "/left/ground_truth",
        }


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"), BagWriter(tmp_path / "a.mcap") as bag:
        bag.write_ground_truth(1, BOXES, ["one", "too many"])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), BagWriter(path):
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with BagWriter(path) as bag:
        write_frames(bag, 1)
    assert path.read_bytes().startswith(b"\x89MCAP")


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(BagError, match=r"one MCAP file: expected \*\.mcap, got 'a\.db3'"):
        BagWriter(Path("a.db3"))


def test_unwritable_folder_is_a_bag_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BagError, match="folder cannot be written"),
        BagWriter(tmp_path / "file" / "a.mcap"),
    ):
        pass


def test_writing_outside_the_with_statement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not open"):
        BagWriter(tmp_path / "a.mcap").write_image(1, b"")

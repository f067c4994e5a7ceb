"""Small bags, written by rosbags itself in each of its storages and compressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from edge_perception.replay import messages
from edge_perception.replay.typestore import load_typestore


class BagMaker:
    """Writes a bag of five images at 30 Hz with one true box each, and chatter."""

    FIRST_NS = 1_700_000_000_123_456_789
    INTERVAL_NS = 33_333_333
    FRAMES = 5

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def times_ns(cls) -> list[int]:
        """Return when the messages were recorded, which is their stamp too."""
        return [cls.FIRST_NS + index * cls.INTERVAL_NS for index in range(cls.FRAMES)]

    @classmethod
    def image(cls, index: int) -> bytes:
        """Return a CompressedImage whose payload tells its index."""
        jpeg = b"\xff\xd8" + bytes([index]) * 64
        return messages.serialize_compressed_image(cls.times_ns()[index], "camera_optical", jpeg)

    @classmethod
    def truth(cls, index: int) -> bytes:
        """Return one true box on the image with the same index."""
        box = np.array([[10.0, 20.0, 30.5, 41.25]], np.float32)
        return messages.serialize_detections(cls.times_ns()[index], "camera_optical", box, ["mug"])

    def __call__(
        self,
        storage: StoragePlugin = StoragePlugin.MCAP,
        compression: CompressionMode = CompressionMode.NONE,
        version: int = 9,
        images: int = FRAMES,
    ) -> Path:
        """Return the new bag's folder."""
        path = self.folder / "bag"
        writer = Writer(path, version=version, storage_plugin=storage)
        writer.set_compression(compression, CompressionFormat.ZSTD)
        store = load_typestore()
        with writer:
            image = writer.add_connection(
                "/image/compressed", messages.COMPRESSED_IMAGE, typestore=store
            )
            truth = writer.add_connection("/ground_truth", messages.DETECTIONS, typestore=store)
            chatter = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
            for index, recorded_ns in enumerate(self.times_ns()):
                if index < images:
                    writer.write(image, recorded_ns, self.image(index))
                writer.write(truth, recorded_ns, self.truth(index))
                writer.write(chatter, recorded_ns, b"\x00\x01\x00\x00\x02\x00\x00\x00a\x00")
        return path


@pytest.fixture
def make_bag(tmp_path: Path) -> BagMaker:
    """Return a function that writes a bag folder."""
    return BagMaker(tmp_path)

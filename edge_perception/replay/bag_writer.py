"""Writes a bag of one camera and its ground truth as a single MCAP file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from edge_perception.core.detections import Float32Array
from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.typestore import load_typestore


class BagWriter:
    """An MCAP file being written: compressed images, camera info and ground truth.

    A context manager. The file appears at ``path`` only when the body ends without an error, so
    that half a bag is never taken for a whole one. Messages are logged at their header's stamp.
    ``namespace`` comes before each topic: ``/image/compressed``, ``/image``, ``/camera_info``,
    ``/ground_truth``. ``compress`` false spares the reader's time at the cost of the disk.

    Raises:
        BagError: ``path`` does not end in .mcap, or its folder cannot be written.

    """

    def __init__(
        self,
        path: Path,
        *,
        frame_id: str = "camera_optical",
        namespace: str = "",
        compress: bool = True,
    ) -> None:
        if path.suffix != ".mcap":
            raise BagError("a bag is written as one MCAP file", expected="*.mcap", got=str(path))
        self.path = path
        self.frame_id = frame_id
        self.namespace = namespace
        self.compress = compress
        self._scratch: Path | None = None
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        """Start the bag beside its final place."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=".bag-", dir=self.path.parent))
        except OSError as error:
            raise BagError(
                "the bag's folder cannot be written",
                got=str(self.path.parent),
                mend=str(error),
            ) from error
        self._writer = Writer(self._scratch / "bag", version=9, storage_plugin=StoragePlugin.MCAP)
        if self.compress:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the bag and move it to ``path``; drop it if the body raised."""
        writer, scratch = self._opened(), self._scratch
        self._writer = self._scratch = None
        self._connections = {}
        assert scratch is not None
        try:
            writer.close()
            if exc_type is None:
                os.replace(scratch / "bag" / "bag.mcap", self.path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def write_image(self, stamp_ns: int, jpeg: bytes) -> None:
        """Write one JPEG as a ``CompressedImage`` on ``image/compressed``."""
        cdr = messages.serialize_compressed_image(stamp_ns, self.frame_id, jpeg)
        self._write("/image/compressed", messages.COMPRESSED_IMAGE, stamp_ns, cdr)

    def write_raw_image(self, stamp_ns: int, pixels: npt.NDArray[np.uint8], encoding: str) -> None:
        """Write pixels ``(height, width[, channels])`` as an ``Image`` on ``image``."""
        cdr = messages.serialize_image(stamp_ns, self.frame_id, pixels, encoding)
        self._write("/image", messages.IMAGE, stamp_ns, cdr)

    def write_camera_info(
        self, stamp_ns: int, size_px: tuple[int, int], intrinsics: npt.NDArray[np.float64]
    ) -> None:
        """Write the pinhole camera: ``size_px`` is height, width; ``intrinsics`` ``(3, 3)`` px."""
        cdr = messages.serialize_camera_info(stamp_ns, self.frame_id, size_px, intrinsics)
        self._write("/camera_info", messages.CAMERA_INFO, stamp_ns, cdr)

    def write_ground_truth(
        self,
        stamp_ns: int,
        boxes_xyxy: Float32Array,
        class_names: list[str],
        track_ids: list[str] | None = None,
    ) -> None:
        """Write the true boxes ``(N, 4)`` px of the image with the same stamp, and their names.

        A track id is the same for one object in every image of the bag.
        """
        cdr = messages.serialize_detections(
            stamp_ns, self.frame_id, boxes_xyxy, class_names, track_ids=track_ids
        )
        self._write("/ground_truth", messages.DETECTIONS, stamp_ns, cdr)

    def _opened(self) -> Writer:
        if self._writer is None:
            raise ValueError("the bag is not open; use BagWriter in a with statement")
        return self._writer

    def _write(self, topic: str, msgtype: str, stamp_ns: int, cdr: bytes) -> None:
        writer = self._opened()
        name = self.namespace + topic
        if name not in self._connections:
            self._connections[name] = writer.add_connection(
                name, msgtype, typestore=load_typestore()
            )
        writer.write(self._connections[name], stamp_ns, cdr)

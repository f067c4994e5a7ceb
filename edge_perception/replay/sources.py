"""Opening what a replay plays: bags, image folders, videos and cameras behind one protocol.

Every source yields *serialised* messages with the time at which they were recorded. A bag's bytes
therefore go to the network as they came, an image file becomes a ``CompressedImage`` without being
decoded, and whoever plays them need not know what they came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.source import DEFAULT_FPS, Source, TimedMessage, even_time_ns

BAG_SUFFIXES = frozenset({".mcap", ".db3"})
IMAGE_FORMATS: Mapping[str, str] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


class ImageFolder:
    """A folder of JPEG and PNG files, in the natural order of their names, at a fixed rate."""

    live = False

    def __init__(self, path: Path, fps: float = DEFAULT_FPS) -> None:
        self.path = path
        self.fps = fps
        self.topics: Mapping[str, str] = {"/image/compressed": messages.COMPRESSED_IMAGE}
        self.files: list[Path] = []  # in the order in which they are yielded

    def __enter__(self) -> ImageFolder:
        """List the folder."""
        try:
            files = [path for path in self.path.iterdir() if path.suffix.lower() in IMAGE_FORMATS]
        except OSError as error:
            raise BagError(f"image folder cannot be read: {error}") from error
        if not files:
            raise BagError(
                "folder holds no images",
                expected=f"files ending in {', '.join(IMAGE_FORMATS)}",
                got=str(self.path),
            )
        self.files = sorted(files, key=_natural_order)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Forget the listing."""
        self.files = []

    def messages(self) -> Iterator[TimedMessage]:
        """Yield each file as a ``CompressedImage``, undecoded."""
        for file, recorded_ns in zip(self.files, self.image_times_ns(), strict=True):
            try:
                data = file.read_bytes()
            except OSError as error:
                raise BagError(f"image file cannot be read: {error}") from error
            image_format = IMAGE_FORMATS[file.suffix.lower()]
            cdr = messages.serialize_compressed_image(recorded_ns, "camera", data, image_format)
            yield TimedMessage(recorded_ns, "/image/compressed", messages.COMPRESSED_IMAGE, cdr)

    def image_times_ns(self) -> list[int]:
        """Return evenly spaced times, ``fps`` a second."""
        return [even_time_ns(index, self.fps) for index in range(len(self.files))]


def open_source(where: str, fps: float = DEFAULT_FPS) -> Source:
    """Return the source that ``where`` names; opening it happens in its ``with`` statement.

    Args:
        where: a bag (``.mcap``, ``.db3`` or its folder), a folder of images, a video file, or a
            V4L2 camera as ``/dev/video0``.
        fps: frames a second where the source itself has no times.

    Raises:
        BagError: nothing there, or a ROS 1 bag.

    """
    # Imported here: an image folder needs neither OpenCV nor rosbags' readers.
    if re.fullmatch(r"/dev/video\d+", where):
        from edge_perception.replay.video import CameraSource

        return CameraSource(where, fps)
    path = Path(where).expanduser()
    if not path.exists():
        raise BagError(
            "nothing to play there",
            expected="a bag, a folder of images, a video file or /dev/videoN",
            got=where,
        )
    if path.suffix == ".bag":
        raise BagError(
            "ROS 1 bags are not played", got=where, mend="Convert it: rosbags-convert --src FILE."
        )
    if path.suffix in BAG_SUFFIXES or _is_bag_folder(path):
        from edge_perception.replay.bags import BagSource

        return BagSource(path)
    if path.is_dir():
        return ImageFolder(path, fps)
    from edge_perception.replay.video import VideoFile

    return VideoFile(path, fps)


def _is_bag_folder(path: Path) -> bool:
    return path.is_dir() and (path / "metadata.yaml").exists()


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort frame9 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

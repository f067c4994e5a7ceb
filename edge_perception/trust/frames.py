"""The user's own frames, decoded, with their truth where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.errors import BagError, ImageError
from edge_perception.gpu.decode_image import decode_image
from edge_perception.replay import messages
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.source import Source, TimedMessage
from edge_perception.replay.sources import ImageFolder, open_source

# The last part of the topic's name: a user's bag may hold detections of a detector, too.
TRUTH_NAME = "ground_truth"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Frame:
    """One image: its place in the source, its name for people, its truth or None.

    ``pixels`` is uint8 ``(n,)``, the image's bytes as ``format`` says.
    """

    index: int
    name: str
    pixels: UInt8Array
    format: ImageFormat
    truth: LabelledBoxes | None


class Frames:
    """The images of one topic of a bag, of a folder or of a video; iterated as often as wanted.

    ``skipped`` counts the images that could not be decoded in the last iteration.
    """

    def __init__(self, where: str, *, topic: str = "", labels: Path | None = None) -> None:
        """Look into the source.

        Args:
            where: a bag, a folder of images or a video.
            topic: the image topic; empty means the first.
            labels: COCO's JSON for a folder; a bag has its truth on a topic ``.../ground_truth``.

        Raises:
            BagError: the source or the labels cannot be read, or the topic carries no images.
        """
        self.where, self.skipped, self.images = where, 0, 0
        self._labels = load_coco_labels(labels) if labels else None
        self._truths: dict[int, LabelledBoxes] = {}
        with open_source(where) as source:
            if source.live:
                raise BagError("a camera never ends", expected="a bag, a folder or a video")
            self.topic = _image_topic(source, topic)
            self._read_truths(source)
        if self._labels is not None:
            self._check_labels()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in recorded order."""
        self.skipped = 0
        with open_source(self.where) as source:
            names = iter(source.files) if isinstance(source, ImageFolder) else None
            for index, message in enumerate(m for m in source.messages() if m.topic == self.topic):
                name = next(names).name if names else f"frame {index}"
                try:
                    pixels, image_format = decode(message)
                except (ImageError, BagError):
                    self.skipped += 1
                    continue
                yield Frame(index, name, pixels, image_format, self._truth(name, message))

    def _truth(self, name: str, message: TimedMessage) -> LabelledBoxes | None:
        if self._labels is not None:
            return self._labels.get(name)
        return self._truths.get(messages.read_stamp_ns(message.cdr))

    def _read_truths(self, source: Source) -> None:
        for message in source.messages():
            if message.topic == self.topic:
                self.images += 1
            elif _is_truth(message):
                boxes = messages.deserialize_detections(message.cdr)
                self._truths[boxes.stamp_ns] = boxes

    def _check_labels(self) -> None:
        with open_source(self.where) as source:
            if not isinstance(source, ImageFolder):
                raise BagError(
                    "COCO labels name files",
                    expected="a folder of images beside them",
                    got=self.where,
                    mend=f"A bag brings its truth itself, on a topic .../{TRUTH_NAME}.",
                )
            if not {file.name for file in source.files} & set(self._labels or ()):
                raise BagError("the labels name none of the folder's images", got=self.where)


def decode(message: TimedMessage) -> tuple[UInt8Array, ImageFormat]:
    """Return the pixels, uint8 ``(n,)``, of a serialised image and what they mean.

    Raises:
        BagError: the bytes are no such message.
        ImageError: the image is damaged or of an unknown encoding.
    """
    image = messages.deserialize(message.cdr, message.msgtype)
    data = np.asarray(image.data, np.uint8)
    if message.msgtype == messages.COMPRESSED_IMAGE:
        pixels, image_format = decode_image(data, _MOST_BYTES)
        return pixels.reshape(-1), image_format
    return data, ImageFormat(image.encoding, image.height, image.width, image.step)


def load_coco_labels(path: Path) -> Mapping[str, LabelledBoxes]:
    """Read COCO's JSON and return the true boxes of each image by its file's name.

    Crowd regions are left out.

    Raises:
        BagError: it cannot be read or lacks what COCO's format demands.
    """
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
        categories = {entry["id"]: str(entry["name"]) for entry in truth["categories"]}
        rows: dict[int, list[tuple[list[float], str]]] = {e["id"]: [] for e in truth["images"]}
        for entry in truth["annotations"]:
            if not entry.get("iscrowd"):
                x, y, width, height = map(float, entry["bbox"])
                box = [x, y, x + width, y + height]
                rows[entry["image_id"]].append((box, categories[entry["category_id"]]))
        return {Path(e["file_name"]).name: _labelled(rows[e["id"]]) for e in truth["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BagError(
            f"labels {str(path)!r} cannot be read: {type(error).__name__}: {error}",
            expected="COCO's JSON with images, annotations and categories",
        ) from error


def _labelled(rows: list[tuple[list[float], str]]) -> LabelledBoxes:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return LabelledBoxes(0, boxes, np.ones(len(rows), np.float32), tuple(name for _, name in rows))


def _is_truth(message: TimedMessage) -> bool:
    return message.msgtype == messages.DETECTIONS and message.topic.split("/")[-1] == TRUTH_NAME


def _image_topic(source: Source, topic: str) -> str:
    carried = [name for name, kind in source.topics.items() if kind in messages.IMAGE_TYPES]
    if topic and topic not in carried:
        raise BagError(f"topic {topic!r} carries no images", expected=f"one of {carried}")
    return topic or carried[0]

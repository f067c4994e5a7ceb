"""Reading the user's frames and their truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from known_detections import BOX_XYXY, FRAMES

from edge_perception.errors import BagError
from edge_perception.trust.frames import Frames, load_coco_labels


def test_bag_brings_its_truth_and_counts_what_cannot_be_decoded(labelled_bag: Path) -> None:
    frames = Frames(str(labelled_bag))
    assert frames.images == FRAMES + 1
    read = list(frames)
    assert (len(read), frames.skipped) == (FRAMES, 1)
    assert [frame.index for frame in read] == list(range(FRAMES))
    assert read[1].truth is not None
    assert read[1].truth.class_names == ("green_block",)
    assert np.array_equal(read[0].truth.boxes_xyxy, BOX_XYXY)
    assert read[0].format.width == 128
    assert len(list(frames)) == FRAMES, "frames may be read again"


def test_folder_takes_its_truth_from_coco_labels(labelled_folder: Path) -> None:
    labels = labelled_folder / "instances.json"
    read = list(Frames(str(labelled_folder / "images"), labels=labels))
    assert [frame.name for frame in read][:3] == ["0.png", "1.png", "2.png"]
    assert [f.truth.class_names[0] for f in read if f.truth][:2] == ["red_block", "green_block"]
    assert np.array_equal(read[0].truth.boxes_xyxy, BOX_XYXY)


def test_folder_without_labels_has_no_truth(labelled_folder: Path) -> None:
    assert all(f.truth is None for f in Frames(str(labelled_folder / "images")))


def test_crowds_are_left_out(tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "file_name": "sub/a.jpg"}],
        "categories": [{"id": 1, "name": "mug"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(truth))
    labels = load_coco_labels(tmp_path / "labels.json")
    assert labels["a.jpg"].boxes_xyxy.tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"images": []}', '{"images":[],"categories":[],"annotations":[{"bbox":[1]}]}'],
)
def test_labels_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(BagError, match=r"labels .* cannot be read"):
        load_coco_labels(tmp_path / "labels.json")


def test_labels_that_name_no_image_are_refused(labelled_folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"images": [], "categories": [], "annotations": []}')
    with pytest.raises(BagError, match="name none of the folder's images"):
        Frames(str(labelled_folder / "images"), labels=labels)


def test_labels_beside_a_bag_are_refused(labelled_bag: Path, labelled_folder: Path) -> None:
    with pytest.raises(BagError, match=r"COCO labels name files.*brings its truth itself"):
        Frames(str(labelled_bag), labels=labelled_folder / "instances.json")


def test_topic_without_images_is_refused(labelled_bag: Path) -> None:
    with pytest.raises(BagError, match="topic '/nothing' carries no images"):
        Frames(str(labelled_bag), topic="/nothing")

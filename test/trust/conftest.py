"""Pictures whose detections are known, as a folder with COCO labels and as a bag with its truth."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from known_detections import BOX_XYXY, FRAMES, frame

from edge_perception.replay.bag_writer import BagWriter


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images/*.png`` beside ``instances.json``; one label more than there are images."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    truth = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 3, "name": "red_block"}, {"id": 7, "name": "green_block"}]
    x1, y1, x2, y2 = BOX_XYXY[0].tolist()
    for index in range(FRAMES):
        image, name = frame(index)
        file_name = f"{index}.png"
        cv2.imwrite(str(folder / "images" / file_name), image[..., ::-1])
        truth["images"].append({"id": index, "file_name": file_name})
        truth["annotations"].append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": 3 if name == "red_block" else 7,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
        )
    (folder / "instances.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture(scope="session")
def labelled_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of the same pictures with their truth; its last image is damaged."""
    path = tmp_path_factory.mktemp("bag") / "a.mcap"
    with BagWriter(path) as bag:
        for index in range(FRAMES):
            image, name = frame(index)
            _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
            bag.write_image((index + 1) * 10**9, jpeg.tobytes())
            bag.write_ground_truth((index + 1) * 10**9, BOX_XYXY, [name])
        bag.write_image((FRAMES + 1) * 10**9, b"\xff\xd8 no picture")
    return path

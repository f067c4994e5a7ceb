"""A toy COCO data set: bright shapes on noise. The recipe needs torch, the detector does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")
np = pytest.importorskip("numpy")
sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipe is not installed

from training.detector.config import ModelConfig
from training.detector.dataset import FrameStore, load_frames

torch.set_num_threads(1)  # such small tensors gain nothing from a second, busy core

WIDTH, HEIGHT = 160, 128
CLASSES = ("disc", "block")
_COLOURS = ((40, 60, 230), (220, 180, 30))


def _draw_dataset(folder: Path, frames: int, seed: int) -> Path:
    """Write ``frames`` JPEGs and their ``instances.json`` into ``folder``."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    for image_id in range(frames):
        name = f"{image_id:06d}.jpg"
        picture = random.integers(60, 140, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        for label, box in _free_boxes(random):
            _draw(picture, label, box)
            _annotate(truth, image_id, label, box)
        cv2.imwrite(str(folder / "images" / name), picture)
        truth["images"].append(
            {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT}
        )
    (folder / "instances.json").write_text(json.dumps(truth))
    return folder


def _free_boxes(random: Any) -> list[tuple[int, list[int]]]:
    """One object in each half of the picture."""
    boxes = []
    for left in (0, WIDTH // 2):
        side = int(random.integers(20, 48))
        x = left + int(random.integers(0, WIDTH // 2 - side))
        y = int(random.integers(0, HEIGHT - side))
        boxes.append((int(random.integers(len(CLASSES))), [x, y, side, side]))
    return boxes


def _draw(picture: Any, label: int, box: list[int]) -> None:
    x, y, w, h = box
    if label == 0:
        cv2.ellipse(picture, ((x + w / 2, y + h / 2), (w, h), 0.0), _COLOURS[0], -1)
    else:
        cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), _COLOURS[1], -1)


def _annotate(truth: dict[str, Any], image_id: int, label: int, box: list[int]) -> None:
    truth["annotations"].append(
        {
            "id": len(truth["annotations"]) + 1,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "occlusion": 0.0,
        }
    )


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen frames of 160x128 with two objects each."""
    return _draw_dataset(tmp_path_factory.mktemp("toy") / "train", frames=16, seed=0)


@pytest.fixture(scope="session")
def toy_store(toy_folder: Path) -> FrameStore:
    """The toy frames on the CPU."""
    return load_frames([toy_folder], torch.device("cpu"))


@pytest.fixture(scope="session")
def toy_config() -> ModelConfig:
    """The smallest detector that can learn the toy frames."""
    return ModelConfig(
        class_names=CLASSES,
        height=HEIGHT,
        width=WIDTH,
        widths=(8, 16, 24, 32, 48),
        depths=(1, 1, 1, 1),
        head_width=32,
    )

"""What the tests of INT8 detectors share; none of them needs torch."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from pictures import BLUE, GREEN, RED, picture
from small_graphs import write_conv_detector


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Take the place of the fixture above, which needs torch: nothing here does."""


@pytest.fixture
def conv_detector(tmp_path: Path) -> Path:
    """The manifest of a detector of blocks."""
    return write_conv_detector(tmp_path / "model")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of one block each, of every colour."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        colour = (RED, GREEN, BLUE)[index % 3]
        image = picture(colour, column=index % 8, row=index // 3)
        cv2.imwrite(str(folder / f"frame{index}.png"), image[:, :, ::-1])
    return folder

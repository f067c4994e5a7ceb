"""``edge-perception quantize-int8`` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from pictures import RED, picture
from rosbags.rosbag2 import StoragePlugin, Writer

from edge_perception.backends.store import load_manifest
from edge_perception.cli import main
from edge_perception.replay import messages
from edge_perception.replay.typestore import load_typestore


def write_bag(path: Path, frames: int = 6) -> Path:
    """A bag of one block at several places, as JPEG."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(
            "/image/compressed", messages.COMPRESSED_IMAGE, typestore=load_typestore()
        )
        for index in range(frames):
            jpeg = cv2.imencode(".jpg", picture(RED, column=index)[:, :, ::-1])[1].tobytes()
            cdr = messages.serialize_compressed_image(index + 1, "camera", jpeg)
            writer.write(connection, index + 1, cdr)
    return path


def command(model: Path, calibration: Path, *more: str) -> int:
    return main(["quantize-int8", str(model), "--calibration", str(calibration), *more])


@pytest.mark.parametrize("source", ["bag", "folder"])
def test_command_writes_a_model_with_its_manifest(
    source: str, conv_detector: Path, image_folder: Path, tmp_path: Path, capsys
) -> None:
    frames = write_bag(tmp_path / "bag") if source == "bag" else image_folder
    out = tmp_path / "out" / "small.onnx"
    assert command(conv_detector, frames, "--out", str(out), "--least-share", "0") == 0
    manifest, model = load_manifest(out.with_suffix(".yaml"))
    assert (manifest.precision, model) == ("int8", out.resolve())
    printed = capsys.readouterr().out
    assert "(edge)" in printed
    assert f"written: {out}" in printed


def test_status_tells_a_loss_above_the_bound(conv_detector: Path, image_folder: Path) -> None:
    # No model loses less than nothing, so this bound cannot be kept.
    assert command(conv_detector, image_folder, "--max-drop", "-1", "--frames", "3") == 1
    assert conv_detector.with_name("model.int8.yaml").exists()


def torn_bag(folder: Path) -> Path:
    bag = write_bag(folder / "bag")
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bag


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("calibration", "problem"),
    [
        pytest.param(torn_bag, "cannot be read", id="bag cut off"),
        pytest.param(empty_folder, "holds no images", id="folder without images"),
        pytest.param(lambda folder: folder / "none", "nothing to play there", id="nothing there"),
    ],
)
def test_frames_that_cannot_be_read_end_in_one_line(
    calibration, problem: str, conv_detector: Path, tmp_path: Path, capsys
) -> None:
    assert command(conv_detector, calibration(tmp_path)) == 2
    told = capsys.readouterr().err
    assert problem in told
    assert len(told.splitlines()) == 1


def test_model_that_is_not_there_ends_in_one_line(
    tmp_path: Path, image_folder: Path, capsys
) -> None:
    assert command(tmp_path / "none.yaml", image_folder) == 2
    assert "cannot read manifest" in capsys.readouterr().err

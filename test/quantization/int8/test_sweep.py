"""A sweep that goes on where it stood."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_perception.quantization.int8.sweep import SweepFile, sweep_layers

LAYERS = ("first", "second", "third")


class Stopped(Exception):
    """The run was killed."""


def measure_until(stop: str, measured: list[str]):
    def measure(layer: str) -> float:
        if layer == stop:
            raise Stopped
        measured.append(layer)
        return float(LAYERS.index(layer))

    return measure


def stop_at_third(path: Path) -> None:
    with pytest.raises(Stopped):
        sweep_layers(LAYERS, measure_until("third", []), SweepFile(path, "key"))


def test_stopped_sweep_measures_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    stop_at_third(path)
    measured: list[str] = []
    distances = sweep_layers(LAYERS, measure_until("", measured), SweepFile(path, "key"))
    assert measured == ["third"]
    assert distances == {"first": 0.0, "second": 1.0, "third": 2.0}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        pytest.param(None, "another key", id="another model, frames or recipe"),
        pytest.param("{", "key", id="cut off"),
        pytest.param("[]", "key", id="of another form"),
        pytest.param('{"key": "key", "distances": {"first": "far"}}', "key", id="no number"),
    ],
)
def test_file_that_does_not_fit_is_dropped(content: str | None, key: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    stop_at_third(path)
    if content is not None:
        path.write_text(content)
    measured: list[str] = []
    sweep_layers(LAYERS, measure_until("", measured), SweepFile(path, key))
    assert measured == list(LAYERS)


def test_done_sweep_leaves_no_file(tmp_path: Path) -> None:
    file = SweepFile(tmp_path / "sweep.json", "key")
    sweep_layers(LAYERS, measure_until("", []), file)
    file.remove()
    assert list(tmp_path.iterdir()) == []

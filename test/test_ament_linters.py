"""ament's own linters, as a ROS 2 build farm would run them on an ament_python package."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKED = [str(ROOT / name) for name in ("edge_perception", "launch", "scripts", "setup.py")]
# Left out of Google's convention: what is described at the protocol that a method implements
# (D102), what its name tells (D105, D107), moods and capitals, which stumble over names (D401,
# D403), and a full stop where a first line ends in a colon (D415).
NOT_DEMANDED = ["D102", "D105", "D107", "D401", "D403", "D415"]


def test_flake8_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main = pytest.importorskip("ament_flake8.main")
    status, errors = main.main_with_errors(argv=["--config", str(ROOT / "setup.cfg"), *CHECKED])
    capsys.readouterr()  # it lists every file
    assert errors == []
    assert status == 0


def test_pep257_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main = pytest.importorskip("ament_pep257.main")
    options = ["--convention", "google", "--add-ignore", *NOT_DEMANDED, "--"]
    status = main.main(argv=[*options, *CHECKED])
    assert status == 0, capsys.readouterr().err

"""Real processes killed at random: the soak of ``benchmarks/frames``, shortened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SECONDS = [pytest.param(8.0), pytest.param(30.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seconds", SECONDS)
def test_killed_readers_and_writers_tear_and_leak_nothing(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks.frames.soak import run_soak

    figures = run_soak(seconds, reader_kill_s=0.5, writer_kill_s=1.0)
    assert figures["unexpected"] == []
    assert (figures["torn"], figures["leaked"]) == (0, 0), figures["leaks"]
    assert figures["frames_read"] > 0
    assert figures["reader_kills"] >= seconds / 2
    assert figures["writer_kills"] >= 1

"""The demo as its user runs it: real processes over DDS, a report, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from tiny_models import write_detector

from edge_perception.replay.bag_writer import BagWriter
from edge_perception.replay.graph_process import ros_arguments

FRAMES = 40
SIDE = 128
BLOCK = 32


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red block that moves over a black table, with its true box."""
    path = tmp_path_factory.mktemp("bag") / "demo.mcap"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            picture = np.zeros((SIDE, SIDE, 3), np.uint8)
            x = (index * 16) % (SIDE - BLOCK)
            picture[48 : 48 + BLOCK, x : x + BLOCK] = (0, 0, 255)
            stamp_ns = 1_700_000_000_000_000_000 + index * 50_000_000
            writer.write_image(stamp_ns, cv2.imencode(".jpg", picture)[1].tobytes())
            box = np.array([[x, 48, x + BLOCK, 48 + BLOCK]], np.float32)
            writer.write_ground_truth(stamp_ns, box, ["red_block"])
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("model"))


def demo_command(bag: Path, manifest: Path, out: Path) -> list[str]:
    command = [sys.executable, "-m", "edge_perception.cli", "demo"]
    return [*command, "--bag", str(bag), "--manifest", str(manifest), "--out", str(out)]


def processes_of(out: Path) -> list[str]:
    """Return the command lines of running processes that name ``out``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(out) in command:
            found.append(command)
    return found


def wait_until(condition: Any, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture
def started_demo(
    bag: Path, manifest: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A demo whose three node processes run: graph, player and who asks the VLM."""
    pytest.importorskip("rclpy")
    out = tmp_path / "out"
    demo = subprocess.Popen(demo_command(bag, manifest, out), stdout=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: (out / "player.jsonl").exists())
        assert wait_until(lambda: len(processes_of(out)) == 4)
        yield demo, out
    finally:
        demo.kill()
        demo.wait()


def test_demo_writes_its_report_and_ends(bag: Path, manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    out = tmp_path / "out"
    done = subprocess.run(
        demo_command(bag, manifest, out), capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    frames = report["frames"]
    assert frames["sent"] == FRAMES
    assert frames["processed"] >= FRAMES // 2
    assert frames["processed"] + frames["dropped"] == FRAMES
    assert report["latency_ms"]["end_to_end"]["n"] == frames["processed"]
    assert report["latency_ms"]["end_to_end"]["p50"] > 0
    assert report["latency_ms"]["end_to_end"]["p99"] is None
    assert report["accuracy"]["images"] == frames["processed"]
    assert report["accuracy"]["map50_95"] is not None
    assert (out / "report.html").exists()
    assert (out / "contact_sheet.jpg").exists()
    assert "end to end" in done.stdout
    assert processes_of(out) == []


def test_interrupted_demo_leaves_no_process_behind(
    started_demo: tuple[subprocess.Popen[bytes], Path],
) -> None:
    demo, out = started_demo
    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=30) == 130
    assert processes_of(out) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_killed_demo_leaves_no_process_behind(
    started_demo: tuple[subprocess.Popen[bytes], Path],
) -> None:
    demo, out = started_demo
    os.kill(demo.pid, signal.SIGKILL)
    demo.wait()
    assert wait_until(lambda: not processes_of(out)), processes_of(out)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("bag", "cannot be read"),
        ("manifest", "manifest .* cannot be read"),
        ("model", "the container process ended early"),
    ],
)
def test_demo_that_cannot_run_says_why(bag: Path, tmp_path: Path, broken: str, reason: str) -> None:
    pytest.importorskip("rclpy")
    manifest = write_detector(tmp_path / "model")
    if broken == "bag":
        bag = tmp_path / "broken.mcap"
        bag.write_bytes(b"\x89MCAP0\r\n")
    elif broken == "manifest":
        manifest = tmp_path / "missing.yaml"
    else:
        (tmp_path / "model" / "model.onnx").write_bytes(b"not a model")
    done = subprocess.run(
        demo_command(bag, manifest, tmp_path / "out"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "value",
    [
        *("plain", "/dev/video0", "123", "true", "with: colon", "a 'quote'", 'a "quote"', ""),
        "/a folder/" * 20,  # longer than a line of YAML
    ],
)
def test_text_parameters_stay_text(value: str) -> None:
    flag, option, argument = ros_arguments({"source": value})
    assert (flag, option) == ("--ros-args", "-p")
    assert yaml.safe_load(argument.removeprefix("source:=")) == value


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (2.0, "2.0"), (3, "3"), (0.05, "0.05")]
)
def test_other_parameters_keep_their_type(value: object, text: str) -> None:
    assert ros_arguments({"x": value})[2] == f"x:={text}"

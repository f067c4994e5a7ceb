"""The soak's reader: checks every byte of every frame it gets, and follows the writer's heirs."""

from __future__ import annotations

import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.frames.frame_source import is_whole
from edge_perception.errors import FrameWriterGone
from edge_perception.gpu.reader import FrameReader

REPORT_EVERY = 10


def follow(descriptor: Path, mode: Path, tell: Connection) -> None:
    """Read from one ring after another until terminated.

    ``descriptor`` is the file that names the ring of the day, ``mode`` one that says "read" or
    "idle". Tells "read" for every ``REPORT_EVERY`` frames, "torn" and "reattached".
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        with attach(descriptor) as reader:
            try:
                read(reader, mode, tell)
            except FrameWriterGone:
                tell.send("reattached")


def attach(descriptor: Path) -> FrameReader:
    """Attach to whatever ring the descriptor file names by now."""
    while True:
        try:
            return FrameReader.attach(descriptor.read_bytes())
        except FrameWriterGone:
            time.sleep(0.05)


def read(reader: FrameReader, mode: Path, tell: Connection) -> None:
    """Read until the writer is gone."""
    after = count = 0
    while True:
        if mode.read_text() == "idle":
            time.sleep(0.1)
            continue
        lease = reader.acquire_newest(after, timeout_s=1.0)
        if lease is None:
            continue
        with lease:
            after = lease.sequence
            if not is_whole(lease.pixels, after):
                tell.send("torn")
        count += 1
        if count % REPORT_EVERY == 0:
            tell.send("read")

"""The soak's reader: checks every byte of every frame it gets, and follows the writer's heirs."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from benchmarks.frames.frame_source import is_whole
from edge_perception.errors import FrameWriterGone
from edge_perception.gpu.reader import FrameReader

_REPORT_EVERY = 10


def attach(descriptor: Path) -> FrameReader:
    """Attach to whatever ring the descriptor file names by now."""
    while True:
        try:
            return FrameReader.attach(descriptor.read_bytes())
        except FrameWriterGone:
            time.sleep(0.05)


def read(reader: FrameReader, mode: Path) -> None:
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
                print(f"torn {after}", flush=True)
        count += 1
        if count % _REPORT_EVERY == 0:
            print(f"read {_REPORT_EVERY}", flush=True)


def main() -> None:
    """Read from one ring after another until terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    descriptor, mode = Path(sys.argv[1]), Path(sys.argv[2])
    while True:
        with attach(descriptor) as reader:
            try:
                read(reader, mode)
            except FrameWriterGone:
                print("reattached", flush=True)


if __name__ == "__main__":
    main()

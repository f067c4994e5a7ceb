#!/usr/bin/env python3
"""Remove the shared-memory files of Fast DDS whose processes are gone.

A participant keeps a lock on the file NAME_el beside each of its segments (and readers of a port
share one on NAME_sl); the kernel drops it with the process, however that ended. So a segment whose
lock nobody holds is left over. Very young files are spared: their owner may be about to lock.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
PREFIX = "fastrtps_"
LOCK_SUFFIXES = ("_el", "_sl")
SPARED_AGE_S = 30.0


def main() -> None:
    """Remove what is stale and say how much that was."""
    freed_bytes = sum(remove(file) for file in stale_files(FOLDER))
    if freed_bytes:
        print(f"removed {freed_bytes / 1e6:.1f} MB of shared memory that nobody uses")


def stale_files(folder: Path) -> list[Path]:
    """Return the files below ``folder``, locks included, of segments and ports without a process.

    A port's semaphore (sem.NAME_mutex) goes with the port.
    """
    stale = []
    for name in {_segment_name(file) for file in folder.glob(f"{PREFIX}*")}:
        files = [folder / name, *(folder / f"{name}{suffix}" for suffix in LOCK_SUFFIXES)]
        files = [file for file in files if file.exists()]
        if not any(_is_young(file) or _is_locked(file) for file in files):
            stale += files + [f for f in [folder / f"sem.{name}_mutex"] if f.exists()]
    return stale


def _segment_name(file: Path) -> str:
    return file.name[:-3] if file.name.endswith(LOCK_SUFFIXES) else file.name


def _is_young(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < SPARED_AGE_S
    except OSError:
        return False


def _is_locked(file: Path) -> bool:
    if not file.name.endswith(LOCK_SUFFIXES):
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return file.exists()  # there but closed to us: in use, as far as we can tell
    return False


def remove(file: Path) -> int:
    """Remove ``file`` and return its size in bytes, zero where it cannot be removed."""
    try:
        size = file.stat().st_size
        file.unlink()
    except OSError:
        return 0
    return size


if __name__ == "__main__":
    main()

"""What a measurement was taken on: facts without which a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_SOURCE_TREE = Path(__file__).resolve().parents[2]


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, GPU, system and versions; None for what cannot be found out.

    Reads files below ``/proc`` and ``/etc`` and asks ``nvidia-smi`` and ``nvpmodel`` where they
    exist; takes up to a few hundred milliseconds.
    """
    return {
        "cpu": _line_value("/proc/cpuinfo", ("model name", "Model", "Hardware")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": _memory_gib("MemTotal"),
        "gpu": _first_line(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        ),
        "board": _file_text("/proc/device-tree/model"),
        "power_mode": _first_line(["nvpmodel", "-q"]),
        "cpu_governor": _file_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "os": _line_value("/etc/os-release", ("PRETTY_NAME",)),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO"),
        "virtual_environment": sys.prefix != sys.base_prefix,
    }


def describe_state() -> dict[str, Any]:
    """Return what moves during a run: load, clocks, temperatures and free memory.

    Clocks in MHz, temperatures in degrees Celsius; empty or None for what is not told.
    """
    return {
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_available_gib": _memory_gib("MemAvailable"),
        "cpu_mhz": _readings("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq"),
        "temperatures_c": _readings("/sys/class/thermal", "thermal_zone*/temp"),
        "gpu": _first_line(
            [
                "nvidia-smi",
                "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used",
                "--format=csv,noheader",
            ]
        ),
    }


def describe_code() -> dict[str, Any]:
    """Return the commit, and whether the package's own code is changed; None outside a checkout."""
    git = ["git", "-C", str(_SOURCE_TREE)]
    commit = _first_line([*git, "rev-parse", "HEAD"])
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "edge_perception"])
    return {"commit": commit, "changed": bool(changed) if commit else None}


def utc_now() -> str:
    """Return the time in UTC as ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _memory_gib(field: str) -> float | None:
    kib = _line_value("/proc/meminfo", (field,))
    return round(int(kib.split()[0]) / 2**20, 1) if kib else None


def _line_value(path: str, keys: Sequence[str]) -> str | None:
    """Return the value of the first ``key: value`` or ``key=value`` line with one of ``keys``."""
    for line in (_file_text(path) or "").splitlines():
        key, _, value = line.replace("=", ":", 1).partition(":")
        if key.strip() in keys:
            return value.strip().strip('"')
    return None


def _readings(folder: str, pattern: str) -> list[float]:
    """Return thousandths read from sysfs as units: kHz as MHz, millidegrees as degrees."""
    texts = (_file_text(str(path)) for path in sorted(Path(folder).glob(pattern)))
    return [int(text) / 1000 for text in texts if text and text.lstrip("-").isdigit()]


def _file_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n") or None
    except OSError:
        return None


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _first_line(command: Sequence[str]) -> str | None:
    output = _output(command)
    return output.splitlines()[0] if output else None

"""What machine a figure was measured on: enough to judge it, and to repeat the measurement.

Everything is read from files and from tools that a Jetson or a PC has anyway; what a machine does
not tell is left out, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

Facts = dict[str, object]
_TOOL_TIMEOUT_S = 5.0


def machine_facts() -> Facts:
    """Return what stays the same during a run: processor, memory, system, GPU, power mode."""
    facts: Facts = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_kib("MemTotal") / 2**20, 1),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO", "wheels (jazzy)"),
        "board": _read("/proc/device-tree/model").rstrip("\0"),
        "gpu": _tool(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]),
        "jetson_power_mode": _tool(["nvpmodel", "-q"]),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
    }
    return {name: value for name, value in facts.items() if value}


def machine_state() -> Facts:
    """Return what changes during a run: clocks, temperatures, load, free memory."""
    facts: Facts = {
        "cpu_mhz": _cpu_clocks_mhz(),
        "temperatures_c": _temperatures_c(),
        "load_1min": os.getloadavg()[0],
        "memory_available_gib": round(_memory_kib("MemAvailable") / 2**20, 2),
        "gpu_clocks_temperature_memory": _tool(
            [
                "nvidia-smi",
                "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,memory.used",
                "--format=csv,noheader",
            ]
        ),
    }
    return {name: value for name, value in facts.items() if value not in ("", [], {})}


def provenance(source_folder: Path) -> Facts:
    """Return when, and from which commit, a figure was made; "-dirty" marks a changed tree."""
    commit = _tool(
        ["git", "-C", str(source_folder), "describe", "--always", "--dirty", "--abbrev=12"]
    )
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "unknown (not a git checkout)",
    }


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1) if found else platform.processor()


def _memory_kib(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _cpu_clocks_mhz() -> list[int]:
    files = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return [int(text) // 1000 for text in map(_read, files) if text.strip().isdigit()]


def _temperatures_c() -> dict[str, float]:
    zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*"))
    readings = {_read(zone / "type").strip(): _read(zone / "temp").strip() for zone in zones}
    return {name: int(text) / 1000 for name, text in readings.items() if text.lstrip("-").isdigit()}


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tool(command: Sequence[str]) -> str:
    """Return what a tool prints; empty where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

"""What every test runs under: a ROS 2 domain of its own, and a GPU only where there is one."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Above 101 the ports of a domain reach into those that Linux hands out by itself.
DOMAINS = range(1, 102)


def pytest_configure() -> None:
    """Keep the tests' DDS traffic on this machine and apart from that of other test runs."""
    _let_examples_take_their_time()
    os.environ.setdefault("ROS_DOMAIN_ID", str(DOMAINS[os.getpid() % len(DOMAINS)]))
    humble = os.environ.get("ROS_DISTRO") == "humble"
    name, value = (
        ("ROS_LOCALHOST_ONLY", "1") if humble else ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    )
    os.environ.setdefault(name, value)
    # scripts/env.sh does this too; a bare pytest from .venv/bin should find ROS 2 all the same.
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    profile = str(ROOT / "config" / "fastdds.xml")
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", profile)


def _let_examples_take_their_time() -> None:
    """No hypothesis example fails for being slow: a busy machine is no defect."""
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where no NVIDIA device is to be seen."""
    if not _has_nvidia_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


def _has_nvidia_gpu() -> bool:
    jetson = [Path("/dev/nvhost-gpu"), Path("/dev/nvgpu")]
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(path.exists() for path in jetson)

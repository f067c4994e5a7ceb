"""Which parameters the launch file gives to which process; needs no installed launch."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    *("launch", "launch.actions", "launch.substitutions", "launch_ros", "launch_ros.actions"),
    *("ament_index_python", "ament_index_python.packages"),
)
DEFAULTS = {
    "device": "cpu", "image": "image", "namespace": "", "processes": "single", "debug": "false",
    "autostart": "true", "manifest": "", "output_dir": "", "params_file": "", "vlm": "",
    "use_sim_time": "false",
}  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what is started for given arguments: parameters by executable."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    packages = sys.modules["ament_index_python.packages"]
    packages.get_package_share_directory = lambda _: str(ROOT)  # type: ignore[attr-defined]
    actions = sys.modules["launch_ros.actions"]
    actions.Node = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    launch_file = runpy.run_path(str(ROOT / "launch" / "perception.launch.py"))

    def start(**arguments: str) -> dict[str, list[Any]]:
        context = SimpleNamespace(launch_configurations={**DEFAULTS, **arguments})
        return {node.executable: node.parameters for node in launch_file["processes"](context)}

    return start


def test_container_alone_is_started_with_the_device_profile(started: Any) -> None:
    assert started(device="orin") == {
        "container": [str(ROOT / "config" / "orin.yaml"), {"autostart": True}]
    }


def test_what_arguments_leave_open_is_the_users_files_to_say(started: Any) -> None:
    ((_, file, said),) = started(params_file="mine.yaml").values()
    assert file == "mine.yaml"
    assert said == {"autostart": True}


def test_processes_of_their_own_read_frames_that_the_camera_shares(started: Any) -> None:
    processes = started(processes="separate", vlm="/models/tiny", manifest="model.yaml")
    assert set(processes) == {"camera", "detector", "vlm", "profiler"}
    said = {name: parameters[-1] for name, parameters in processes.items()}
    assert [name for name in said if said[name].get("share_frames")] == ["camera"]
    assert (said["vlm"]["model"], said["detector"]["manifest"]) == ("/models/tiny", "model.yaml")


def test_simulated_time_is_every_nodes(started: Any) -> None:
    for parameters in started(use_sim_time="true", processes="separate").values():
        assert parameters[-1]["use_sim_time"] is True


@pytest.mark.parametrize(
    ("vlm", "expected", "reason"),
    [
        ("", {}, "no VLM"),
        ("demo", {"vlm": True}, "the embedded model is the node's default"),
        ("/models/tiny", {"vlm": True, "model": "/models/tiny"}, "a model by its path"),
    ],
)
def test_vlm_argument_chooses_the_model(
    started: Any, vlm: str, expected: dict[str, object], reason: str
) -> None:
    said = started(vlm=vlm)["container"][-1]
    assert {name: said[name] for name in ("vlm", "model") if name in said} == expected, reason

"""The package as ROS 2 and pip see it: manifest, versions, and where files land."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import edge_perception

ROOT = Path(__file__).resolve().parent.parent
NAME = "edge_perception"
EXECUTABLES = sorted(path.name for path in (ROOT / "scripts" / "nodes").iterdir())
PROFILES = sorted((ROOT / "config").glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the package built as a wheel, the tree left as it was."""
    scratch = tmp_path_factory.mktemp("wheel")
    command = [
        *(sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={scratch}"),
        *("build", f"--build-base={scratch}/build"),
        *("bdist_wheel", f"--bdist-dir={scratch}/bdist", f"--dist-dir={scratch}"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = scratch.glob("*.whl")
    return zipfile.ZipFile(file)


def data_files(wheel: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return what pip will put below the prefix, by its path there."""
    marker = ".data/data/"
    return {
        info.filename.split(marker)[1]: info for info in wheel.infolist() if marker in info.filename
    }


def test_manifest_is_valid_and_says_ament_python() -> None:
    # An invalid one silently turns the package into plain Python without ament's hooks.
    package = pytest.importorskip("catkin_pkg.package")
    manifest = package.parse_package(str(ROOT), warnings=(warnings := []))
    manifest.validate(warnings=warnings)
    assert warnings == []
    assert manifest.name == NAME
    assert manifest.get_build_type() == "ament_python"
    assert manifest.licenses == ["Apache-2.0"]


def test_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    assert f"<version>{edge_perception.__version__}</version>" in (ROOT / "package.xml").read_text()
    assert wheel.filename is not None
    assert Path(wheel.filename).name.startswith(f"{NAME}-{edge_perception.__version__}-")


def test_manifest_depends_on_every_ros_package_that_nodes_import() -> None:
    package = pytest.importorskip("catkin_pkg.package")
    manifest = package.parse_package(str(ROOT))
    declared = {dependency.name for dependency in manifest.exec_depends}
    imported = _roots_imported_by("nodes")
    ros = {name for name in imported if name.endswith(("_msgs", "_interfaces"))} | {"rclpy"}
    assert ros <= declared


def _roots_imported_by(layer: str) -> set[str]:
    trees = [ast.parse(path.read_text()) for path in (ROOT / NAME / layer).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    modules += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    return {module.split(".")[0] for module in modules}


def test_wheel_carries_every_module(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", NAME], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    present = [path for path in tracked if (ROOT / path).exists()]
    assert set(present) <= set(wheel.namelist())


@pytest.mark.parametrize("executable", EXECUTABLES)
def test_node_lands_executable_where_ros2_run_looks(
    wheel: zipfile.ZipFile, executable: str
) -> None:
    installed = data_files(wheel)[f"lib/{NAME}/{executable}"]
    assert (installed.external_attr >> 16) & 0o111, "pip keeps the mode it finds here"
    source = (ROOT / "scripts" / "nodes" / executable).read_text()
    assert source.startswith("#!/usr/bin/env python3\n")
    assert f"from {NAME}.nodes.{executable} import main" in source


@pytest.mark.parametrize(
    "place",
    [
        f"share/ament_index/resource_index/packages/{NAME}",
        f"share/{NAME}/package.xml",
        f"share/{NAME}/launch/perception.launch.py",
        f"share/{NAME}/launch/replay.launch.py",
        f"share/{NAME}/config/fastdds.xml",
        f"share/{NAME}/config/cpu.yaml",
    ],
)
def test_wheel_puts_file_where_ros_looks_it_up(wheel: zipfile.ZipFile, place: str) -> None:
    assert place in data_files(wheel)


def test_environment_finds_the_package_by_the_ament_index() -> None:
    packages = pytest.importorskip("ament_index_python.packages")
    if str(ROOT / ".venv") not in os.environ.get("AMENT_PREFIX_PATH", ""):
        pytest.skip("run outside the environment that setup.sh makes")
    share = Path(packages.get_package_share_directory(NAME))
    for name in ("perception.launch.py", "replay.launch.py"):
        assert (share / "launch" / name).resolve() == ROOT / "launch" / name


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_device_profile_sets_only_declared_parameters_within_their_bounds(profile: Path) -> None:
    pytest.importorskip("rclpy")
    for key, entry in yaml.safe_load(profile.read_text()).items():
        module = importlib.import_module(f"{NAME}.nodes.{key.removeprefix('/**/')}")
        table: dict[str, Any] = {row.name: row for row in module.PARAMETERS}
        for name, value in entry["ros__parameters"].items():
            row = table[name]
            assert type(value) is type(row.default), name
            assert row.bounds is None or row.bounds[0] <= value <= row.bounds[1], name
            row.check(value)


@pytest.mark.skipif(shutil.which("colcon") is None, reason="colcon is not installed")
def test_colcon_sees_one_ament_python_package() -> None:
    listed = subprocess.check_output(["colcon", "list"], cwd=ROOT, text=True).splitlines()
    assert [line.split("\t") for line in listed] == [[NAME, ".", "(ros.ament_python)"]]

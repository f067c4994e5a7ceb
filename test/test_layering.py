"""The layers of docs/architecture.md: who may import whom, and what stays out of whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "edge_perception"
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))

# What every layer may import: it says nothing about any of them.
EVERYWHERE = {"errors", "embedded", "__version__"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "embedded": set(),
    "core": set(),
    "gpu": {"core"},
    "backends": {"core"},
    "vlm": {"gpu", "core"},
    "detection": {"backends", "gpu", "core"},
    "replay": {"core"},
    "world": {"core"},
    "planner": {"core"},
    "quantization": {"trust", "detection", "vlm", "gpu", "backends", "core"},
    "trust": {"detection", "replay", "gpu", "core"},
    "export": {"detection", "backends", "core"},
    "nodes": {"detection", "vlm", "gpu", "backends", "replay", "core"},
    "benchmark": {"replay", "core"},
    "cli": {
        *("nodes", "benchmark", "quantization", "trust", "export", "replay", "world", "planner"),
        *("detection", "backends", "core"),
    },
}

ROS_MODULES = {
    "builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "lifecycle_msgs", "rcl_interfaces",
    "rclpy", "rosgraph_msgs", "sensor_msgs", "std_msgs", "vision_msgs",
}  # fmt: skip
# Libraries, and the only places below edge_perception/ that may import them.
ONLY_IN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ROS_MODULES, ("nodes/",)),
    "tensorrt": ("backends/tensorrt",),
    "tensorrt_rtx": ("backends/tensorrt_rtx",),
    "cuda": ("gpu/", "vlm/"),
    "torch": ("vlm/", "quantization/", "export/"),
    "transformers": ("vlm/", "quantization/", "export/"),
    "ultralytics": ("export/ultralytics_process",),
    "moderngl": ("world/",),
    "argparse": ("cli/",),
}
BACKENDS_FOR_PYTHON_39 = {"tensorrt", "build", "engine_store", "timing_cache"}
FOR_PYTHON_39 = [
    path
    for path in SOURCES
    if path.parent.name == "core"
    or path.name == "errors.py"
    or (path.parent.name == "backends" and path.stem in BACKENDS_FOR_PYTHON_39)
]
HEAVY = ["cv2", "matplotlib", "moderngl", "rclpy", "tensorrt", "torch", "transformers"]
PACKAGES = sorted(path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every module that ``path`` imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports here are absolute"
            yield node.module or ""


def imported_layers(path: Path) -> set[str]:
    names = (module.split(".") for module in imported_modules(path))
    return {name[1] for name in names if name[0] == PACKAGE and len(name) > 1}


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=show)
def test_module_imports_only_from_the_layers_below(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        assert imported_layers(path) == set()
        return
    assert layer in MAY_IMPORT, "a new layer: decide what it may import, in docs/adr/ and here"
    assert imported_layers(path) - EVERYWHERE - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", SOURCES, ids=show)
def test_library_is_imported_only_where_it_belongs(path: Path) -> None:
    place = path.relative_to(ROOT / PACKAGE).as_posix()
    for module in imported_modules(path):
        allowed = ONLY_IN.get(module.split(".")[0])
        assert allowed is None or place.startswith(allowed), f"{module} in {place}"


def test_layers_have_no_cycle() -> None:
    above: dict[str, set[str]] = {layer: set(below) for layer, below in MAY_IMPORT.items()}
    while above:
        bottom = {layer for layer, below in above.items() if not below & above.keys()}
        assert bottom, f"a cycle among {sorted(above)}"
        above = {layer: below for layer, below in above.items() if layer not in bottom}


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) == "core"], ids=show)
def test_core_imports_the_standard_library_and_numpy_alone(path: Path) -> None:
    own = {"numpy", PACKAGE}
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert roots <= own | sys.stdlib_module_names


def imported_in_a_fresh_process(statements: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after ``statements``."""
    code = f"{statements}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_every_core_module_loads_without_ros_torch_or_opencv() -> None:
    modules = [show(p)[:-3].replace("/", ".") for p in SOURCES if layer_of(p) == "core"]
    loaded = imported_in_a_fresh_process(f"import {', '.join(modules)}")
    assert "numpy" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_packages_loads_nothing_heavy() -> None:
    packages = ", ".join(str(package).replace("/", ".") for package in PACKAGES)
    assert imported_in_a_fresh_process(f"import {packages}").isdisjoint(HEAVY)


@pytest.mark.parametrize("path", FOR_PYTHON_39, ids=show)
def test_module_for_the_tensorrt_8_bundle_is_python_39(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", FOR_PYTHON_39, ids=show)
def test_module_for_the_tensorrt_8_bundle_needs_only_what_is_there(path: Path) -> None:
    there = {show(other)[:-3].replace("/", ".") for other in FOR_PYTHON_39}
    for module in imported_modules(path):
        known = sys.stdlib_module_names | {"numpy"}
        assert module in there or module.split(".")[0] in known, module


def test_rules_would_catch_an_import_from_above(tmp_path: Path) -> None:
    # The reader of imports is what all of the above stands on.
    module = tmp_path / "module.py"
    module.write_text("def late():\n    from edge_perception.nodes.camera import CameraNode\n")
    assert imported_layers(module) == {"nodes"}

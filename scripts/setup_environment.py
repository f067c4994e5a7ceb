"""Bring the environment this runs in to what requirements/ pins; called by setup.sh.

No stamp says that a step was done: what is installed is compared with what is pinned. pip keeps
for each distribution a RECORD of its files and their sizes, so whatever a killed set-up left
half-done, and whatever was deleted or cut short since, shows as incomplete and is installed
again, alone. What we build ourselves, vision_msgs, keeps such a record of its own beside a digest
of its sources. When nothing is wrong this takes about a second.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path(sys.prefix)
SITE_PACKAGES = sysconfig.get_path("purelib")
REQUIREMENTS = ROOT / "requirements"
INTERFACE = ROOT / "interfaces" / "vision_msgs"
INTERFACE_RECORD = PREFIX / "share" / "vision_msgs" / "installed.json"
PACKAGE_RECORD = PREFIX / "edge_perception_made_from"
LINKED_FILES = {  # folder below the environment: files of this tree, as setup.py installs them
    "share/ament_index/resource_index/packages": "resource/edge_perception",
    "share/edge_perception": "package.xml",
    "share/edge_perception/launch": "launch/*.launch.py",
    "share/edge_perception/config": "config/*.*",
    "share/edge_perception/demo": "demo/*.mcap",
    "share/edge_perception/engines": "engines/*.*",
    "lib/edge_perception": "scripts/nodes/*",
}


def main() -> None:
    """Install what is missing or broken, in the order in which things need each other."""
    arguments = _parse_arguments()
    lists = {
        "wheels": ["ros.txt", "runtime.txt", "test.txt"],
        "system": ["runtime.txt", "test.txt", "system_ros.txt"],
    }[arguments.ros]
    install_complete_lists([REQUIREMENTS / name for name in lists])
    for extra in arguments.extra:
        install_extra(REQUIREMENTS / f"{extra}.txt")
    if arguments.ros == "wheels":
        localise_cmake_files()
    build_vision_msgs()
    install_this_package()


def _parse_arguments() -> argparse.Namespace:
    extras = ["gpu", "tensorrt_rtx", "vlm", "world"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ros", choices=("wheels", "system"), required=True)
    parser.add_argument("--extra", action="append", default=[], choices=extras)
    return parser.parse_args()


def install_complete_lists(files: list[Path]) -> None:
    """Install lists that name every dependency; of two pins of one name the later list's holds."""
    pins = {pin.name: pin for file in files for pin in read_pins(file)}
    broken = [pin for pin in pins.values() if not is_intact(pin)]
    if broken:
        _say(f"installing {len(broken)} of {len(pins)} distributions")
        _forget_unfinished(broken)
        # --use-pep517: what has no wheel is built into one, and so gets a RECORD
        _pip("--no-deps", "--force-reinstall", "--use-pep517", *map(_bare, broken))


def install_extra(file: Path) -> None:
    """Install an optional list with whatever its entries depend on, within the other pins."""
    broken = [pin for pin in read_pins(file) if not is_intact(pin)]
    if broken:
        _say(f"installing {file.stem}: {', '.join(map(_bare, broken))}")
        _forget_unfinished(broken)
        limits = [REQUIREMENTS / "runtime.txt", REQUIREMENTS / "test.txt"]
        _pip("-r", str(file), *(f"--constraint={limit}" for limit in limits))


def read_pins(file: Path) -> Iterator[Requirement]:
    """Yield the ``name==version`` entries of ``file`` that hold for this interpreter."""
    for line in file.read_text().splitlines():
        entry = line.partition("#")[0].strip()
        if entry:
            pin = Requirement(entry)
            if pin.marker is None or pin.marker.evaluate():
                yield pin


def is_intact(pin: Requirement) -> bool:
    """Tell whether ``pin``'s distribution is installed here as pinned with every file whole."""
    try:
        return any(
            found.version in pin.specifier and _has_its_files(found)
            for found in metadata.distributions(name=pin.name, path=[SITE_PACKAGES])
        )
    except (KeyError, TypeError, ValueError):
        return False  # its metadata are cut short


def _has_its_files(distribution: metadata.Distribution) -> bool:
    # distribution.files will not do: from Python 3.12 on it leaves out what is missing.
    record = list(csv.reader((distribution.read_text("RECORD") or "").splitlines()))
    return bool(record) and all(
        _is_whole(Path(str(distribution.locate_file(path))), int(size) if size else None)
        for path, _, size in record
        if not path.endswith(".pyc")
    )


def _is_whole(path: Path, size: int | None) -> bool:
    try:
        found = path.stat().st_size
    except OSError:
        return False
    # Longer is not damaged: certifi's list grows where a site adds its own authorities. CMake
    # files change in length when localise_cmake_files writes its paths into them.
    return size is None or found >= size or path.suffix == ".cmake"


def _forget_unfinished(pins: Iterable[Requirement]) -> None:
    """Remove metadata without RECORD, or nameless: pip refuses to replace such a distribution."""
    names = {_normalised(pin.name) for pin in pins}
    for folder in Path(SITE_PACKAGES).glob("*.dist-info"):
        found = metadata.Distribution.at(folder)
        finished = found.read_text("RECORD") and "Name:" in (found.read_text("METADATA") or "")
        if _normalised(folder.name.split("-")[0]) in names and not finished:
            shutil.rmtree(folder)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def localise_cmake_files() -> None:
    """Point the ROS wheels' CMake files at this Python instead of the one that built them."""
    builder = r"/opt/python/[^/;\"]+"
    folders = {
        rf"{builder}/lib/python[\d.]+/site-packages/numpy/_core/include": _numpy_include(),
        rf"{builder}/include/python[\d.]+": sysconfig.get_path("include"),
    }
    for file in PREFIX.glob("share/*/cmake/*.cmake"):
        text = file.read_text()
        if "/opt/python/" in text:
            for foreign, local in folders.items():
                text = re.sub(foreign, local, text)
            file.write_text(text)


def _numpy_include() -> str:
    code = "import numpy; print(numpy.get_include())"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def build_vision_msgs() -> None:
    """Build ``interfaces/vision_msgs`` into the environment unless ROS 2 brings its own."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if p]
    if any((p / "share/vision_msgs/package.xml").exists() for p in prefixes if p != PREFIX):
        return
    digest = digest_of([INTERFACE, REQUIREMENTS / "ros.txt"])
    if not _is_recorded(digest):
        _say("building vision_msgs")
        INTERFACE_RECORD.unlink(missing_ok=True)
        files = _cmake_install(INTERFACE, [PREFIX, *prefixes])
        sizes = {str(file): file.stat().st_size for file in files}
        INTERFACE_RECORD.write_text(json.dumps({"digest": digest, "files": sizes}))


def _is_recorded(digest: str) -> bool:
    try:
        record = json.loads(INTERFACE_RECORD.read_text())
    except (OSError, ValueError):
        return False
    return record["digest"] == digest and all(
        _is_whole(Path(file), size) for file, size in record["files"].items()
    )


def _cmake_install(source: Path, prefixes: list[Path]) -> list[Path]:
    """Configure, build and install ``source``; return the files it installed."""
    path = ":".join(map(str, prefixes))
    variables = {"AMENT_PREFIX_PATH": path, "CMAKE_PREFIX_PATH": path}
    executables = f"{PREFIX / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **variables, "PATH": executables, "VIRTUAL_ENV": str(PREFIX)}
    options = [
        f"-DCMAKE_INSTALL_PREFIX={PREFIX}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_TESTING=OFF",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DPython3_FIND_VIRTUALENV=ONLY",
    ]
    with tempfile.TemporaryDirectory(prefix="vision_msgs-") as build:
        for step in (
            ["cmake", "-S", str(source), "-B", build, *options],
            ["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1)],
            ["cmake", "--install", build],
        ):
            _run(step, environment)
        manifest = Path(build) / "install_manifest.txt"
        return [Path(line) for line in manifest.read_text().splitlines()]


def install_this_package() -> None:
    """Install edge_perception in place, as ``colcon build --symlink-install`` would.

    pip lets the modules be found here and makes the command; it installs no data files in place,
    so what ROS 2 looks up below share/ and lib/ is linked.
    """
    sources = ["setup.py", "setup.cfg", "pyproject.toml", "edge_perception/__init__.py"]
    digest = digest_of([ROOT / name for name in sources])
    here = Requirement("edge-perception")
    recorded = PACKAGE_RECORD.read_text() if PACKAGE_RECORD.exists() else ""
    if recorded != digest or not is_intact(here):
        _say("installing edge_perception in place")
        _forget_unfinished([here])
        _pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        PACKAGE_RECORD.write_text(digest)
    for place, pattern in LINKED_FILES.items():
        _link_files(PREFIX / place, sorted(ROOT.glob(pattern)))


def _link_files(folder: Path, targets: list[Path]) -> None:
    """Link each target in ``folder``, itself no link (``ros2 launch`` walks past those)."""
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.is_symlink() and link.readlink() not in targets:
            link.unlink()
    for target in targets:
        link = folder / target.name
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def digest_of(paths: Iterable[Path]) -> str:
    """Return a digest of this Python's version and of names and contents below ``paths``."""
    digest = hashlib.sha256(sys.version.encode())
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _bare(pin: Requirement) -> str:
    return f"{pin.name}{pin.specifier}"


def _pip(*arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    _run([sys.executable, "-m", "pip", "install", *quiet, *arguments])


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run ``command`` quietly; when it fails show all it said and leave."""
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.stderr.write(result.stdout + result.stderr)
        raise SystemExit(f"setup: failed: {' '.join(command[:8])}")


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    main()

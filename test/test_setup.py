"""The set-up scripts: what counts as whole, what is linked, what is cleaned."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def load(name: str) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup() -> types.ModuleType:
    pytest.importorskip("pip", reason="the set-up runs inside an environment with pip")
    return load("setup_environment")


@pytest.fixture
def installed(setup: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a site-packages folder with one distribution, ``thing`` 1.2, of one file."""
    (tmp_path / "thing.py").write_text("VALUE = 1\n")
    metadata = tmp_path / "thing-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n")
    (metadata / "RECORD").write_text("thing.py,,10\nthing-1.2.dist-info/METADATA,,\n")
    monkeypatch.setattr(setup, "SITE_PACKAGES", str(tmp_path))
    return tmp_path


def test_distribution_with_all_its_files_is_intact(
    setup: types.ModuleType, installed: Path
) -> None:
    assert setup.is_intact(setup.Requirement("thing==1.2"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "thing.py").unlink(), id="file deleted"),
        pytest.param(lambda folder: (folder / "thing.py").write_text("VA"), id="file cut short"),
        pytest.param(
            lambda folder: (folder / "thing-1.2.dist-info" / "RECORD").unlink(),
            id="killed before RECORD was written",
        ),
        pytest.param(
            lambda folder: (folder / "thing-1.2.dist-info" / "METADATA").write_text(""),
            id="METADATA empty",
        ),
    ],
)
def test_damaged_distribution_is_not_intact(
    setup: types.ModuleType, installed: Path, damage: object
) -> None:
    assert callable(damage)
    damage(installed)
    assert not setup.is_intact(setup.Requirement("thing==1.2"))


def test_unfinished_metadata_are_removed_and_others_kept(
    setup: types.ModuleType, installed: Path
) -> None:
    pins = [setup.Requirement("thing==1.2")]
    setup._forget_unfinished(pins)
    assert (installed / "thing-1.2.dist-info").exists()
    (installed / "thing-1.2.dist-info" / "RECORD").unlink()
    setup._forget_unfinished([setup.Requirement("other==1.0")])
    assert (installed / "thing-1.2.dist-info").exists()
    setup._forget_unfinished(pins)
    assert not (installed / "thing-1.2.dist-info").exists()


def test_other_version_or_absence_is_not_intact(setup: types.ModuleType, installed: Path) -> None:
    assert not setup.is_intact(setup.Requirement("thing==1.3"))
    assert not setup.is_intact(setup.Requirement("no-such-thing==1.0"))


def test_pins_are_exact_and_named_once_in_each_list(setup: types.ModuleType) -> None:
    for file in setup.REQUIREMENTS.glob("*.txt"):
        pins = list(setup.read_pins(file))
        assert pins, f"{file.name} is empty"
        assert all(str(pin.specifier).startswith("==") for pin in pins)
        assert len({pin.name.lower() for pin in pins}) == len(pins)


def test_pins_for_another_python_are_left_out(setup: types.ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text('a==1 # why\n\nb==2; python_version < "3.0"\nc==3; python_version > "3.0"\n')
    assert [pin.name for pin in setup.read_pins(file)] == ["a", "c"]


def test_links_follow_the_tree_and_stale_ones_go(setup: types.ModuleType, tmp_path: Path) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "prefix" / "share"
    tree.mkdir()
    (tree / "new.launch.py").write_text("")
    folder.mkdir(parents=True)
    (folder / "old.launch.py").symlink_to(tree / "old.launch.py")
    (folder / "other.txt").write_text("not ours")
    setup._link_files(folder, [tree / "new.launch.py"])
    assert {file.name for file in folder.iterdir()} == {"new.launch.py", "other.txt"}
    assert (folder / "new.launch.py").readlink() == tree / "new.launch.py"


def test_digest_changes_with_names_and_contents(
    setup: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    folder = tmp_path / "sources"
    folder.mkdir()
    digests = []
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_text(text)
        digests.append(setup.digest_of([folder]))
    assert len(set(digests)) == 3


def test_environment_script_keeps_what_the_caller_set(tmp_path: Path) -> None:
    if sys.prefix != str(SCRIPTS.parent / ".venv"):
        pytest.skip("run outside the environment that setup.sh makes")
    profile = str(tmp_path / "mine.xml")
    command = (
        f"FASTRTPS_DEFAULT_PROFILES_FILE={profile} {SCRIPTS}/env.sh "
        "sh -c 'echo $FASTRTPS_DEFAULT_PROFILES_FILE $AMENT_PREFIX_PATH'"
    )
    told, prefixes = os.popen(command).read().split()
    assert told == profile
    assert prefixes.split(":")[0] == sys.prefix or sys.prefix in prefixes.split(":")


@pytest.fixture
def cleaner(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = load("clean_shared_memory")
    monkeypatch.setattr(module, "SPARED_AGE_S", -1.0)  # the files of a test are always young
    return module


def test_segment_without_its_process_is_stale(cleaner: types.ModuleType, tmp_path: Path) -> None:
    names = ("fastrtps_abc", "fastrtps_abc_el", "fastrtps_port7", "sem.fastrtps_port7_mutex")
    for name in (*names, "someone_elses"):
        (tmp_path / name).write_bytes(b"x")
    assert {file.name for file in cleaner.stale_files(tmp_path)} == set(names)


def test_segment_whose_lock_is_held_is_left_alone(
    cleaner: types.ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "fastrtps_abc").write_bytes(b"x")
    with (tmp_path / "fastrtps_abc_el").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cleaner.stale_files(tmp_path) == []
    assert len(cleaner.stale_files(tmp_path)) == 2


def test_young_segment_is_spared(cleaner: types.ModuleType, tmp_path: Path) -> None:
    cleaner.SPARED_AGE_S = 3600.0
    (tmp_path / "fastrtps_abc").write_bytes(b"x")
    assert cleaner.stale_files(tmp_path) == []


def test_removing_tells_the_bytes_freed(cleaner: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fastrtps_abc").write_bytes(b"x" * 100)
    assert [cleaner.remove(file) for file in cleaner.stale_files(tmp_path)] == [100]
    assert list(tmp_path.iterdir()) == []
    assert cleaner.remove(tmp_path / "gone") == 0

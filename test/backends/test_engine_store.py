"""The engine store: what fits is found, what does not is told, and no kill makes it mislead."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine_builder import PLAN, build, die_at_line, spec

from edge_perception.backends.engine_store import (
    BuiltPlan,
    EngineStore,
    default_folder,
    write_atomically,
)
from edge_perception.core.engine import EngineSpec, Gpu, parse_record
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

BUILDER = Path(__file__).parents[1] / "data" / "engine_builder.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def builds_of(plan: bytes = PLAN) -> Callable[[Sequence[bytes]], BuiltPlan]:
    return lambda timing_caches: BuiltPlan(plan, b"".join(timing_caches) + b"t")


def no_build(timing_caches: Sequence[bytes]) -> BuiltPlan:
    raise AssertionError("nothing was to be built")


def files(store: EngineStore, suffix: str) -> list[Path]:
    return sorted(path for path in store.folder.glob("*") if path.suffix == suffix)


def start_builder(mode: str, folder: Path, number: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(BUILDER), mode, str(folder), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


# What is found, and what its record says.


def test_engine_is_built_once_and_found_again(store: EngineStore) -> None:
    built = store.obtain(spec(), builds_of())
    again = store.obtain(spec(), no_build)
    assert again == built == store.find(spec())
    assert again.plan == PLAN


def test_record_is_yaml_that_names_all_the_plan_depends_on(store: EngineStore) -> None:
    store.obtain(spec(), builds_of(), model_manifest={"license": "Apache-2.0"})
    (path,) = files(store, ".yaml")
    record = yaml.safe_load(path.read_text())
    assert record["key"] == spec().key
    assert record["spec"]["onnx_sha256"] == "a" * 64
    assert record["spec"]["calibration_sha256"] == "c" * 64
    assert record["spec"]["inputs"] == [
        {"name": "images", "shape": [1, 3, 64, 64], "dtype": "float32"}
    ]
    assert record["model_manifest"] == {"license": "Apache-2.0"}
    assert (store.folder / record["plan"]).read_bytes() == PLAN
    assert parse_record(record) == store.find(spec()).record  # type: ignore[union-attr]


def test_always_builds_anew_and_leaves_one_plan(store: EngineStore) -> None:
    store.obtain(spec(), builds_of(b"old"))
    assert store.obtain(spec(), builds_of(b"new"), policy="always").plan == b"new"
    assert store.obtain(spec(), no_build).plan == b"new"
    assert len(files(store, ".plan")) == 1


def test_engines_of_one_model_lie_side_by_side(store: EngineStore) -> None:
    half = replace(spec(), precision="float16")
    store.obtain(spec(), builds_of(b"int8"))
    store.obtain(half, builds_of(b"half"))
    assert store.obtain(spec(), no_build).plan == b"int8"
    assert store.obtain(half, no_build).plan == b"half"


def test_measurements_are_added_to_the_record(store: EngineStore) -> None:
    store.obtain(spec(), builds_of())
    store.note_measured(spec(), {"latency_p50_ms": 1.5})
    store.note_measured(spec(), {"latency_p99_ms": 2.5})
    found = store.find(spec())
    assert found is not None
    assert found.record.measured == {"latency_p50_ms": 1.5, "latency_p99_ms": 2.5}
    assert found.plan == PLAN


def test_timing_caches_of_all_models_on_that_kind_of_gpu_are_given(store: EngineStore) -> None:
    seen: list[list[bytes]] = []

    def make(timing_caches: Sequence[bytes]) -> BuiltPlan:
        seen.append(list(timing_caches))
        return BuiltPlan(PLAN, b"%d" % len(seen))

    store.obtain(spec(), make)
    store.obtain(replace(spec(), onnx_sha256="b" * 64), make)  # the model, trained on
    store.obtain(replace(spec(), precision="float16"), make)
    store.obtain(replace(spec(), onnx_sha256="c" * 64), make)
    store.obtain(replace(spec(), gpu_name="GH100"), make)
    store.obtain(replace(spec(), runtime_version="10.7.0"), make)
    assert seen == [[], [b"1"], [b"2"], [b"2", b"3"], [], []]  # a model's own comes first


def test_damaged_timing_cache_is_not_used(store: EngineStore) -> None:
    store.obtain(spec(), builds_of())
    (cache,) = files(store, ".cache")
    cache.write_bytes(cache.read_bytes()[:-1] + b"x")
    seen: list[Sequence[bytes]] = []
    store.obtain(spec(), lambda c: (seen.append(c), BuiltPlan(PLAN))[1], policy="always")
    assert seen == [[]]


def test_default_folder_follows_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/edge_perception/engines")


# What does not fit is refused with the reason and the command, or built.

MISFITS = [
    ({"runtime_version": "8.5.3.1"}, "runtime version: built for 10.3.0, here 8.5.3.1"),
    ({"gpu_name": "Orin Nano"}, "GPU: built for Orin, here Orin Nano"),
    ({"compute_capability": "8.6"}, "GPU compute capability: built for 8.7, here 8.6"),
    ({"onnx_sha256": "b" * 64}, f"ONNX sha256: built for {'a' * 64}, here {'b' * 64}"),
    (
        {"inputs": (TensorSpec("images", (1, 3, 32, 32)),)},
        "input shapes: built for images float32 1x3x64x64, here images float32 1x3x32x32",
    ),
    (
        {"outputs": (TensorSpec("output", (1, 7, 16)),)},
        "output shapes: built for output float32 1x7x64, here output float32 1x7x16",
    ),
    ({"calibration_sha256": ""}, f"calibration set: built for {'c' * 64}, here none"),
    ({"precision": "float16"}, "precision: built for int8, here float16"),
    ({"runtime": "tensorrt_rtx"}, "runtime: built for tensorrt, here tensorrt_rtx"),
    ({"flags": ("typing=strong",)}, "build flags: built for typing=weak, workspace_mib=1024, here"),
]


@pytest.mark.parametrize(("changes", "told"), MISFITS, ids=lambda v: next(iter(v), ""))
def test_engine_that_does_not_fit_is_refused_with_what_and_the_command(
    store: EngineStore, changes: dict[str, Any], told: str
) -> None:
    store.obtain(spec(), builds_of())
    wanted = replace(spec(), **changes)
    with pytest.raises(EngineError) as refused:
        store.obtain(wanted, no_build, policy="never", mend="edge-perception build m.yaml")
    assert told in str(refused.value)
    assert "edge-perception build m.yaml" in str(refused.value)
    assert store.obtain(wanted, builds_of(b"fits")).plan == b"fits"
    assert store.obtain(spec(), no_build).plan == PLAN  # the other is still there


def test_refusal_tells_of_the_nearest_engine(store: EngineStore) -> None:
    store.obtain(replace(spec(), precision="float16", gpu_name="A"), builds_of())
    store.obtain(replace(spec(), gpu_name="A"), builds_of())
    told = store.explain_absence(spec())
    assert "GPU: built for A, here Orin" in told
    assert "precision" not in told


def test_empty_store_says_so(store: EngineStore) -> None:
    with pytest.raises(EngineError, match="there is no engine of 'tiny' in the engine store"):
        store.obtain(spec(), no_build, policy="never")


def test_unknown_policy_is_told(store: EngineStore) -> None:
    with pytest.raises(EngineError, match="never, if_missing, always, got 'maybe'"):
        store.obtain(spec(), no_build, policy="maybe")


@pytest.mark.parametrize("changes", [{"runtime": "cudnn"}, {"precision": "int4"}])
def test_spec_of_what_nobody_builds_is_told(changes: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="expected one of"):
        spec(**changes)


@pytest.mark.parametrize("capability", ["8", "sm_86", "", "8.x"])
def test_compute_capability_is_two_numbers(capability: str) -> None:
    with pytest.raises(EngineError, match=r"such as 8\.6"):
        Gpu(capability)


def test_key_changes_with_every_field() -> None:
    keys = {replace(spec(), **changes).key for changes, _ in MISFITS}
    assert len(keys | {spec().key, replace(spec(), model="other").key}) == len(MISFITS) + 2


# Damage is noticed by hash, and mended where building is allowed.


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def claim_another_gpu(path: Path) -> None:
    path.write_text(path.read_text().replace("Orin", "GH100"))


DAMAGE = [
    (".plan", cut_short, "cut short or has grown"),
    (".plan", flip_one_bit, "is damaged: expected sha256"),
    (".plan", empty, "cut short or has grown"),
    (".plan", Path.unlink, "is missing"),
    (".yaml", cut_short, "engine record .* is damaged"),
    (".yaml", empty, "engine record .* is damaged"),
    (".yaml", claim_another_gpu, "engine record .* is damaged: .*expected key"),
]


@pytest.mark.parametrize(("suffix", "damage", "told"), DAMAGE)
def test_damaged_engine_is_refused_or_built_anew(
    store: EngineStore, suffix: str, damage: Callable[[Path], None], told: str
) -> None:
    store.obtain(spec(), builds_of())
    (path,) = files(store, suffix)
    damage(path)
    with pytest.raises(EngineError, match=told):
        store.obtain(spec(), no_build, policy="never")
    assert store.obtain(spec(), builds_of(b"mended")).plan == b"mended"
    assert store.obtain(spec(), no_build).plan == b"mended"
    assert len(files(store, ".plan")) == 1


def test_every_flipped_bit_of_a_small_plan_is_noticed(store: EngineStore) -> None:
    store.obtain(spec(), builds_of(b"a small plan"))
    (path,) = files(store, ".plan")
    for bit in range(8 * len(b"a small plan")):
        content = bytearray(b"a small plan")
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        with pytest.raises(EngineError, match="is damaged"):
            store.find(spec())


def test_record_of_another_engine_under_this_ones_name_is_refused(store: EngineStore) -> None:
    other = replace(spec(), gpu_name="GH100")
    store.obtain(spec(), builds_of())
    mine = files(store, ".yaml")
    store.obtain(other, builds_of())
    (others,) = set(files(store, ".yaml")) - set(mine)
    others.replace(mine[0])
    with pytest.raises(EngineError, match="describes another engine"):
        store.find(spec())


def test_failed_build_leaves_the_engine_that_was_there(store: EngineStore) -> None:
    store.obtain(spec(), builds_of())

    def fails(timing_caches: Sequence[bytes]) -> BuiltPlan:
        raise EngineError("no kernel image")

    with pytest.raises(EngineError, match="no kernel image"):
        store.obtain(spec(), fails, policy="always")
    assert store.obtain(spec(), no_build).plan == PLAN
    with pytest.raises(EngineError, match="empty plan"):
        store.obtain(spec(), builds_of(b""), policy="always")
    assert store.obtain(spec(), no_build).plan == PLAN


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EngineError, match="cannot write the engine store"):
        EngineStore(tmp_path / "file").obtain(spec(), builds_of())


def test_full_disk_is_told_and_leaves_the_engine_that_was_there(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.obtain(spec(), builds_of())

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(EngineError, match="No space left"):
            store.obtain(spec(), builds_of(b"new"), policy="always")
    assert store.obtain(spec(), no_build).plan == PLAN
    assert files(store, ".tmp") == []


@pytest.mark.parametrize("plan", ["../tiny.plan", "/etc/hostname", "", "."])
def test_record_that_names_a_plan_elsewhere_is_refused(store: EngineStore, plan: str) -> None:
    store.obtain(spec(), builds_of())
    (path,) = files(store, ".yaml")
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan": plan}))
    with pytest.raises(EngineError, match=r"is damaged: .*expected a bare file name"):
        store.find(spec())


def test_build_asked_for_is_made_though_a_measurement_was_noted_meanwhile(
    store: EngineStore,
) -> None:
    store.obtain(spec(), builds_of(b"old"))
    locked, told = threading.Event(), threading.Event()

    def note_while_it_waits(text: str) -> None:
        told.set()

    def hold_the_lock() -> None:
        with store._locked(spec(), lambda _: None):
            locked.set()
            assert told.wait(60)
            found = store.find(spec())
            assert found is not None
            store._write_record(replace(found.record, measured={"latency_p50_ms": 1.0}))

    holder = threading.Thread(target=hold_the_lock)
    holder.start()
    assert locked.wait(60)
    built = store.obtain(
        spec(), builds_of(b"new"), policy="always", on_progress=note_while_it_waits
    )
    holder.join()
    assert built.plan == b"new"


def test_failed_write_leaves_no_scratch_file(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "target", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# Several processes.


def test_two_processes_that_start_together_build_once(tmp_path: Path) -> None:
    builders = [start_builder("build", tmp_path / "engines", 0.5) for _ in range(3)]
    hashes = {builder.communicate(timeout=60)[0].strip() for builder in builders}
    assert len(hashes) == 1
    assert len((tmp_path / "builds").read_text().split()) == 1


def test_lock_of_a_killed_builder_is_taken_over(tmp_path: Path, store: EngineStore) -> None:
    builder = start_builder("build", store.folder, 60)
    wait_for(lambda: (tmp_path / "builds").exists())
    told: list[str] = []
    waiting = threading.Thread(
        target=lambda: store.obtain(spec(), builds_of(b"mine"), on_progress=told.append)
    )
    waiting.start()
    wait_for(lambda: bool(told))
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    waiting.join(timeout=60)
    assert told[0] == "waiting for another process that builds 'tiny'"
    assert store.obtain(spec(), no_build).plan == b"mine"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Kills. The store may hold the engine from before, the new one, or none; never anything else.


def assert_store_does_not_mislead(store: EngineStore, allowed: set[bytes]) -> None:
    found = store.find(spec())
    assert found is None or found.plan in allowed
    for record in files(store, ".yaml"):
        named = json.loads(record.read_text())["plan"]
        assert (store.folder / named).read_bytes() in allowed


@pytest.mark.parametrize("before", [None, b"the engine from before"], ids=["empty", "filled"])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_build_killed_at_any_line_never_leaves_a_store_that_misleads(
    store: EngineStore, before: bytes | None, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill loses nothing that was written: only a power cut asks for fsync, which is slow.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    allowed = {PLAN} if before is None else {PLAN, before}
    line, died = 0, True
    while died:
        line += stride
        if before is not None:
            store.obtain(spec(), builds_of(before), policy="always")
        died = dies_in_a_child(store.folder, line)
        assert_store_does_not_mislead(store, allowed)
        if before is not None:
            assert store.find(spec()) is not None, "the engine from before is lost"
        mended = store.obtain(spec(), builds_of())
        assert mended.plan in allowed
        if before is None:
            for path in (*files(store, ".yaml"), *files(store, ".plan")):
                path.unlink()
    assert line > 50  # it was a build's worth of lines
    store.obtain(spec(), builds_of(), policy="always")
    assert len(files(store, ".plan")) == 1
    assert files(store, ".tmp") == []


def dies_in_a_child(folder: Path, line: int) -> bool:
    """Build in a forked child that kills itself at a line; tell whether it did."""
    child = os.fork()
    if child == 0:
        try:
            die_at_line(line)
            build(folder, policy="always")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_build_killed_at_a_random_moment_never_leaves_a_store_that_misleads(
    store: EngineStore,
) -> None:
    chance = random.Random(0)
    for _ in range(5):
        builder = start_builder("build", store.folder, 0.05)
        time.sleep(chance.uniform(0.05, 0.4))
        builder.send_signal(signal.SIGKILL)
        builder.communicate()
        if store.folder.exists():
            assert_store_does_not_mislead(store, {PLAN})
    assert store.obtain(spec(), builds_of()).plan == PLAN


def test_model_names_that_are_no_file_names_are_kept_apart(store: EngineStore) -> None:
    for name in ("a/b", "a*", "../a", "ä"):
        named = replace(spec(), model=name)
        store.obtain(named, builds_of(name.encode()))
        assert store.obtain(named, no_build).plan == name.encode()
    assert {path.parent for path in store.folder.rglob("*.plan")} == {store.folder}


def test_specs_are_compared_by_value() -> None:
    assert isinstance(spec(), EngineSpec)
    assert spec() == spec()
    assert spec().key == spec().key

"""The engine store: plans on disk that can be trusted, whatever happened while they were written.

An engine is two files in one folder: the plan, named by what it depends on and by its own hash,
and a record that names the plan. The record is written last and in one step, so that

* a build killed at any moment leaves the engine that was there before, or none;
* a plan without a record does not exist, and the next build of that engine sweeps it away;
* a plan is read once, and its bytes are compared with the record's hash before anybody
  deserialises them: TensorRT crashes on a damaged plan at best.

Builds are serialised by ``flock`` on a file of the engine's own: two processes that start together
build once. The kernel drops the lock of a process that dies, so there is no stale lock to judge;
the lock's file stays, because removing it would let two processes hold two files of one name.

Left out: no database, no index (a folder is one), no eviction (plans are small beside images),
no network file systems whose ``flock`` does not exclude.

A record is YAML, written in YAML's subset JSON: the Python of the TensorRT 8.5 bundle has no YAML.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_perception.core.cache import cache_folder
from edge_perception.core.engine import EngineRecord, EngineSpec, parse_record
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

BUILD_POLICIES = ("never", "if_missing", "always")
_KEY_DIGITS = 16
_LOCK_POLL_S = 0.1

Progress = Callable[[str], None]
"""Told in a few words what is being done, many times a second at most."""


def tell_nobody(told: str) -> None:
    """Take progress and keep it to oneself."""


@dataclass(frozen=True)
class BuiltPlan:
    """What a build returns: the plan, the timing cache with what it learnt, and the model's I/O."""

    plan: bytes
    timing_cache: bytes = b""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


Builder = Callable[[Sequence[bytes]], BuiltPlan]
"""Builds a plan, given the timing caches of earlier builds: its own model's first."""


@dataclass(frozen=True)
class StoredEngine:
    """An engine whose plan was compared with its record."""

    record: EngineRecord
    plan: bytes

    def is_newer_than(self, other: StoredEngine) -> bool:
        """Whether this one was built anew since the other was read."""
        return self.record.built_at != other.record.built_at


def default_folder() -> Path:
    """Return the user's engine store: ``$XDG_CACHE_HOME/edge_perception/engines``."""
    return cache_folder("engines")


class EngineStore:
    """The engines in one folder, which is made when the first is built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, spec: EngineSpec) -> StoredEngine | None:
        """Return the engine built for exactly this spec; None if there is none.

        Raises:
            EngineError: its record or its plan is damaged; the plan was not deserialised.
        """
        path = self._path(spec, ".yaml")
        record = _read_record(path)
        while record is not None:
            if record.spec != spec:
                raise EngineError(f"record {str(path)!r} describes another engine than it is named")
            try:
                return StoredEngine(record, _checked_plan(path.with_name(record.plan), record))
            except EngineError:
                newer = _read_record(path)
                if newer == record:
                    raise
                record = newer  # its plan was swept away by whoever has just built it anew
        return None

    def obtain(
        self,
        spec: EngineSpec,
        build: Builder,
        *,
        policy: str = "if_missing",
        model_manifest: Mapping[str, Any] | None = None,
        on_progress: Progress = tell_nobody,
        mend: str = "",
    ) -> StoredEngine:
        """Return the engine for a spec, built first where the policy allows it.

        Args:
            spec: what the engine must fit.
            build: makes the plan; called at most once, under the engine's lock.
            policy: "never" refuses what is missing or damaged, "if_missing" builds it, "always"
                builds it anew even if it is there.
            model_manifest: facts of the model's manifest, for the record.
            on_progress: told what is being waited for.
            mend: the command that builds the engine, for the refusal.

        Raises:
            EngineError: refused, and why; or the build failed.
        """
        if policy not in BUILD_POLICIES:
            expected = f"one of {', '.join(BUILD_POLICIES)}"
            raise EngineError("build policy", expected=expected, got=policy)
        found, refusal = self._try_to_find(spec)
        if found is not None and policy != "always":
            return found
        if policy == "never":
            raise EngineError(refusal, mend=f"Build it: {mend}" if mend else "")
        try:
            with self._locked(spec, on_progress):
                now, _ = self._try_to_find(spec)
                if now is not None and (found is None or now.is_newer_than(found)):
                    return now  # built by another process, for whose lock this one waited
                return self._build(spec, build, model_manifest or {})
        except OSError as error:
            raise EngineError(
                f"cannot write the engine store {str(self.folder)!r}: {error}",
                mend="Name another folder that this user may write, with room for the plan.",
            ) from error

    def note_measured(self, spec: EngineSpec, measured: Mapping[str, Any]) -> None:
        """Add what was measured, such as ``latency_p50_ms``, to an engine's record."""
        with self._locked(spec, tell_nobody):
            engine = self.find(spec)
            if engine is None:
                raise EngineError("no such engine to note a measurement of", got=spec.model)
            merged = {**engine.record.measured, **measured}
            self._write_record(replace(engine.record, measured=merged))

    def records(self, model: str = "") -> Iterator[EngineRecord]:
        """Yield the records in the store, or those of one model; damaged ones are left out."""
        pattern = f"{_file_name(model)}.*.yaml" if model else "*.yaml"
        for path in sorted(self.folder.glob(pattern)):
            with contextlib.suppress(EngineError):
                record = _read_record(path)
                if record is not None:
                    yield record

    def explain_absence(self, spec: EngineSpec) -> str:
        """Say why no engine in the store fits: the nearest one of that model, and its differences.

        A damaged record is not looked at: nothing it says can be trusted.
        """
        differences = sorted(
            (spec.differences(record.spec) for record in self.records(spec.model)), key=len
        )
        where = f"engine store {str(self.folder)!r}"
        if not differences:
            return f"there is no engine of {spec.model!r} in the {where}"
        return (
            f"no engine of {spec.model!r} in the {where} fits this machine and model: "
            + "; ".join(differences[0])
        )

    def _try_to_find(self, spec: EngineSpec) -> tuple[StoredEngine | None, str]:
        try:
            found = self.find(spec)
        except EngineError as error:
            return None, str(error)
        return found, "" if found else self.explain_absence(spec)

    def _build(
        self, spec: EngineSpec, build: Builder, model_manifest: Mapping[str, Any]
    ) -> StoredEngine:
        """Build and file an engine; the caller holds its lock."""
        self._sweep(spec, keep="")
        started = time.monotonic()
        built = build(self._timing_caches(spec))
        if not built.plan:
            raise EngineError(f"the build of {spec.model!r} returned an empty plan")
        digest = hashlib.sha256(built.plan).hexdigest()
        record = EngineRecord(
            spec=spec,
            plan=self._path(spec, f".{digest[:8]}.plan").name,
            plan_sha256=digest,
            plan_bytes=len(built.plan),
            built_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            build_s=round(time.monotonic() - started, 3),
            model_manifest=model_manifest,
        )
        if built.timing_cache:
            _keep_cache(self._timing_path(spec), built.timing_cache)
        write_atomically(self.folder / record.plan, built.plan)
        self._write_record(record)
        self._sweep(spec, keep=record.plan)
        stored = self.find(spec)  # as every later process will read it
        if stored is None:
            raise EngineError(f"the engine of {spec.model!r} vanished while it was being stored")
        return stored

    def _write_record(self, record: EngineRecord) -> None:
        text = json.dumps(record.to_mapping(), indent=1)
        write_atomically(self._path(record.spec, ".yaml"), text.encode())

    def _sweep(self, spec: EngineSpec, keep: str) -> None:
        """Remove what killed builds of this engine left, and plans that its record does not name.

        With nothing to keep, the plan of a sound record stays until its successor is complete.
        """
        if not keep:
            found, _ = self._try_to_find(spec)
            keep = found.record.plan if found else ""
        for pattern in (".*.plan", ".*.tmp"):
            for path in self.folder.glob(self._path(spec, pattern).name):
                if path.name != keep:
                    path.unlink(missing_ok=True)

    def runtime_cache(self, spec: EngineSpec) -> bytes:
        """Return the kernels that TensorRT for RTX compiled for an engine; empty if none."""
        return _read_cache(self._path(spec, ".jit.cache"))

    def keep_runtime_cache(self, spec: EngineSpec, cache: bytes) -> None:
        """Keep kernels that TensorRT for RTX compiled for an engine, where that may be written."""
        with contextlib.suppress(OSError):
            _keep_cache(self._path(spec, ".jit.cache"), cache)

    def _timing_caches(self, spec: EngineSpec) -> list[bytes]:
        """Return what builds by this TensorRT for this kind of GPU learnt, the model's own first.

        Models and precisions share much: copies between layouts, for one, are most of the work.
        """
        own = self._timing_path(spec)
        others = sorted(set(self.folder.glob(f"*.{_timing_suffix(spec)}")) - {own})
        return [cache for cache in map(_read_cache, (own, *others)) if cache]

    def _timing_path(self, spec: EngineSpec) -> Path:
        """Name the timing cache: of a model, so that retrained weights find it too.

        Builds of several models side by side would overwrite one another's in a common file.
        """
        return self.folder / f"{_file_name(spec.model)}.{spec.precision}.{_timing_suffix(spec)}"

    def _path(self, spec: EngineSpec, suffix: str) -> Path:
        return self.folder / f"{_file_name(spec.model)}.{spec.key[:_KEY_DIGITS]}{suffix}"

    def _locked(
        self, spec: EngineSpec, on_progress: Progress
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of one engine."""
        told = f"waiting for another process that builds {spec.model!r}"
        self.folder.mkdir(parents=True, exist_ok=True)
        return _locked(self._path(spec, ".lock"), lambda: on_progress(told))


@contextlib.contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; wait for whoever holds it, for as long as that process lives."""
    with path.open("a+b") as file:
        while not _try_lock(file.fileno()):
            on_wait()
            time.sleep(_LOCK_POLL_S)
        yield  # closing the file unlocks it


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, also after a power cut."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_cache(path: Path) -> bytes:
    """Return a cache's content; empty where there is none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    digest, cache = content[:32], content[32:]
    return cache if hashlib.sha256(cache).digest() == digest else b""


def _keep_cache(path: Path, cache: bytes) -> None:
    # Of two builds that end together the last one's is kept: only time is lost by it.
    with _locked(path.with_suffix(".lock"), lambda: None):
        for scratch in path.parent.glob(f"{path.name}.*.tmp"):
            scratch.unlink()
        write_atomically(path, hashlib.sha256(cache).digest() + cache)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_record(path: Path) -> EngineRecord | None:
    try:
        return parse_record(json.loads(path.read_bytes().decode()))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EngineError) as error:
        raise EngineError(f"engine record {str(path)!r} is damaged: {error}") from error


def _checked_plan(path: Path, record: EngineRecord) -> bytes:
    """Read a plan and compare it with its record."""
    try:
        plan = path.read_bytes()
    except FileNotFoundError as error:
        raise EngineError(f"the plan {str(path)!r} that a record names is missing") from error
    if len(plan) != record.plan_bytes:
        raise EngineError(
            f"plan {str(path)!r} is cut short or has grown",
            expected=f"{record.plan_bytes} bytes",
            got=len(plan),
        )
    digest = hashlib.sha256(plan).hexdigest()
    if digest != record.plan_sha256:
        raise EngineError(
            f"plan {str(path)!r} is damaged", expected=f"sha256 {record.plan_sha256}", got=digest
        )
    return plan


def _timing_suffix(spec: EngineSpec) -> str:
    where = f"{spec.runtime} {spec.runtime_version} {spec.compute_capability} {spec.gpu_name}"
    return f"{_file_name(where)}.timing.cache"


def _file_name(name: str) -> str:
    """Return a name as it may stand in a file's, and in a glob pattern."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)

"""FP16 against INT8 by TensorRT 8.5.3 on an H100: builds in the background, then one measurement.

TensorRT 8.5 is JetPack 5's; on an H100 its INT8 convolutions are the sm80 kernels of Orin's family.
It runs in the bundle's Python 3.9 (run_tensorrt_h100.sh), where there is neither ONNX Runtime nor
OpenCV: oracle.py prepares the inputs before, and judges the outputs afterwards.

    $TRT_PYTHON -m benchmarks.int8.tensorrt_h100 build MODELS --work out/int8    # returns at once
    $TRT_PYTHON -m benchmarks.int8.tensorrt_h100 measure MODELS --work out/int8 --out OUT

MODELS is a folder with, for each model, ``NAME.float.onnx``, ``NAME.int8.onnx`` and ``NAME.npz``
(``codes`` uint8 (N, ...) and ``scale``: an input is their product). What the engines make of these
inputs goes into the folder of the results, in halves: oracle.py, on the machine that has ONNX
Runtime, says how right that is.

Each engine is built by a process of its own, into an engine store, in the background, by lanes that
take the next engine that no other lane has: one lane for each GPU in ``--gpus`` (a GPU may be named
twice), and the same command once more adds lanes. What is built, or failed, is left alone, what was
cut off is begun again. One lane a GPU is best: most of a build is timing copies between layouts,
2.9 ms each where a build has an H100 to itself, and 15 to 60 ms where three or four share it. FP16
is built from the float graph, INT8 from the Q/DQ graph with FP16 elsewhere, both with the same
tactic sources.

Latency is the time between two events around each inference on an otherwise idle GPU. The four
ways (FP16 and INT8, enqueued and as a CUDA graph) take turns, so that drifting clocks hit all.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from benchmarks.int8.cudart import CudaRuntime
from edge_perception.backends.build import BuildOptions, build_plan
from edge_perception.backends.engine_store import BuiltPlan, EngineStore, StoredEngine
from edge_perception.backends.tensorrt import Engine, import_tensorrt
from edge_perception.core.engine import EngineSpec
from edge_perception.core.machine import describe_machine, utc_now

TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
WORKSPACE_MIB = 4096
WORDS = "%(relativeCreated)d %(message)s"  # ms from the start
ENDED = re.compile("^(built|Error)", re.MULTILINE)  # in a build's log
WARM_UP, RUNS, ROUNDS = 50, 200, 5
DEFINITIONS = {
    "fp16_ms": "p50 of the time between CUDA events around one inference; _graph: CUDA graph",
    "int8_over_fp16": "fp16_ms / int8_ms: how many times faster INT8 is",
    "build_s": "wall time of one build; others may have run on the same GPU",
}


@dataclass(frozen=True)
class Job:
    """One engine: ``precision`` "float16" of the float graph or "int8" of the Q/DQ graph."""

    model: str
    precision: str
    onnx: Path

    @property
    def options(self) -> BuildOptions:
        return BuildOptions(self.precision, WORKSPACE_MIB, TACTICS)

    def spec(self, trt: Any, gpu: tuple[str, str]) -> EngineSpec:
        name, capability = gpu
        return EngineSpec(
            model=self.model,
            onnx_sha256=hashlib.sha256(self.onnx.read_bytes()).hexdigest(),
            precision=self.precision,
            inputs=(),
            outputs=(),
            runtime="tensorrt",
            runtime_version=trt.__version__,
            compute_capability=capability,
            gpu_name=name,
            flags=self.options.flags(trt),
        )


def find_jobs(models: Path, first: Sequence[str] = ()) -> list[Job]:
    """Return the engines to build, by model; both graphs and the oracle must be there."""
    jobs = []
    rank = {name: index for index, name in enumerate(first)}
    oracles = models.glob("*.npz")
    for oracle in sorted(oracles, key=lambda path: (rank.get(path.stem, len(rank)), path.stem)):
        for precision, kind in (("float16", "float"), ("int8", "int8")):
            onnx = models / f"{oracle.stem}.{kind}.onnx"
            if not onnx.is_file():
                raise SystemExit(f"{onnx} is missing beside {oracle}")
            jobs.append(Job(oracle.stem, precision, onnx))
    if not jobs:
        raise SystemExit(f"no model with an oracle (NAME.npz) in {models}")
    return jobs


# Building.


def start_builds(options: argparse.Namespace) -> None:
    """Start one process a lane, which outlives this one."""
    options.work.mkdir(parents=True, exist_ok=True)
    command = [*_command("build-lane", options), "--first", *options.first]
    with (options.work / "lanes.txt").open("a") as file:
        for gpu in options.gpus:
            subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
            )


def build_lane(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Build what no other lane has; a build that fails, or takes its process with it, ends alone.

    A lane holds the lock of a build's log while it builds; the lock ends with the build's process.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        with (options.work / f"{job.model}.{job.precision}.log").open("a+") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            log.seek(0)
            if not ENDED.search(log.read()):
                _build_in_process(job, options, log)


def _build_in_process(job: Job, options: argparse.Namespace, log: TextIO) -> None:
    command = [*_command("build-one", options), "--only", job.model, job.precision]
    ended = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if ended:
        log.write(f"Error: the build's process ended with {ended}\n")


def _command(name: str, options: argparse.Namespace) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.int8.tensorrt_h100"]
    return [*module, name, str(options.models), "--work", str(options.work)]


def keep_words(path: Path) -> None:
    """Keep all that TensorRT tells, with times: what a slow build did is in there."""
    logging.basicConfig(filename=path, filemode="w", level=logging.DEBUG, format=WORDS)


def obtain(job: Job, trt: Any, gpu: tuple[str, str], work: Path, policy: str) -> StoredEngine:
    """Return an engine from the store, built first where the policy says so."""

    def build(timing_caches: Sequence[bytes]) -> BuiltPlan:
        return build_plan(trt, job.onnx.read_bytes(), job.options, timing_caches)

    return EngineStore(work).obtain(job.spec(trt, gpu), build, policy=policy)


# Measuring.


class Runner:
    """An engine with its tensors on the GPU."""

    def __init__(self, trt: Any, cuda: CudaRuntime, plan: bytes) -> None:
        self._cuda, self.engine = cuda, Engine(trt, plan)
        tensors = (*self.engine.inputs, *self.engine.outputs)
        self._arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in tensors}
        self._addresses = {
            name: cuda.allocate(array.nbytes) for name, array in self._arrays.items()
        }
        self.engine.bind(self._addresses)
        self.enqueue()  # loads the kernels, which a capture refuses to do
        cuda.synchronize()
        self.launch = cuda.capture(self.enqueue)

    def enqueue(self) -> None:
        """Queue one inference."""
        self.engine.enqueue(self._cuda.stream)

    def infer(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Run on one input, by the CUDA graph; return copies of the outputs."""
        (image,) = self.engine.inputs
        given = np.ascontiguousarray(values, image.dtype).reshape(image.shape)
        self._cuda.upload(self._addresses[image.name], given)
        self.launch()
        self._cuda.synchronize()
        for spec in self.engine.outputs:
            self._cuda.download(self._arrays[spec.name], self._addresses[spec.name])
        return [self._arrays[spec.name].copy() for spec in self.engine.outputs]


def measure_model(
    trt: Any, cuda: CudaRuntime, engines: dict[str, StoredEngine], oracle: Path, out: Path
) -> dict[str, Any]:
    """Return one model's figures; raw outputs go to ``out`` for oracle.py to judge."""
    fp16 = Runner(trt, cuda, engines["float16"].plan)
    int8 = Runner(trt, cuda, engines["int8"].plan)
    for precision, runner in (("float16", fp16), ("int8", int8)):
        found = run_inputs(runner, oracle)
        np.savez_compressed(out / f"{oracle.stem}.{precision}.npz", **found)
    ways = {
        "fp16": fp16.enqueue,
        "int8": int8.enqueue,
        "fp16_graph": fp16.launch,
        "int8_graph": int8.launch,
    }
    figures: dict[str, Any] = latencies(cuda, ways)
    figures["int8_over_fp16"] = round(figures["fp16_ms"] / figures["int8_ms"], 3)
    figures["int8_over_fp16_graph"] = round(figures["fp16_graph_ms"] / figures["int8_graph_ms"], 3)
    for key, name in (("build_s", "build_s"), ("plan_bytes", "plan_bytes")):
        figures[key] = {way: getattr(stored.record, name) for way, stored in engines.items()}
    return figures


def run_inputs(runner: Runner, inputs: Path) -> dict[str, npt.NDArray[np.float16]]:
    """Return the outputs for every input of a file, as halves: they must fit through a door."""
    with np.load(inputs) as file:
        codes, scale = file["codes"], file["scale"]
    results = [runner.infer(row * scale) for row in codes]
    return {
        f"output_{i}": np.stack(outputs).astype(np.float16)
        for i, outputs in enumerate(zip(*results))
    }


def latencies(cuda: CudaRuntime, ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Time each way in turn, several rounds; return p50 and p99 in ms of each."""
    samples: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, enqueue in ways.items():
            for _ in range(WARM_UP):
                enqueue()
            cuda.synchronize()
            samples[name].append(cuda.event_times_ms(enqueue, RUNS))
    figures = {}
    for name, parts in samples.items():
        p50, p99 = np.percentile(np.concatenate(parts), [50, 99])
        figures[f"{name}_ms"], figures[f"{name}_p99_ms"] = round(p50, 4), round(p99, 4)
    return figures


def measure_all(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Measure every model whose two engines are built; write the JSON after each."""
    trt, cuda = import_tensorrt(), CudaRuntime()
    gpu = cuda.device()
    report: dict[str, Any] = {
        "date": utc_now(),
        "commit": options.commit,
        "machine": describe_machine(),
        "tensorrt": trt.__version__,
        "tactic_sources": list(TACTICS),
        "runs": RUNS * ROUNDS,
        "definitions": DEFINITIONS,
        "models": {},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, pair in by_model(jobs):
        try:
            engines = {job.precision: obtain(job, trt, gpu, options.work, "never") for job in pair}
        except Exception as error:  # told, and the other models measured
            print(f"{name}: {error}", file=sys.stderr)
            continue
        oracle = options.models / f"{name}.npz"
        report["models"][name] = measure_model(trt, cuda, engines, oracle, options.out)
        text = json.dumps(report, indent=2) + "\n"
        (options.out / "int8_tensorrt_h100.json").write_text(text)
        print(name, json.dumps(report["models"][name]), flush=True)


def by_model(jobs: Sequence[Job]) -> Iterator[tuple[str, list[Job]]]:
    """Yield each model's name and jobs, in the jobs' order."""
    for name in dict.fromkeys(job.model for job in jobs):
        yield name, [job for job in jobs if job.model == name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, or measure, or say what either would do."""
    options = parse(arguments)
    jobs = find_jobs(options.models, options.first)
    if options.only:
        jobs = [job for job in jobs if [job.model, job.precision] == options.only]
    if options.dry_run:
        for job in jobs:
            size_mb = job.onnx.stat().st_size / 1e6
            print(f"{options.command} {job.model} {job.precision}: {job.onnx} ({size_mb:.1f} MB)")
        return
    if options.command == "build":
        start_builds(options)
    elif options.command == "build-lane":
        build_lane(jobs, options)
    elif options.command == "build-one":
        started = time.monotonic()
        keep_words(options.work / f"{jobs[0].model}.{jobs[0].precision}.words")
        obtain(jobs[0], import_tensorrt(), CudaRuntime().device(), options.work, "if_missing")
        print(f"built in {time.monotonic() - started:.1f} s")
    else:
        measure_all(jobs, options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("command", choices=("build", "build-lane", "build-one", "measure"))
    parser.add_argument("models", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="the engine store and the logs")
    parser.add_argument("--out", type=Path, default=Path("out/int8_tensorrt_h100"))
    parser.add_argument("--commit", default="", help="noted in the JSON")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "PRECISION"), default=[])
    parser.add_argument("--first", nargs="*", default=[], help="models to build before the others")
    parser.add_argument("--gpus", nargs="+", default=["0"], help="a number for each lane")
    parser.add_argument("--dry-run", action="store_true", help="print the engines, do nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

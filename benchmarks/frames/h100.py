"""Frames and kernels on a discrete GPU: first equality, then the clock.

    python -m benchmarks.frames.h100 [--out docs/benchmarks/frames_h100.json] [--commit HASH]

Everything a figure rests on is compared with the CPU's result in the same run; after any
difference or failure the rest still runs, to be read, but the file is named ``*.failed.json`` and
the exit status is 1. GPU times are CUDA events around a captured graph of many
launches on distinct frames (so neither Python nor the L2 cache flatters them); latencies are the
monotonic clock of the host, at its ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver

from benchmarks.frames.device_buffers import device_memory, pinned_copy, upload
from benchmarks.frames.frame_source import (
    FULL_HD,
    info,
    percentiles,
    provenance,
    random_frame,
    seal,
)
from edge_perception.core.image import ENCODINGS, ImageFormat
from edge_perception.core.manifest import Preprocessing
from edge_perception.gpu.cuda import Device, Event, Stream, checked, get_device
from edge_perception.gpu.preprocess import ImageRegion, Preprocessor
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor, DeviceRegion
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import choose_transport, transport_named

NETWORK = Preprocessing(640, 640)
DISTINCT_FRAMES = 48  # of 1080p: 299 MB, six times the L2 cache
BATCH = 8


def main() -> None:
    """Run every part, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/frames_h100.json"))
    parser.add_argument("--commit", default="")
    parser.add_argument("--skip-sanitizer", action="store_true")
    arguments = parser.parse_args()

    device = get_device()
    device.make_current()
    result: dict[str, Any] = {"schema": 1, **provenance(arguments.commit)}
    result["machine"]["gpu"] = device.name
    parts: dict[str, Callable[[Device], Any]] = {
        "equality": lambda _: prove_equality(),
        "transport_probe": lambda _: probe_transports(),
        "uploads": measure_uploads,
        "write_to_read": measure_write_to_read,
        "ipc": lambda _: measure_between_processes("cuda_ipc"),
        "mapped": lambda _: measure_between_processes("cuda_mapped"),
        "preprocess": measure_preprocessing,
        "detector_path": lambda _: _detector_path(),
    }
    if not arguments.skip_sanitizer:
        parts["sanitizer"] = lambda _: run_sanitizer()
    failed = []
    partial = arguments.out.with_suffix(".partial.json")  # what is left if the run is cut short
    partial.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        began = time.monotonic()
        try:
            result[name] = part(device)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            result[name] = {"failed": str(error)}
            failed.append(name)
        print(f"{name} ({time.monotonic() - began:.1f} s): {json.dumps(result[name])}", flush=True)
        partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.rename(arguments.out.with_suffix(".failed.json") if failed else arguments.out)
    print_table(result)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def prove_equality() -> dict[str, Any]:
    """Every encoding, several sizes and dtypes: kernel against CPU, in levels of 255."""
    worst = 0.0
    cases = 0
    for dtype in ("float32", "float16"):
        for height, width in ((640, 640), (1080, 1920), (480, 640), (122, 1000), (300, 34)):
            for encoding in ENCODINGS:
                packed = ImageFormat.packed(encoding, height, width)
                fmt = ImageFormat(encoding, height, width, packed.step + 5)
                spec = Preprocessing(640, 640, scale=1.0, dtype=dtype)
                difference = _difference(spec, random_frame(cases, fmt), fmt)
                # float16 holds whole levels up to 255 exactly, and fractions to an eighth
                allowed = 1.001 if dtype == "float32" else 1.125
                if difference > allowed:
                    raise SystemExit(f"{encoding} {width}x{height} {dtype}: {difference} levels")
                worst, cases = max(worst, difference), cases + 1
    return {"cases": cases, "worst_levels": round(worst, 4)}


def _difference(spec: Preprocessing, pixels: np.ndarray, fmt: ImageFormat) -> float:
    expected, _ = Preprocessor(spec).batch([ImageRegion(pixels, fmt)])
    stream = Stream(get_device())
    with device_memory(pixels.nbytes) as source, device_memory(expected.nbytes) as tensor:
        checked(driver.cuMemcpyHtoD(source, pixels.ctypes.data, pixels.nbytes), "uploading")
        get_device().synchronize()  # the driver may return before pageable memory has arrived
        CudaPreprocessor(spec).launch([DeviceRegion(source, fmt)], tensor, stream.handle)
        stream.synchronize()
        got = np.empty_like(expected)
        checked(driver.cuMemcpyDtoH(got.ctypes.data, tensor, got.nbytes), "downloading")
    stream.close()
    apart = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if apart.max() > 1:
        at = np.unravel_index(apart.argmax(), apart.shape)
        print(f"{fmt}: at {at} kernel {got[at]}, CPU {expected[at]}, {(apart > 1).sum()} apart")
    return float(apart.max())


def probe_transports() -> dict[str, str]:
    """What the probe chooses here, and why."""
    within = choose_transport(across_processes=False, gpu_readers=True)
    between = choose_transport(across_processes=True, gpu_readers=True)
    return {
        "in_process": f"{within.transport.name}: {within.why}",
        "across_processes": f"{between.transport.name}: {between.why}",
    }


def measure_uploads(device: Device) -> dict[str, Any]:
    """One upload for three readers through the ring, against an upload for each reader."""
    streams = [Stream(device) for _ in range(3)]
    frames = [random_frame(seed) for seed in range(8)]
    once_ms, thrice_ms = [], []
    with _ring("cuda_in_process") as ring, device_memory(3 * FULL_HD.size_bytes) as copies:
        for sequence in range(1, 321):
            frame = frames[sequence % len(frames)]
            began = time.perf_counter_ns()
            ring.write(frame, info(sequence))
            lease = ring.acquire_newest()
            assert lease is not None
            with lease:
                for stream in streams:
                    lease.on_device(stream.handle)
            _synchronize(streams)
            once_ms.append((time.perf_counter_ns() - began) / 1e6)
            began = time.perf_counter_ns()
            for i, stream in enumerate(streams):
                target = copies + i * FULL_HD.size_bytes
                upload(target, frame, stream)
            _synchronize(streams)
            thrice_ms.append((time.perf_counter_ns() - began) / 1e6)
    for stream in streams:
        stream.close()
    once, thrice = percentiles(once_ms[20:]), percentiles(thrice_ms[20:])
    ratio = round(np.median(thrice_ms[20:]) / np.median(once_ms[20:]), 3)
    return {
        "once": once,
        "thrice_pageable": thrice,
        "thrice_over_once": ratio,
        "bus": _measure_bus(device),
    }


def _measure_bus(device: Device) -> dict[str, Any]:
    """The bus alone, by events: pinned uploads of one frame, once and for each of three readers."""
    stream = Stream(device)
    size = FULL_HD.size_bytes
    with pinned_copy(random_frame(0)) as frame, device_memory(3 * size) as target:

        def queue(times: int) -> None:
            for i in range(times):
                upload(target + i * size, frame, stream)

        once_ms, thrice_ms = (_graph_ms(stream, partial(queue, times)) for times in (1, 3))
    stream.close()
    return {
        "once_ms": round(once_ms, 4),
        "thrice_ms": round(thrice_ms, 4),
        "thrice_over_once": round(thrice_ms / once_ms, 3),
        "gb_per_s": round(size / once_ms / 1e6, 1),
    }


def measure_write_to_read(device: Device) -> dict[str, Any]:
    """From the call of ``write`` to the frame readable on a stream of another kind, in process."""
    stream = Stream(device)
    frames = [random_frame(seed) for seed in range(8)]
    latencies_ms, writes_ms = [], []
    with _ring("cuda_in_process") as ring:
        for sequence in range(1, 1021):
            described = info(sequence)
            ring.write(frames[sequence % len(frames)], described)
            writes_ms.append((time.monotonic_ns() - described.receive_ns) / 1e6)
            lease = ring.acquire_newest(sequence - 1)
            assert lease is not None
            with lease:
                lease.on_device(stream.handle)
                stream.synchronize()
            latencies_ms.append((time.monotonic_ns() - described.receive_ns) / 1e6)
    stream.close()
    return {**percentiles(latencies_ms[20:]), "write": percentiles(writes_ms[20:])}


def measure_between_processes(transport: str, frames: int = 600) -> dict[str, Any]:
    """From ``write`` here to the frame readable on a stream of another process."""
    sealed = [random_frame(seed) for seed in range(4)]
    with _ring(transport) as ring:
        command = [sys.executable, "-m", "benchmarks.frames.gpu_reader"]
        reader = subprocess.Popen(
            [*command, ring.descriptor(0).hex(), str(frames)], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        if reader.stdout.readline().strip() != "attached":
            raise SystemExit(f"{transport}: the reader could not attach")
        sequence = 0
        while reader.poll() is None and sequence < 20 * frames:
            sequence += 1
            frame = sealed[sequence % len(sealed)]
            seal(frame, sequence)
            ring.write(frame, info(sequence))
            time.sleep(0.004)
        report = json.loads(reader.stdout.read())
        reader.wait(timeout=30)
        counters = ring.counters
    if report["torn"] or len(report["latencies_ms"]) < frames:
        raise SystemExit(f"{transport}: {report['torn']} torn, {len(report['latencies_ms'])} read")
    dropped = counters.dropped_all_slots_leased
    return {**percentiles(report["latencies_ms"][50:]), "torn": 0, "dropped": dropped}


def measure_preprocessing(device: Device) -> dict[str, Any]:
    """Batch 8 and single frames over 299 MB of distinct frames, against the copy bandwidth."""
    stream = Stream(device)
    bandwidth = _copy_bandwidth(stream)
    size = FULL_HD.size_bytes
    out_bytes = BATCH * int(np.prod(NETWORK.input_shape)) * 4
    kernel = CudaPreprocessor(NETWORK)
    with device_memory(DISTINCT_FRAMES * size) as frames, device_memory(6 * out_bytes) as out:
        for i in range(DISTINCT_FRAMES):
            frame = random_frame(i)
            checked(driver.cuMemcpyHtoD(frames + i * size, frame.ctypes.data, size), "uploading")
        device.synchronize()
        regions = [DeviceRegion(frames + i * size, FULL_HD) for i in range(DISTINCT_FRAMES)]

        def batches() -> None:
            for i in range(DISTINCT_FRAMES // BATCH):
                part = regions[i * BATCH : (i + 1) * BATCH]
                kernel.launch(part, out + i * out_bytes, stream.handle)

        def singles() -> None:
            for i, region in enumerate(regions):
                kernel.launch([region], out + i * (out_bytes // BATCH), stream.handle)

        batch_ms = _graph_ms(stream, batches) / (DISTINCT_FRAMES // BATCH)
        single_ms = _graph_ms(stream, singles) / DISTINCT_FRAMES
    stream.close()
    touched = touched_bytes(FULL_HD, NETWORK)
    achieved = BATCH * touched / batch_ms / 1e6
    return {
        "ms": round(batch_ms, 5),
        "batch": BATCH,
        "distinct_mb": round(DISTINCT_FRAMES * size / 1e6),
        "bytes_touched_a_frame": touched,
        "gb_per_s": round(achieved, 1),
        "copy_gb_per_s": round(bandwidth, 1),
        "bandwidth_share": round(achieved / bandwidth, 4),
        "one_frame_us": round(single_ms * 1e3, 3),
        "opencv_and_upload": _opencv_and_upload(device),
    }


def touched_bytes(source: ImageFormat, spec: Preprocessing) -> int:
    """Bytes a frame moves: 32-byte sectors of the pixels that carry weight, and the tensor.

    For packed encodings of three bytes a pixel.
    """
    ratio = min(spec.height / source.height, spec.width / source.width)
    rows = _needed(source.height, round(source.height * ratio))
    columns = _needed(source.width, round(source.width * ratio))
    byte = np.concatenate([columns * 3, columns * 3 + 2])
    sectors = np.unique(byte // 32).size
    return int(rows.size * sectors * 32 + np.prod(spec.input_shape) * 4)


def _needed(source: int, target: int) -> np.ndarray:
    numerator = np.clip((2 * np.arange(target) + 1) * source - target, 0, None)
    low, rest = np.divmod(numerator, 2 * target)
    return np.unique(np.concatenate([low, np.minimum(low + 1, source - 1)[rest > 0]]))


def _opencv_and_upload(device: Device) -> dict[str, Any]:
    """The CPU's preprocessing of one frame and the upload of its tensor."""
    stream = Stream(device)
    preprocess = Preprocessor(NETWORK)
    frames = [random_frame(seed) for seed in range(8)]
    times_ms = []
    with device_memory(int(np.prod(NETWORK.input_shape)) * 4) as target:
        for i in range(120):
            began = time.perf_counter_ns()
            tensor, _ = preprocess(frames[i % 8], FULL_HD)
            upload(target, tensor, stream)
            stream.synchronize()
            times_ms.append((time.perf_counter_ns() - began) / 1e6)
    stream.close()
    return percentiles(times_ms[20:])


def _detector_path() -> dict[str, Any]:
    from benchmarks.frames.detector_path import measure_detector_path  # torch, for this part alone

    return measure_detector_path()


def run_sanitizer() -> dict[str, Any]:
    """compute-sanitizer over every kernel; its own count of errors."""
    report: dict[str, Any] = {}
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        driver_command = [sys.executable, "-m", "benchmarks.frames.kernel_driver"]
        run = subprocess.run(
            [*command, *driver_command], capture_output=True, text=True, timeout=120, check=False
        )
        lines = (run.stdout + run.stderr).splitlines()
        summary = [line for line in lines if "SUMMARY" in line or line.startswith("ran ")]
        report[tool] = {"clean": run.returncode == 0, "summary": summary}
        if run.returncode:
            raise SystemExit("\n".join([f"{tool} found errors", *lines[-40:]]))
    return report


def _copy_bandwidth(stream: Stream, size: int = 512 << 20) -> float:
    """Measured device-to-device copy, bytes read and written, in GB/s."""
    with device_memory(size) as source, device_memory(size) as target:

        def copies() -> None:
            for _ in range(10):
                checked(driver.cuMemcpyDtoDAsync(target, source, size, stream.handle), "copying")

        return 10 * 2 * size / _graph_ms(stream, copies) / 1e6


def _graph_ms(stream: Stream, queue: Callable[[], None], repeats: int = 30) -> float:
    """Median GPU time of what ``queue`` launches, replayed as a graph."""
    queue()
    stream.synchronize()
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    checked(driver.cuStreamBeginCapture(stream.handle, mode), "capturing")
    queue()
    graph = checked(driver.cuStreamEndCapture(stream.handle), "capturing")
    executable = checked(driver.cuGraphInstantiate(graph, 0), "making a graph")
    begin, end = Event(timed=True), Event(timed=True)
    times = []
    for _ in range(repeats + 3):
        begin.record(stream.handle)
        checked(driver.cuGraphLaunch(executable, stream.handle), "launching a graph")
        end.record(stream.handle)
        end.synchronize()
        times.append(end.elapsed_ms(begin))
    checked(driver.cuGraphExecDestroy(executable), "freeing a graph")
    checked(driver.cuGraphDestroy(graph), "freeing a graph")
    return float(np.median(times[3:]))


def _ring(transport: str) -> FrameRing:
    spec = RingSpec("benchmark", slots=6, slot_bytes=FULL_HD.size_bytes, max_leases=4)
    return FrameRing.create(spec, transport_named(transport))


def _synchronize(streams: list[Stream]) -> None:
    for stream in streams:
        stream.synchronize()


def print_table(result: dict[str, Any]) -> None:
    """The figures that the goals name."""
    rows = (
        ("upload once for 3 readers against thrice", "uploads.thrice_over_once", "x"),
        ("write to read, in process, p50", "write_to_read.p50_ms", "ms"),
        ("write to read, in process, p99", "write_to_read.p99_ms", "ms"),
        ("write to read, CUDA IPC, p50", "ipc.p50_ms", "ms"),
        ("write to read, CUDA IPC, p99", "ipc.p99_ms", "ms"),
        ("write to read, mapped, p50", "mapped.p50_ms", "ms"),
        ("write to read, mapped, p99", "mapped.p99_ms", "ms"),
        ("preprocess, batch 8", "preprocess.ms", "ms"),
        ("preprocess, share of copy bandwidth (goal 0.5)", "preprocess.bandwidth_share", ""),
        ("preprocess, one frame (goal 10)", "preprocess.one_frame_us", "us"),
        ("OpenCV and upload, p50", "preprocess.opencv_and_upload.p50_ms", "ms"),
        ("detector path from a pinned frame, p50", "detector_path.p50_ms", "ms"),
        ("detector path from a pinned frame, p99", "detector_path.p99_ms", "ms"),
        ("the same with a copy into the ring, p50", "detector_path.through_copy.p50_ms", "ms"),
        ("the same with a copy into the ring, p99", "detector_path.through_copy.p99_ms", "ms"),
        ("from a JPEG, nvJPEG, p50", "detector_path.from_jpeg.nvjpeg.p50_ms", "ms"),
        ("from a JPEG, simplejpeg, p50", "detector_path.from_jpeg.simplejpeg.p50_ms", "ms"),
    )
    for label, keys, unit in rows:
        value: Any = result
        for key in keys.split("."):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        print(f"{label:<50} {value or '-'!s:>10} {unit}")


if __name__ == "__main__":
    main()

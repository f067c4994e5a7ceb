"""``edge-perception build``: the engine of a model, built and kept before a node needs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_perception.backends.engine_store import EngineStore, StoredEngine
    from edge_perception.core.engine import Gpu
    from edge_perception.core.manifest import Manifest


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "build", help="build a model's engine for a GPU", description=__doc__
    )
    parser.add_argument("manifest", type=Path, help="the model's manifest (YAML)")
    parser.add_argument("--backend", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "float16", "int8"),
        default="auto",
        help="auto: int8 for a quantised model, float16 for a float one",
    )
    parser.add_argument("--store", type=Path, help="folder of engines; the user's cache by default")
    parser.add_argument("--device", type=int, default=0, help="ordinal of the GPU to build on")
    parser.add_argument(
        "--compute-capability",
        metavar="8.6",
        default="",
        help="build for such a GPU on any machine, also one without (tensorrt_rtx only)",
    )
    parser.add_argument(
        "--measure", action="store_true", help="time the engine on this GPU, for its record"
    )
    parser.add_argument("--force", action="store_true", help="build even if there is an engine")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Build, unless the engine is there."""
    from rich.console import Console

    from edge_perception.backends.build import BuildOptions
    from edge_perception.backends.engines import EngineRequest, obtain_engine
    from edge_perception.backends.store import load_manifest

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    manifest, model = load_manifest(options.manifest)
    request = EngineRequest(
        runtime=options.backend,
        precision=options.precision,
        policy="always" if options.force else "if_missing",
        store=options.store,
        options=BuildOptions(target=options.compute_capability),
    )
    gpu = _gpu(options)
    with console.status(f"building {manifest.name}") as status:
        engine = obtain_engine(options.manifest, manifest, model, request, gpu, status.update)
        if options.measure:
            status.update("measuring")
            _measure(options, manifest, model, engine, request.open_store())
    _tell(engine, request.open_store().folder)
    return 0


def _measure(
    options: argparse.Namespace,
    manifest: Manifest,
    model: Path,
    engine: StoredEngine,
    store: EngineStore,
) -> None:
    """Note an engine's latency in its record, and print it."""
    from edge_perception.detection.runtimes import RuntimeChoice, measure_latency, open_backend

    choice = RuntimeChoice(
        backend=options.backend,
        device=options.device,
        build="never",
        precision=engine.record.spec.precision,
        store=store.folder,
    )
    backend = open_backend(options.manifest, manifest, model, choice)
    try:
        figures = measure_latency(backend)
    finally:
        backend.close()
    store.note_measured(engine.record.spec, figures)
    print(", ".join(f"{name} {value}" for name, value in figures.items()))


def _gpu(options: argparse.Namespace) -> Gpu:
    from edge_perception.core.engine import Gpu
    from edge_perception.detection.runtimes import local_gpu

    if options.compute_capability:
        return Gpu(options.compute_capability)
    return local_gpu(options.device)


def _tell(engine: StoredEngine, folder: Path) -> None:
    record = engine.record
    print(
        f"{record.spec.model}: {record.spec.precision}, {record.spec.runtime}"
        f" {record.spec.runtime_version}, compute capability {record.spec.compute_capability},"
        f" {record.plan_bytes / 1e6:.1f} MB, built {record.built_at} in {record.build_s:.1f} s"
    )
    print(folder / record.plan)

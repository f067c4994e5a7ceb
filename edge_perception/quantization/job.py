"""A checkpoint quantised from disk to disk, one block in memory at a time.

The order: build the model's skeleton; plan; fill what lies outside the blocks and record what the
calibration data cause at the first block; then block by block read, quantise, write, forget. An
8B model needs a few GB of device memory so, a 70B one about as much as its widest block and the
samples' hidden states. The seam to resuming is the folder: what is there already is read back in
place of being computed, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_perception.errors import QuantizationError
from edge_perception.quantization.calibration import digest_of
from edge_perception.quantization.card import model_card
from edge_perception.quantization.encoding import (
    ExportLayout,
    check_expressible,
    encode_layer,
    quantization_config,
    round_alone,
)
from edge_perception.quantization.export import CheckpointFolder, ShardSink, identity_of
from edge_perception.quantization.pipeline import Progress, peak_bytes, quantize_tower
from edge_perception.quantization.plan import Plan, float_type_name, make_plan
from edge_perception.quantization.recipe import Recipe
from edge_perception.quantization.streaming import Batch, Sample, record_samples
from edge_perception.vlm.assembly import (
    WeightSource,
    build_skeleton,
    fill,
    is_tied,
    model_names,
    open_weights,
    stored_dtype,
)


@dataclass(frozen=True)
class Job:
    """What to quantise, how, and where to; ``tokenizer`` names what tokenizer files to carry."""

    model: Path
    out: Path
    recipe: Recipe
    layout: ExportLayout = ExportLayout.AWQ
    device: str = "cpu"
    dtype: str | None = None
    vision: bool = False
    head_bits: int | None = None
    embedding_bits: int | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished job wrote."""

    bytes: int
    float_bytes: int
    seconds: float
    peak_bytes: int
    restored_blocks: int


class DiskBlocks:
    """Reads a block's weights when it is their turn, and drops them after.

    Blocks of a path in ``kept`` stay on the device: a vision tower feeds the language tower.
    """

    def __init__(
        self,
        source: WeightSource,
        stored: Mapping[str, str],
        dtype: torch.dtype,
        kept: Sequence[str],
    ) -> None:
        self._source = source
        self._stored = stored
        self._dtype = dtype
        self._kept = tuple(f"{path}." for path in kept)

    def load(self, path: str, block: nn.Module, device: torch.device) -> None:
        """Read the block's weights to ``device``."""
        names = {}
        for name, _ in block.named_parameters():
            full = f"{path}.{name}"
            if full not in self._stored:
                raise QuantizationError("the checkpoint lacks a weight", expected=full)
            names[self._stored[full]] = name
        fill(block, self._source, names, device=device, dtype=self._dtype)
        block.to(device)  # buffers

    def release(self, path: str, block: nn.Module) -> None:
        """Drop the block's weights."""
        if not path.startswith(self._kept or ("\0",)):
            for module in block.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    module._parameters[name] = nn.Parameter(
                        parameter.data.to("meta"), requires_grad=False
                    )


def plan_job(job: Job) -> Plan:
    """What ``run_job`` would do; reads the headers of the checkpoint, no weights."""
    with open_weights(job.model) as source:
        return _Workpiece(job, source).plan


def run_job(
    job: Job,
    batches: Sequence[Batch] = (),
    *,
    restart: bool = False,
    notes: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Outcome:
    """Carry the job out; a run that was killed goes on where it stood.

    ``batches`` are the calibration forward calls, on the job's device; ``notes`` go into the card.
    Deterministic: the same job gives the same files, interrupted or not.
    """
    start = time.perf_counter()
    if job.recipe.needs_calibration and not batches:
        raise QuantizationError(
            f"{job.recipe.method} needs calibration data", expected="text or images", got="none"
        )
    with open_weights(job.model) as source, torch.no_grad():
        piece = _Workpiece(job, source)
        config = piece.config()  # refuses what the layout cannot say before any work is done
        folder = CheckpointFolder(job.out, _request(job, batches), len(piece.blocks) + 1)
        restored = min(folder.begin(restart=restart), len(piece.blocks))
        piece.quantize_blocks(batches, folder, on_progress)
        folder.write_shard(len(piece.blocks), piece.outer_tensors())
    card = model_card(job.model.stem, job.recipe, job.layout.value, piece.plan, notes or {})
    written = folder.finish(config, card, job.tokenizer or job.model)
    seconds = time.perf_counter() - start
    return Outcome(written, piece.plan.float_bytes, seconds, peak_bytes(torch.device(job.device)),
                   restored)  # fmt: skip


class _Workpiece:
    """A job's model: its skeleton, its names in the checkpoint and in the class, its plan."""

    def __init__(self, job: Job, source: WeightSource) -> None:
        extra_bits = [bits for bits in (job.head_bits, job.embedding_bits) if bits]
        check_expressible(job.recipe, job.layout, extra_bits)
        if getattr(source, "scheme", None) is not None:
            raise QuantizationError(
                "the checkpoint is quantised already", expected="a float checkpoint"
            )
        self.job = job
        self.source = source
        self.dtype = stored_dtype({"dtype": job.dtype} if job.dtype else source.config)
        self.device = torch.device(job.device)
        self.model = build_skeleton(source.config, self.dtype)
        self.names = model_names(self.model, source.names())
        self.stored = {name: stored for stored, name in self.names.items()}
        self.plan = make_plan(
            self.model,
            job.recipe,
            job.layout,
            vision=job.vision,
            head_bits=job.head_bits,
            embedding_bits=job.embedding_bits,
        )
        towers = self.plan.towers
        self.blocks = [f"{t.path}.{index}" for t in towers for index in range(len(t.blocks))]

    def config(self) -> dict[str, Any]:
        """The ``config.json`` of the result."""
        others = {
            self.stored[f"{name}.weight"].removesuffix(".weight"): form
            for name, form in self.plan.differing(self.job.recipe.form).items()
        }
        layout, form = self.job.layout, self.job.recipe.form
        section = quantization_config(
            layout, form, others, self.plan.ignored, self.job.recipe.activations
        )
        kept = {key: value for key, value in self.source.config.items() if key != "torch_dtype"}
        return kept | {"dtype": float_type_name(self.dtype), "quantization_config": section}

    def quantize_blocks(
        self,
        batches: Sequence[Batch],
        folder: CheckpointFolder,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Every tower's blocks, each into its shard."""
        job, towers = self.job, self.plan.towers
        calibrated = job.recipe.needs_calibration
        if calibrated:
            self._fill_outside()
        kept = [tower.path for tower in towers if tower.is_vision and calibrated]
        source = DiskBlocks(self.source, self.stored, self.dtype, kept)
        numbers = {path: number for number, path in enumerate(self.blocks)}
        sink = ShardSink(folder, job.layout, numbers, self.stored, job.recipe)
        for tower in towers:
            samples: list[Sample] = []
            if calibrated:
                samples = record_samples(self.model, tower, batches, torch.device("cpu"))
            quantize_tower(
                tower, samples, job.recipe, device=self.device, source=source, sink=sink,
                on_progress=on_progress,
            )  # fmt: skip

    def _fill_outside(self) -> None:
        """Load what the calibration data pass on their way to the blocks."""
        inside = tuple(f"{path}." for path in self.blocks)
        head = self.model.get_output_embeddings()
        needed = {
            self.stored[name]: name
            for name, parameter in self.model.named_parameters()  # a tied head is not among them
            if name in self.stored and not name.startswith(inside)
            and (head is None or is_tied(self.model) or parameter is not head.weight)
        }  # fmt: skip
        fill(self.model, self.source, needed, device=self.device, dtype=self.dtype)
        for module in self.model.modules():  # rotary tables, position ids
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def outer_tensors(self) -> dict[str, Tensor]:
        """What lies outside the quantised blocks, under its stored names."""
        inside = tuple(f"{path}." for path in self.blocks)
        tensors: dict[str, Tensor] = {}
        for stored, name in self.names.items():
            if name.startswith(inside):
                continue
            value = self.source.tensor(stored)
            if value.is_floating_point():
                value = value.to(self.dtype)
            form = self.plan.outer.get(name.removesuffix(".weight"))
            if form is None:
                tensors[stored] = value
            else:
                packed = encode_layer(round_alone(value, form), self.job.layout)
                layer = stored.removesuffix(".weight")
                tensors |= {f"{layer}.{suffix}": part for suffix, part in packed.items()}
        return tensors


def _request(job: Job, batches: Sequence[Batch]) -> dict[str, Any]:
    """All that the result depends on: a resumed run must have the same."""
    recipe = asdict(job.recipe)
    return {
        "model": identity_of(job.model),
        "recipe": {name: getattr(value, "value", value) for name, value in recipe.items()},
        "layout": job.layout.value,
        "dtype": job.dtype,
        "vision": job.vision,
        "head_bits": job.head_bits,
        "embedding_bits": job.embedding_bits,
        "calibration": digest_of(batches),
    }

"""Train the demo detector from scratch on one GPU, within a number of minutes.

    python -m training.detector.train --train FOLDER... --val FOLDER --out FOLDER --minutes 10

``--init WEIGHTS`` goes on from a checkpoint instead: fine-tuning on new frames, which takes a
lower ``--rate`` and, where nothing but shapes is new, ``--freeze 2``.

The whole training set lies on the GPU, augmentation and assignment run there in batch, and no
step waits for the host. ``out`` receives ``ema.safetensors`` (the averaged weights, written
anew every minute) and ``log.jsonl`` (one line a minute, and one an evaluation).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.detector.augment import augmented_batch
from training.detector.average import WeightAverage
from training.detector.checkpoint import load_checkpoint, save_checkpoint
from training.detector.config import ModelConfig
from training.detector.dataset import FrameStore, load_frames
from training.detector.evaluate import evaluate, torch_predictor
from training.detector.loss import Loss, detection_loss
from training.detector.model import NanoDetector, grid_cells
from training.detector.schedule import Budget, Phase, phase_at
from training.run_log import RunLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLIP_NORM = 10.0


@dataclass(frozen=True)
class Recipe:
    """The knobs of a run; ``steps`` replaces ``minutes`` where a run must be repeatable.

    ``freeze`` is the number of backbone levels, the stem first, that keep their weights and
    statistics: the finest maps cost most, and know edges and colours only.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 128
    rate: float = 2e-3
    weight_decay: float = 0.05
    mosaic: float = 0.5
    freeze: int = 0
    seed: int = 0
    compile: bool = True
    log_every_s: float = 60.0
    evaluate_every_s: float = 180.0


class Trainer:
    """One training run over a store of frames."""

    def __init__(
        self, config: ModelConfig, recipe: Recipe, store: FrameStore, init: Path | None = None
    ) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.store, self.device = recipe, store, store.images.device
        model = (_initial_model(config, init) if init else NanoDetector(config)).to(self.device)
        self.model = model.to(memory_format=torch.channels_last).train()
        freeze_backbone(self.model, recipe.freeze)
        # What starts from trained weights need not forget them as what starts from noise must.
        self.average = WeightAverage(self.model, **({"decay": 0.995, "ramp": 50.0} if init else {}))
        self._cells = grid_cells(*store.size).to(self.device)
        self._optimizer = _optimizer(self.model, recipe, self.device)
        self._frames = _frame_indices(len(store), recipe.batch, self.device)
        self._augment: Callable[..., tuple[Tensor, Tensor, Tensor]] = augmented_batch
        self._loss: Callable[..., Loss] = self._loss_of

    def compile(self) -> None:
        """Compile augmentation and loss and try both; stay with eager code where that fails."""
        self._augment = torch.compile(augmented_batch, dynamic=False)
        self._loss = torch.compile(self._loss_of, dynamic=False)

    def _loss_of(
        self, images: Tensor, boxes: Tensor, classes: Tensor, distance_weight: Tensor
    ) -> Loss:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            outputs = self.model(images)
        return detection_loss(
            outputs, self._cells, boxes, classes, self.store.size, distance_weight
        )

    def step(self, phase: Phase) -> Loss:
        """Draw a batch and learn from it; does not synchronise."""
        mosaic, strength, distance = torch.tensor(
            (phase.mosaic, phase.strength, phase.distance_weight)
        ).to(self.device, non_blocking=True)
        with torch.no_grad():
            batch = self._augment(self.store, next(self._frames), mosaic=mosaic, strength=strength)
        loss = self._loss(*batch, distance)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * phase.rate
        self._optimizer.step()
        self.average.update()
        return loss

    def warm_up(self, steps: int = 3) -> None:
        """Take steps at rate 0, so that compiling and tuning are over when the clock starts."""
        for distance_weight in (0.0, 1.0):
            for _ in range(steps):
                self.step(Phase(0.0, self.recipe.mosaic, 1.0, distance_weight))
        _synchronize(self.device)


def _initial_model(config: ModelConfig, weights: Path) -> NanoDetector:
    """The checkpoint's model, which must be of ``config``."""
    model = load_checkpoint(weights)
    if model.config != config:
        raise ValueError(f"expected a checkpoint of {config!r}, got {model.config!r} in {weights}")
    return model


def freeze_backbone(model: NanoDetector, levels: int) -> None:
    """Hold weights and statistics of the backbone's first ``levels``, the stem and then stages."""
    for level in (model.backbone.stem, *model.backbone.stages)[:levels]:
        level.requires_grad_(False).eval()


def _optimizer(model: NanoDetector, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW without decay on biases and normalisation."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learnt if p.ndim > 1]
    vectors = [p for p in learnt if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, fused=device.type == "cuda")


def _frame_indices(count: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield source indices (batch, 4) for ever: the first by shuffled epochs, three at random."""
    queue = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        while len(queue) < batch:
            queue = torch.cat((queue, torch.randperm(count, device=device)))
        others = torch.randint(count, (batch, 3), device=device)
        yield torch.cat((queue[:batch, None], others), dim=1)
        queue = queue[batch:]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(
    config: ModelConfig,
    recipe: Recipe,
    store: FrameStore,
    validation: Path | None,
    out: Path,
    init: Path | None = None,
) -> NanoDetector:
    """Run ``recipe``, from ``init`` if given; return the averaged model that lies in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(out / "log.jsonl")
    trainer = _ready_trainer(config, recipe, store, log, init)
    check = _Checkpoints(trainer, validation, out, log)
    budget = Budget(recipe.minutes, recipe.steps)
    step, logged, evaluated = 0, 0.0, 0.0
    while (progress := budget.progress(step)) < 1:
        loss = trainer.step(phase_at(progress, mosaic=recipe.mosaic))
        step += 1
        if budget.elapsed_s - logged >= recipe.log_every_s:
            logged = budget.elapsed_s
            check.save(loss, step, budget)
        if budget.elapsed_s - evaluated >= recipe.evaluate_every_s:
            evaluated = budget.elapsed_s
            with budget.paused():
                check.evaluate(step)
        _throttle(trainer.device, step)
    check.save(loss, step, budget)
    check.evaluate(step)
    return trainer.average.model


def _throttle(device: torch.device, step: int) -> None:
    """Keep the host at most some steps ahead, so that the clock tells what the GPU has done."""
    if step % 8 == 0:
        _synchronize(device)


def _ready_trainer(
    config: ModelConfig, recipe: Recipe, store: FrameStore, log: RunLog, init: Path | None
) -> Trainer:
    """A warm trainer, compiled if that works; a failure costs speed, not the run."""
    if recipe.compile:
        began = time.monotonic()
        trainer = Trainer(config, recipe, store, init)
        trainer.compile()
        try:
            trainer.warm_up()
        except Exception as error:  # the compiler raises whatever its back ends raise
            log.write("compile_failed", error=f"{type(error).__name__}: {error}"[:2000])
        else:
            log.write("compiled", seconds=round(time.monotonic() - began, 1))
            return trainer
    trainer = Trainer(config, recipe, store, init)
    trainer.warm_up()
    return trainer


class _Checkpoints:
    """Writes the averaged weights and what is known of them."""

    def __init__(self, trainer: Trainer, validation: Path | None, out: Path, log: RunLog) -> None:
        self._trainer, self._out, self._log = trainer, out, log
        self._truth = validation / "instances.json" if validation else None
        self._frames = load_frames([validation], trainer.device) if validation else None

    def save(self, loss: Loss, step: int, budget: Budget) -> None:
        """Write the checkpoint and a line with losses and speed; synchronises."""
        model = self._trainer.average.model
        save_checkpoint(self._out / "ema.safetensors", model.state_dict(), model.config)
        losses = {f.name: round(getattr(loss, f.name).item(), 4) for f in fields(loss)}
        self._log.write(
            "progress",
            step=step,
            progress=round(budget.progress(step), 4),
            images_per_s=round(step * self._trainer.recipe.batch / budget.elapsed_s, 1),
            **losses,
        )

    def evaluate(self, step: int) -> None:
        """Score the averaged weights on the validation frames."""
        if self._frames is None or self._truth is None:
            return
        metrics = evaluate(torch_predictor(self._trainer.average.model), self._frames, self._truth)
        self._log.write("evaluated", step=step, **metrics)


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="train the demo detector")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="COCO folders")
    parser.add_argument("--val", type=Path, help="a COCO folder, scored every few minutes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--mosaic", type=float, default=Recipe.mosaic, help="share of mosaics")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint")
    parser.add_argument("--freeze", type=int, default=0, help="backbone levels to hold, of 5")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--evaluate-every", type=float, default=Recipe.evaluate_every_s, help="s")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--vit-width", type=int, default=0, help="a plain transformer this wide")
    parser.add_argument("--vit-depth", type=int, default=ModelConfig.vit_depth)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = load_frames(args.train, device)
    height, width = store.size
    config = ModelConfig(
        class_names=store.class_names,
        height=height,
        width=width,
        vit_width=args.vit_width,
        vit_depth=args.vit_depth,
    )
    recipe = Recipe(
        minutes=args.minutes,
        batch=args.batch,
        rate=args.rate,
        mosaic=args.mosaic,
        freeze=args.freeze,
        seed=args.seed,
        compile=not args.no_compile,
        evaluate_every_s=args.evaluate_every,
    )
    train(config, recipe, store, args.val, args.out, args.init)


if __name__ == "__main__":
    main()

"""Train the embedded vision-language model from scratch on one GPU, within a number of minutes.

    python -m training.vlm.train --train PREPARED --val DATA --out FOLDER --minutes 14

One pass of the vision tower serves a dozen turns about the picture, each of which sees the picture
and itself only. The data lie on the GPU; no step waits for the host. ``out`` receives
``learner.safetensors`` (averaged weights, written anew every minute), ``tokenizer.json`` and
``log.jsonl``. ``--init`` goes on from such weights: an interrupted run is worth what it has learnt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

from edge_perception.world.spec import CLASS_NAMES
from training.detector.average import WeightAverage
from training.detector.schedule import Budget
from training.run_log import RunLog
from training.vlm.batch import (
    DenseTargets,
    answer_places,
    dense_targets,
    draw_captions,
    draw_placement,
    draw_turns,
    jitter_light,
    normalised,
    place_images,
)
from training.vlm.exam import exact_shares, read_questions
from training.vlm.examples import Examples, load_examples
from training.vlm.model import (
    QUARTERS,
    DenseOutput,
    Learner,
    ModelSize,
    TurnLayout,
    smaller_sides,
)
from training.vlm.texts import CAPTION_TOKENS, TURN_TOKENS
from training.vlm.tokens import ASSISTANT_ID, PAD_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARM_UP = 0.04
_FINAL_RATE = 0.02
_CLIP_NORM = 1.0
_CAPTION_WEIGHT = 0.3
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Recipe:
    """The knobs of a run; ``steps`` replaces ``minutes`` where a run must be repeatable.

    ``smaller`` is the share of batches at a lower resolution.
    """

    minutes: float = 14.0
    steps: int | None = None
    batch: int = 128
    turns: int = 10
    rate: float = 1e-3
    weight_decay: float = 0.05
    dense_weight: float = 1.0
    seed: int = 0
    smaller: float = 0.25
    compile: bool = False
    log_every_s: float = 20.0


@dataclass(frozen=True)
class Loss:
    """The parts of a step's loss, scalar tensors."""

    total: Tensor
    turns: Tensor
    captions: Tensor
    dense: Tensor


class Trainer:
    """One training run over a data set on a device."""

    def __init__(
        self,
        size: ModelSize,
        vocabulary: int,
        recipe: Recipe,
        data: Examples,
        init: Path | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.data, self.device = recipe, data, data.images.device
        learner = Learner(size, vocabulary)
        if init:
            load_weights(learner, init)
        self.learner = learner.to(self.device).train()
        self.average = WeightAverage(self.learner, decay=0.999, ramp=500.0)
        lengths = [TURN_TOKENS] * recipe.turns + [CAPTION_TOKENS]
        self.sides = (size.image_px, *smaller_sides(size))
        self._layouts = {
            side: TurnLayout.of(size.image_tokens(side), lengths, self.device)
            for side in self.sides
        }
        self._random = random.Random(recipe.seed)
        self._optimizer = _optimizer(self.learner, recipe, self.device)
        self._order = _shuffled(len(data), recipe.batch, self.device)
        if recipe.compile:
            vlm = self.learner.vlm.model
            for layer in (*vlm.vision_model.encoder.layers, *vlm.text_model.layers):
                layer.compile(dynamic=False)

    def step(self, rate: float) -> Loss:
        """Draw a batch and a resolution and learn from it; does not synchronise."""
        side = self.sides[0]
        if self._random.random() < self.recipe.smaller:
            side = self._random.choice(self.sides[1:])
        loss = self.loss(next(self._order), side)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), _CLIP_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * rate
        self._optimizer.step()
        self.average.update()
        return loss

    def loss(self, chosen: Tensor, side: int) -> Loss:
        """The loss of chosen pictures at a resolution, under drawn placements and turns."""
        learner, data = self.learner, self.data
        grid = side // learner.size.patch_px * QUARTERS
        with torch.no_grad():
            placement = draw_placement(len(chosen), self.device)
            placed = place_images(data.images[chosen], placement, side)
            pixels = normalised(jitter_light(placed))
            turns = draw_turns(data, chosen, placement, self.recipe.turns)
            captions = draw_captions(data, chosen, placement)
            targets = dense_targets(data, chosen, placement, grid, len(CLASS_NAMES))
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            patches = learner.see(pixels)
            dense = learner.dense_output(patches)
            tokens = torch.cat((turns.flatten(1), captions), dim=1)
            hidden = learner.read(patches, tokens, self._layouts[side])
            short = turns.shape[1] * turns.shape[2]
            turn_loss = _answer_loss(
                learner, hidden[:, :short].unflatten(1, turns.shape[1:]), turns
            )
            caption_loss = _answer_loss(learner, hidden[:, short:], captions)
        dense_loss = _dense_loss(dense, targets)
        weighted = self.recipe.dense_weight * dense_loss + _CAPTION_WEIGHT * caption_loss
        return Loss(turn_loss + weighted, turn_loss, caption_loss, dense_loss)


def _answer_loss(learner: Learner, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens; ``hidden`` (..., L, width)."""
    counted = answer_places(tokens, ASSISTANT_ID, PAD_ID)
    wanted = torch.where(counted, tokens.roll(-1, -1), -100)
    logits = learner.logits(hidden)
    summed = cross_entropy(
        logits.flatten(0, -2), wanted.flatten(), ignore_index=-100, reduction="sum"
    )
    return summed / counted.sum().clamp(min=1)


def _dense_loss(found: DenseOutput, wanted: DenseTargets) -> Tensor:
    """Classes and colours by cross-entropy, middles and distances by smooth L1."""
    classes = cross_entropy(found.classes.flatten(0, 2), wanted.classes.flatten())
    colours = cross_entropy(
        found.colours.flatten(0, 2), wanted.colours.flatten(), ignore_index=-1, reduction="sum"
    ) / (wanted.colours >= 0).sum().clamp(min=1)
    shown = wanted.shown[..., None]
    count = shown.sum().clamp(min=1)
    middle = (smooth_l1_loss(found.middle, wanted.middle, reduction="none") * shown).sum() / count
    distance = smooth_l1_loss(found.log_distance[..., 0], wanted.log_distance, reduction="none")
    return classes + 0.5 * colours + middle + 0.5 * (distance[..., None] * shown).sum() / count


def _optimizer(learner: Learner, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW without decay on biases, normalisation and embeddings."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in learner.named_parameters():
        plain = parameter.ndim > 1 and "embed" not in name
        (decayed if plain else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=fused)


def _shuffled(count: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of pictures (batch,) for ever, by shuffled epochs."""
    queue = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        while len(queue) < batch:
            queue = torch.cat((queue, torch.randperm(count, device=device)))
        yield queue[:batch]
        queue = queue[batch:]


def rate_at(progress: float) -> float:
    """Linear warm-up, cosine decay."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, progress / _WARM_UP) * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def train(
    size: ModelSize,
    recipe: Recipe,
    data: Examples,
    tokenizer: Tokenizer,
    out: Path,
    log: RunLog,
    init: Path | None = None,
) -> Learner:
    """Run ``recipe``, from ``init`` if given; return the averaged model, which lies in ``out``."""
    trainer = Trainer(size, tokenizer.get_vocab_size(), recipe, data, init)
    began = time.monotonic()
    for side in trainer.sides:  # what is compiled or tuned at the first call is not counted
        first = torch.arange(recipe.batch, device=trainer.device) % len(data)
        torch.autograd.backward(trainer.loss(first, side).total)
    trainer.step(0.0)
    log.write("warm", seconds=round(time.monotonic() - began, 1))
    budget, step, logged, saved = Budget(recipe.minutes, recipe.steps), 0, 0.0, 0.0
    while (progress := budget.progress(step)) < 1:
        loss = trainer.step(rate_at(progress))
        step += 1
        if step % 8 == 0 and trainer.device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock tells what the GPU has done
        if budget.elapsed_s - logged >= recipe.log_every_s:
            logged = budget.elapsed_s
            _tell(log, loss, step, progress, recipe.batch * step / budget.elapsed_s)
        if budget.elapsed_s - saved >= _SAVE_EVERY_S:
            saved = budget.elapsed_s
            save_learner(trainer.average.model, out)
    _tell(log, loss, step, 1.0, recipe.batch * step / budget.elapsed_s)
    save_learner(trainer.average.model, out)
    return trainer.average.model


def _tell(log: RunLog, loss: Loss, step: int, progress: float, speed: float) -> None:
    losses = {name: round(value.item(), 4) for name, value in vars(loss).items()}
    log.write(
        "progress", step=step, progress=round(progress, 3), images_per_s=round(speed), **losses
    )


def save_learner(learner: Learner, out: Path) -> None:
    """Write the weights, the dense heads too and the tied head once; a reader never sees a part."""
    state = {name: value.cpu().contiguous() for name, value in learner.state_dict().items()}
    state.pop("vlm.lm_head.weight")
    draft = out / "learner.partial"
    save_file(state, draft, {"size": json.dumps(asdict(learner.size))})
    draft.replace(out / "learner.safetensors")


def load_weights(learner: Learner, path: Path) -> None:
    """Read what ``save_learner`` wrote into a learner of the same size."""
    state = load_file(path)
    state["vlm.lm_head.weight"] = state["vlm.model.text_model.embed_tokens.weight"]
    learner.load_state_dict(state)


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="train the embedded vision-language model")
    parser.add_argument("--train", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--val", type=Path, help="a rendered one, for the answers after training")
    parser.add_argument("--init", type=Path, help="go on from this learner.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--turns", type=int, default=Recipe.turns)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--compile", action="store_true", help="compile the towers' layers")
    for name, value in asdict(ModelSize()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = RunLog(options.out / "log.jsonl")
    size = ModelSize(**{name: getattr(options, name) for name in asdict(ModelSize())})
    recipe = Recipe(
        minutes=options.minutes, steps=options.steps, batch=options.batch, turns=options.turns,
        rate=options.rate, seed=options.seed, compile=options.compile,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.monotonic()
    shutil.copyfile(options.train / "tokenizer.json", options.out / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    data = load_examples(options.train, device)
    log.write("loaded", seconds=round(time.monotonic() - began, 1), images=len(data),
              vocabulary=tokenizer.get_vocab_size(), size=asdict(size))  # fmt: skip
    learner = train(size, recipe, data, tokenizer, options.out, log, options.init)
    if options.val:
        questions = read_questions(options.val)
        shares = exact_shares(
            learner.vlm, questions, options.val, tokenizer, device=device, side=size.image_px
        )
        log.write("validated", **shares)


if __name__ == "__main__":
    main()

"""Batches drawn on the device: which pictures, how they are placed and lit, which turns.

A placement is a scale and a shift an axis; a negative scale is a flip, whose turns lie ready in
``Examples``. Pictures are only ever shrunk (onto grey), never cut, so that counts stay true; turns
about places in the picture are not drawn then. Light and noise vary, hue hardly does: colours are
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from training.vlm.examples import MOVED
from training.vlm.texts import TURN_KINDS

if TYPE_CHECKING:
    from training.vlm.examples import Examples

_NEVER = 1e-12
_SHRUNK = 0.5
_SMALLEST = 0.72
_UNEVEN = 0.4


@dataclass(frozen=True)
class Placement:
    """Output = ``scale`` (B, 2) x source + ``shift`` (B, 2), x and y from -1 to 1.

    ``flipped`` and ``moved`` (B,) tell whether it mirrors, and whether it shrinks.
    """

    scale: Tensor
    shift: Tensor
    flipped: Tensor
    moved: Tensor

    def grid(self, side: int) -> Tensor:
        """Where the pixels of a (side, side) output come from, (B, side, side, 2)."""
        zero = torch.zeros_like(self.scale[:, 0])
        x = torch.stack((1 / self.scale[:, 0], zero, -self.shift[:, 0] / self.scale[:, 0]), -1)
        y = torch.stack((zero, 1 / self.scale[:, 1], -self.shift[:, 1] / self.scale[:, 1]), -1)
        shape = [len(x), 1, side, side]
        return affine_grid(torch.stack((x, y), 1), shape, align_corners=False)


def draw_placement(batch: int, device: torch.device) -> Placement:
    """Half of the pictures flipped, half shrunk by up to a quarter and shifted."""
    flipped = torch.rand(batch, device=device) < 0.5
    moved = torch.rand(batch, device=device) < _SHRUNK
    common = 1 - (1 - _SMALLEST) * torch.rand(batch, 1, device=device)
    aspect = 1 - 0.1 * torch.rand(batch, 2, device=device)
    scale = torch.where(moved[:, None], common * aspect, 1.0)
    shift = (1 - scale) * (2 * torch.rand(batch, 2, device=device) - 1)
    mirror = torch.stack((torch.where(flipped, -1.0, 1.0), torch.ones_like(scale[:, 0])), -1)
    return Placement(scale * mirror, shift, flipped, moved)


def place_images(images: Tensor, placement: Placement, side: int) -> Tensor:
    """Pictures uint8 (B, S, S, 3) to float32 (B, 3, side, side), 0..1, by a placement."""
    pixels = images.permute(0, 3, 1, 2).float() / 255 - 0.5
    placed = grid_sample(pixels, placement.grid(images.shape[1]), align_corners=False)
    if side != images.shape[1]:
        placed = interpolate(placed, (side, side), mode="bilinear", antialias=True)
    return placed + 0.5


def jitter_light(pixels: Tensor) -> Tensor:
    """Vary exposure, light, contrast, gamma, white balance, noise of (B, 3, H, W), 0..1."""
    batch, device = len(pixels), pixels.device

    def around(spread: float, channels: int = 1) -> Tensor:
        return (torch.rand(batch, channels, 1, 1, device=device) * 2 - 1) * spread

    spots = torch.randn(batch, 1, 4, 4, device=device) * around(_UNEVEN)
    light = interpolate(spots, pixels.shape[2:], mode="bicubic")
    gains = torch.exp(around(0.25) + around(0.06, 3) + light)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    contrasted = (pixels - mean) * torch.exp(around(0.25)) + mean
    bent = (contrasted * gains + around(0.05)).clamp(1e-4, 1) ** torch.exp(around(0.25))
    noise = around(0.03).clamp(min=0) * torch.randn_like(pixels)
    return (bent + noise).clamp(0, 1)


def normalised(pixels: Tensor) -> Tensor:
    """0..1 to what the vision tower takes, -1..1."""
    return pixels * 2 - 1


def draw_turns(examples: Examples, chosen: Tensor, placement: Placement, count: int) -> Tensor:
    """Token ids (B, count, L) of turns drawn by their weights, none twice."""
    view = placement.flipped.long()
    weights = examples.weights[chosen, view]
    kinds = examples.kinds[chosen, view]
    about_place = torch.zeros_like(weights, dtype=torch.bool)
    for kind in MOVED:
        about_place |= kinds == TURN_KINDS.index(kind)
    weights = torch.where(about_place & placement.moved[:, None], 0.0, weights)
    slots = torch.multinomial(weights.clamp(min=_NEVER), count)
    turns = examples.turns[chosen, view].gather(
        1, slots[..., None].expand(-1, -1, examples.turns.shape[-1])
    )
    drawable = weights.gather(1, slots) > 0
    return torch.where(drawable[..., None], turns.long(), 0)  # 0 is the padding's id


def draw_captions(examples: Examples, chosen: Tensor, placement: Placement) -> Tensor:
    """Token ids (B, L) of one caption each; they name places, so none where the picture moved."""
    view = placement.flipped.long()
    which = torch.randint(examples.captions.shape[2], (len(chosen),), device=chosen.device)
    captions = examples.captions[chosen, view, which].long()
    return torch.where(placement.moved[:, None], 0, captions)


@dataclass(frozen=True)
class DenseTargets:
    """What each cell of a grid (B, G, G) shows; the last class is nothing.

    ``colours`` is -1 where none is known; ``middle`` (B, G, G, 2) is the way to the object's middle
    in quarters of the picture.
    """

    classes: Tensor
    colours: Tensor
    middle: Tensor
    log_distance: Tensor
    shown: Tensor


def dense_targets(
    examples: Examples, chosen: Tensor, placement: Placement, side: int, classes: int
) -> DenseTargets:
    """Targets on a (side, side) grid under a placement; ``classes`` without nothing."""
    masks = examples.masks[chosen][:, None].float()
    rows = grid_sample(masks, placement.grid(side), mode="nearest", align_corners=False)
    rows = rows[:, 0].round().long()
    shown = rows > 0
    flat = (rows - 1).clamp(min=0).flatten(1)[..., None]
    objects = examples.objects[chosen]
    at = objects.gather(1, flat.expand(-1, -1, objects.shape[-1])).unflatten(1, (side, side))
    middle = at[..., 2:4] * placement.scale[:, None, None] + placement.shift[:, None, None]
    steps = (torch.arange(side, device=chosen.device) + 0.5) / side * 2 - 1
    here = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    return DenseTargets(
        classes=torch.where(shown, at[..., 0].long(), classes),
        colours=torch.where(shown, at[..., 1].long(), -1),
        middle=(middle - here) * 2,
        log_distance=at[..., 4],
        shown=shown,
    )


def answer_places(tokens: Tensor, assistant: int, pad: int) -> Tensor:
    """Where the next token belongs to an answer: bool like ``tokens``, the last False."""
    answering = (tokens == assistant).cumsum(-1) > 0
    following = tokens.roll(-1, -1) != pad
    following[..., -1] = False
    return answering & following

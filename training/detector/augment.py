"""Augmentation of a whole batch on the device, as two pure functions of drawn numbers.

The idea: every output pixel names a source frame and a place in it. A mosaic is then no pasting
of crops but one gather: the output is cut by a cross into four quadrants, each of which shows one
frame under its own scale, shift and flip. A plain frame is the case where the cross lies at the
corner and one quadrant covers all. Boxes undergo the same axis-aligned maps, so they stay exact,
and are clipped to their quadrant. Compiled, the gather and the colour work fuse into a few
kernels; the frame store is read as uint8 and nothing is copied to or from the host.

Left out: rotation and shear, which would inflate the boxes, and mix-up, which pays off on long
schedules only. A box of which less than a quarter stays visible becomes an ignore region:
neither a label that cannot be learnt nor background that would punish a right answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from training.detector.boxes import area
from training.detector.dataset import EMPTY, IGNORE, FrameStore

_GREY = 114.0
_MIN_VISIBLE = 0.25
_MIN_SIDE_PX = 3.0
_LUMA = (0.114, 0.587, 0.299)  # BT.601, in BGR order


@dataclass(frozen=True)
class Placement:
    """Where the four quadrants of each output come from; the first axes are (B, 4).

    Quadrants are ordered top-left, top-right, bottom-left, bottom-right around ``cross`` (B, 2),
    x and y in output pixels. Output = ``scale`` (B, 4, 2) x source + ``shift`` (B, 4, 2); a
    negative x scale is a flip.
    """

    frames: Tensor
    cross: Tensor
    scale: Tensor
    shift: Tensor


def _uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) * (high - low) + low


def draw_placement(
    frames: Tensor, size: tuple[int, int], mosaic: Tensor, strength: Tensor
) -> Placement:
    """Draw a placement for source indices (B, 4); a plain frame uses the first of the four.

    ``mosaic`` is the share of outputs that are mosaics; ``strength`` scales the geometric
    variety of plain frames, 0 leaves only the flip. Both are scalar tensors, so that compiled
    code need not be made anew when they change.
    """
    batch, device = frames.shape[0], frames.device
    extent = torch.tensor((size[1], size[0]), dtype=torch.float32, device=device)
    tiled = torch.rand(batch, 1, device=device) < mosaic
    cross = torch.where(tiled, extent * _uniform((batch, 2), 0.3, 0.7, device), extent)
    log_zoom = torch.where(
        tiled, _uniform((batch, 4), -0.7, 0.25, device), _zoom(batch, device) * strength
    )
    log_aspect = _uniform((batch, 4), -0.1, 0.1, device) * torch.where(tiled, 1.0, strength)
    scale = torch.stack((log_zoom + log_aspect, log_zoom - log_aspect), dim=-1).exp()
    low, high = quadrants(cross, size)
    window = (high - low) / scale
    start = (extent - window) * torch.rand(batch, 4, 2, device=device)
    shift = low - scale * start
    mirrored = (torch.rand(batch, 4, device=device) < 0.5)[..., None]
    flip = torch.cat((mirrored, torch.zeros_like(mirrored)), dim=-1)
    shift = torch.where(flip, shift + scale * extent, shift)
    return Placement(frames, cross, torch.where(flip, -scale, scale), shift)


def _zoom(batch: int, device: torch.device) -> Tensor:
    """Log zoom of plain frames: half of them unchanged, the others 0.74 to 1.65 times."""
    zoomed = torch.rand(batch, 1, device=device) < 0.5
    return torch.where(zoomed, _uniform((batch, 4), -0.3, 0.5, device), 0.0)


def quadrants(cross: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Top-left and bottom-right corners (B, 4, 2) of the quadrants around ``cross`` (B, 2)."""
    x, y = cross[:, 0], cross[:, 1]
    zero = torch.zeros_like(x)
    right, bottom = torch.full_like(x, size[1]), torch.full_like(y, size[0])
    low = torch.stack((zero, zero, x, zero, zero, y, x, y), dim=1).view(-1, 4, 2)
    high = torch.stack((x, y, right, y, x, bottom, right, bottom), dim=1).view(-1, 4, 2)
    return low, high


def place_images(images: Tensor, placement: Placement) -> Tensor:
    """Sample the store's frames (F, H, W, 3) bilinearly into float32 (B, 3, H, W), 0..255."""
    _, height, width, _ = images.shape
    device = images.device
    x = torch.arange(width, device=device).view(1, 1, width)
    y = torch.arange(height, device=device).view(1, height, 1)
    right = x + 0.5 >= placement.cross[:, 0].view(-1, 1, 1)
    low = y + 0.5 >= placement.cross[:, 1].view(-1, 1, 1)
    quadrant = right.long() + 2 * low.long()
    row = torch.arange(placement.frames.shape[0], device=device).view(-1, 1, 1)
    frame = placement.frames[row, quadrant]
    scale, shift = placement.scale[row, quadrant], placement.shift[row, quadrant]
    source_x = (x + 0.5 - shift[..., 0]) / scale[..., 0] - 0.5
    source_y = (y + 0.5 - shift[..., 1]) / scale[..., 1] - 0.5
    return _bilinear(images, frame, source_x, source_y).permute(0, 3, 1, 2)


def _bilinear(images: Tensor, frame: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate frames at (B, H, W) places; grey beyond their borders. Float (B, H, W, 3)."""
    _, height, width, _ = images.shape
    x0, y0 = torch.floor(x), torch.floor(y)
    total = torch.zeros((), device=images.device)
    for dx in (0, 1):
        for dy in (0, 1):
            xi, yi = (x0 + dx).long(), (y0 + dy).long()
            weight = (1 - (x - xi).abs()) * (1 - (y - yi).abs())
            inside = (xi >= 0) & (xi < width) & (yi >= 0) & (yi < height)
            value = images[frame, yi.clamp(0, height - 1), xi.clamp(0, width - 1)].float()
            total = total + weight[..., None] * torch.where(inside[..., None], value, _GREY)
    return total


def place_targets(store: FrameStore, placement: Placement) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4 S, 4) and classes (B, 4 S) of the outputs; see the module for what is kept."""
    boxes, classes = store.boxes[placement.frames], store.classes[placement.frames]
    batch, _, slots, _ = boxes.shape
    scale, shift = placement.scale[:, :, None], placement.shift[:, :, None]
    a, b = boxes[..., :2] * scale + shift, boxes[..., 2:] * scale + shift
    whole = torch.cat((torch.minimum(a, b), torch.maximum(a, b)), dim=-1)
    low, high = (corner[:, :, None] for corner in quadrants(placement.cross, store.size))
    seen = torch.cat(
        (
            torch.minimum(torch.maximum(whole[..., :2], low), high),
            torch.minimum(torch.maximum(whole[..., 2:], low), high),
        ),
        dim=-1,
    )
    side = (seen[..., 2:] - seen[..., :2]).amin(-1)
    poor = (area(seen) < _MIN_VISIBLE * area(whole)) | (side < _MIN_SIDE_PX)
    classes = torch.where(poor & (classes >= 0), IGNORE, classes)
    classes = torch.where(side <= 0, EMPTY, classes)
    return seen.view(batch, 4 * slots, 4), classes.view(batch, 4 * slots)


def jitter_colours(images: Tensor, strength: Tensor) -> Tensor:
    """Change light, colour, focus and noise of (B, 3, H, W), 0..255, keeping the range.

    Per image: a colour matrix (hue, saturation, channel gains, contrast), brightness, gamma, a
    random 3x3 blur for every third image, and Gaussian noise of up to 8 grey levels.
    """
    batch, device = images.shape[0], images.device
    images = torch.einsum("bij,bjhw->bihw", _colour_matrix(batch, strength, device), images)
    brightness = _uniform((batch, 1, 1, 1), -30, 30, device) * strength
    gamma = (_uniform((batch, 1, 1, 1), -0.35, 0.35, device) * strength).exp()
    images = ((images + brightness).clamp(0, 255) / 255) ** gamma * 255
    images = _blur(images, strength)
    sigma = (_uniform((batch, 1, 1, 1), -8, 8, device) * strength).clamp(min=0)
    return (images + sigma * torch.randn_like(images)).clamp(0, 255)


def _colour_matrix(batch: int, strength: Tensor, device: torch.device) -> Tensor:
    """A (B, 3, 3) map: hue turn, grey mix by saturation, then gains a channel times contrast."""
    luma = torch.tensor(_LUMA, device=device).expand(3, 3)
    saturation = 1 + _uniform((batch, 1, 1), -0.6, 0.5, device) * strength
    contrast = (_uniform((batch, 1, 1), -0.4, 0.2, device) * strength).exp()
    gains = (_uniform((batch, 3, 1), -0.15, 0.15, device) * strength).exp()
    identity = torch.eye(3, device=device)
    mix = saturation * identity + (1 - saturation) * luma
    return contrast * gains * mix @ _hue_turn(batch, strength, device)


def _hue_turn(batch: int, strength: Tensor, device: torch.device) -> Tensor:
    """Rotations (B, 3, 3) about grey by up to 0.8 rad: shape tells the class, not paint."""
    angle = _uniform((batch, 1, 1), -0.8, 0.8, device) * strength
    axis = torch.full((3, 3), 1 / 3, device=device)
    cross = torch.tensor(((0, -1, 1), (1, 0, -1), (-1, 1, 0)), device=device) / math.sqrt(3)
    return angle.cos() * (torch.eye(3, device=device) - axis) + axis + angle.sin() * cross


def _blur(images: Tensor, strength: Tensor) -> Tensor:
    """Weigh the 3x3 neighbours by random numbers in one image of three."""
    batch, _, height, width = images.shape
    chosen = torch.rand(batch, 1, device=images.device) < strength / 3
    weights = torch.rand(batch, 9, device=images.device) * chosen
    weights = weights + one_hot(torch.tensor(4), 9).to(images)
    weights = weights / weights.sum(1, keepdim=True)
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    blurred = torch.zeros_like(images)
    for dy in range(3):
        for dx in range(3):
            neighbour = padded[:, :, dy : dy + height, dx : dx + width]
            blurred = blurred + weights[:, 3 * dy + dx, None, None, None] * neighbour
    return blurred


def augmented_batch(
    store: FrameStore, frames: Tensor, *, mosaic: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W) and targets (B, 4 S, 4), (B, 4 S) from source indices (B, 4)."""
    placement = draw_placement(frames, store.size, mosaic, strength)
    images = jitter_colours(place_images(store.images, placement), strength)
    boxes, classes = place_targets(store, placement)
    return images, boxes, classes

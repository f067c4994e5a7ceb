"""Checkpoints on disk compared and climbed: files in, figures out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.errors import ConfigError
from edge_perception.quantization.calibration import read_token_ids
from edge_perception.quantization.evaluate import measure_fidelity, windows_of
from edge_perception.quantization.ladder import climb
from edge_perception.quantization.recipe import Recipe
from edge_perception.quantization.streaming import Batch
from edge_perception.vlm.assembly import load_model, stored_dtype


def choose_device(wanted: str) -> str:
    """``auto`` as "cuda" where there is one; raises ``ConfigError`` for one that is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device cannot be used ({reason})", got=wanted) from error
    return wanted


def read_windows(
    text: Path, tokenizer: Path, *, length: int, count: int, device: str, bos: int | None = None
) -> list[Tensor]:
    """The first ``count`` windows int64 [1, length] of a text, each begun by ``bos`` if given."""
    windows = windows_of(read_token_ids(text, tokenizer), length, count, bos=bos)
    return [window.to(device) for window in windows]


def compare_checkpoints(
    model: Path,
    reference: Path | None,
    windows: Sequence[Tensor],
    *,
    device: str,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Perplexity, bytes and seconds of ``model``; beside a ``reference`` KL and agreement too.

    ``seconds`` are those of both models' passes over the windows, loading left out.
    """
    measured = _load(model, device, dtype)
    original = None if reference is None else _load(reference, device, dtype)
    theirs = None if original is None else _logits_of(original)
    start = time.perf_counter()
    with torch.no_grad():
        got = measure_fidelity(_logits_of(measured), theirs, windows)
        float_model = None if theirs is None else measure_fidelity(theirs, None, windows)
    seconds = time.perf_counter() - start
    size = sum(tensor.nbytes for tensor in [*measured.parameters(), *measured.buffers()])
    figures: dict[str, Any] = {
        "ppl": got.perplexity,
        "bytes": size,
        "tokens": got.tokens,
        "seconds": seconds,
    }
    if float_model is not None:
        figures |= {"float_ppl": float_model.perplexity, "kl": got.kl, "agreement": got.agreement}
    return figures


def climb_checkpoint(
    model: Path,
    recipes: Sequence[Recipe],
    batches: Sequence[Batch],
    windows: Sequence[Tensor],
    *,
    device: str,
    dtype: str | None,
    on_run: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """A ladder's ``{float_ppl, runs}`` for a float checkpoint."""
    loaded = _load(model, device, dtype)
    return climb(loaded, recipes, batches, windows, torch.device(device), on_run)


def with_conditions(result: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    """A result with where, when and on what it was taken."""
    return {
        "schema": 1,
        "machine": describe_machine(),
        "code": describe_code(),
        "date": utc_now(),
        "conditions": conditions,
        **result,
    }


def _load(path: Path, device: str, dtype: str | None) -> nn.Module:
    return load_model(path, device=device, dtype=stored_dtype({"dtype": dtype}) if dtype else None)


def _logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda window: model(window).logits[0]

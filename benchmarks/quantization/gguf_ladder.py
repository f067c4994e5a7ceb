"""A GGUF's ladder: the file, dequantised, is the float reference that every run is held against.

The folder holds the GGUF (or its pieces ``NAME.00``, ``NAME.01``, ...), ``tokenizer.json`` and
WikiText-2's ``test.txt`` and ``valid.txt``. Calibrated on valid, measured on test. Everything
happens in memory and in float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ladder import Run
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from edge_perception.core.machine import describe_machine, utc_now
from edge_perception.quantization.evaluate import Fidelity, measure_fidelity, windows_of
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.ladder import quantise_copy, run_row
from edge_perception.vlm.loaders.gguf import GgufCheckpoint

RUN_WINDOW = 2048
"""``Run.windows`` counts windows of so many tokens, whatever length they are cut to."""


@dataclass(frozen=True)
class Source:
    """A model and its texts; ``bos`` begins every window where the model needs it (Gemma)."""

    folder: Path
    gguf: str
    name: str
    bos: int | None = None

    def windows(self, text: str, length: int, count: int | None = None) -> list[Tensor]:
        """Windows int64 [1, length] of ``text``."""
        return windows_of(token_ids(self.folder, text), length, count, bos=self.bos)


def machine(device: torch.device, commit: str) -> dict[str, str]:
    """Where and when a figure was taken."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        facts = describe_machine()
        name = f"{facts['cpu']}, {facts['cores']} cores"
    return {
        "machine": name,
        "torch": torch.__version__,
        "date": utc_now(),
        "commit": commit,
    }


def join_pieces(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``, joined from its numbered pieces if it lies in pieces."""
    whole = folder / name
    pieces = sorted(folder.glob(f"{name}.[0-9][0-9]"))
    if not whole.exists() and pieces:
        whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return whole


@lru_cache
def token_ids(folder: Path, name: str) -> Tensor:
    """A text's token ids, int64 [T], without special tokens."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    text = (folder / name).read_text(encoding="utf-8")
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def load_float(path: Path, device: torch.device) -> nn.Module:
    """A GGUF's model, dequantised to float32."""
    checkpoint = GgufCheckpoint(path)
    settings = dict(checkpoint.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict(dict(checkpoint.items()), strict=False).missing_keys
    model.tie_weights()
    if [name for name in missing if name != "lm_head.weight"]:
        raise SystemExit(f"missing weights: {missing}")
    return model.to(device).eval()


@dataclass(frozen=True)
class Judge:
    """The float model's logits on the test windows, and its perplexity there."""

    windows: list[Tensor]
    logits: dict[int, Tensor]
    perplexity: float

    @classmethod
    def of(cls, model: nn.Module, windows: list[Tensor]) -> Judge:
        """Run the float model once; its logits are kept in fp16, on its device."""
        logits = {id(window): model(window).logits[0].half() for window in windows}
        perplexity = measure_fidelity(lambda w: logits[id(w)], None, windows).perplexity
        return cls(windows, logits, perplexity)

    def fidelity(self, model: nn.Module) -> Fidelity:
        """A quantised model's figures."""
        return measure_fidelity(
            lambda w: model(w).logits[0], lambda w: self.logits[id(w)], self.windows
        )

    def window_by_window(self, model: nn.Module) -> list[Fidelity]:
        """The same for every window by itself."""
        return [Judge([w], self.logits, self.perplexity).fidelity(model) for w in self.windows]


@dataclass(frozen=True)
class Limits:
    """How much to run: test windows and their length, calibration, and when to stop."""

    windows: int
    window: int
    calibration_windows: int
    batch_tokens: int
    seconds: float


def measure_ladder(
    source: Source, runs: Sequence[Run], limits: Limits, device: torch.device, *, commit: str,
    out: Path,
) -> None:  # fmt: skip
    """Measure the runs in order; ``out`` is written anew after each, so little is ever lost."""
    model = load_float(join_pieces(source.folder, source.gguf), device)
    test = source.windows("test.txt", limits.window, limits.windows)
    judge = Judge.of(model, [window.to(device) for window in test])
    report: dict[str, Any] = machine(device, commit) | {
        "model": source.name, "float_ppl": judge.perplexity,
        "test_windows": len(test), "test_window_tokens": limits.window, "runs": [],
    }  # fmt: skip
    print(f"float {judge.perplexity:.4f}", flush=True)
    rtn: dict[WeightFormat, float] = {}
    begun = time.perf_counter()
    for run in runs:
        if time.perf_counter() - begun > limits.seconds:
            print(f"no time left for {run.name}", flush=True)
            continue
        batches = _calibration(source, run, limits, device)
        made = quantise_copy(model, run.recipe, batches, device)
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        got, form = judge.fidelity(made.model), run.recipe.form
        if run.recipe.method == "rtn":
            rtn[form] = got.perplexity
        row = run_row(run.recipe, made, got, judge.perplexity, rtn.get(form), tokens)
        row |= {"name": run.name, "calibration_window": run.window_length}
        report["runs"].append(row)
        _tell(row)
        out.write_text(json.dumps(report, indent=1))


def _calibration(
    source: Source, run: Run, limits: Limits, device: torch.device
) -> list[dict[str, Tensor]]:
    count = (limits.calibration_windows or run.windows) * RUN_WINDOW // run.window_length
    windows = source.windows("valid.txt", run.window_length, count)
    size = max(1, limits.batch_tokens // run.window_length)
    return [
        {"input_ids": torch.cat(windows[i : i + size]).to(device)}
        for i in range(0, len(windows), size)
    ]


def _tell(row: dict[str, Any]) -> None:
    share = row["gap_share_of_rtn"]
    print(
        f"{row['name']:30s} b{row['bits']} g{row['group_size']:<4d} ppl {row['ppl']:8.4f} "
        f"share {share if share is None else round(share, 3)} kl {row['kl']:.4f} "
        f"same {row['agreement']:.3f} {row['seconds']:.1f}s",
        flush=True,
    )

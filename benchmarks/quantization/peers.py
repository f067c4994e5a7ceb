"""Our quantiser beside others': one float model, one calibration text, one judge.

    python benchmarks/quantization/peers.py prepare --data DIR --work WORK
    python benchmarks/quantization/peers.py ours --work WORK
    ... peer_tools.py, each tool in its own environment ...
    python benchmarks/quantization/peers.py compare --work WORK --out FILE.json

DIR is as for ``h100.py``. WORK then holds the float16 model as a checkpoint folder, the token
windows, and ``checkpoints/NAME`` from every tool. All of them, ours too, are judged as they lie on
the disk: read by this package's loader, computed in float32, compared with the float model on the
same windows. So nothing but the quantiser differs. With ``prepare --blocks N`` everyone is given
the first N blocks alone, and judged with the float model's others behind them.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import torch
from gguf_ladder import Judge, join_pieces, machine, token_ids
from safetensors.torch import load_file, save_file
from torch import Tensor
from verdict import tell_shares

from edge_perception.errors import CheckpointError
from edge_perception.quantization.encoding import ExportLayout
from edge_perception.quantization.evaluate import windows_of
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.recipe import recipe_for
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.loaders.gguf import GgufCheckpoint

GROUP_SIZE = 64
OUR_METHODS = ("rtn", "awq", "gptq", "awq+gptq")
PROBE_TOKENS = 512
WHOLE = "whole"
"""The folder of the float model with all its blocks."""
GIVEN = "float"
"""The folder of what everyone quantises."""


def prepare(arguments: argparse.Namespace) -> None:
    """Write the float16 checkpoint, the calibration windows and the test windows."""
    checkpoint = GgufCheckpoint(join_pieces(arguments.data, "smollm2.gguf"))
    tensors = {name: value.half().contiguous() for name, value in checkpoint.items()}
    # Both spellings: transformers before 5 reads rope_theta and torch_dtype.
    theta = checkpoint.config["rope_parameters"]["rope_theta"]
    config = checkpoint.config | {
        "rope_theta": theta, "dtype": "float16", "torch_dtype": "float16",
    }  # fmt: skip
    blocks = config["num_hidden_layers"]
    for name, count in {WHOLE: blocks, GIVEN: arguments.blocks or blocks}.items():
        left_out = tuple(f"model.layers.{index}." for index in range(count, blocks))
        kept = {key: value for key, value in tensors.items() if not key.startswith(left_out)}
        _write(arguments.work / name, kept, config | {"num_hidden_layers": count}, arguments.data)
    valid, test = (token_ids(arguments.data, name) for name in ("valid.txt", "test.txt"))
    calibration = windows_of(valid, arguments.window, arguments.calibration_windows)
    judged = windows_of(test, 2048, arguments.test_windows)
    for name, windows in (("calibration", calibration), ("test", judged)):
        (arguments.work / f"{name}.json").write_text(json.dumps([w[0].tolist() for w in windows]))
    probe = judged[0][:, :PROBE_TOKENS].tolist()
    (arguments.work / "probe.json").write_text(json.dumps(probe))


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], data: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(data / "tokenizer.json", folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read_windows(work: Path, name: str, device: str) -> list[Tensor]:
    """Token windows [1, T] that ``prepare`` wrote."""
    windows = json.loads((work / f"{name}.json").read_text())
    return [torch.tensor([window], device=device) for window in windows]


def ours(arguments: argparse.Namespace) -> None:
    """Quantise by our methods, from disk to disk."""
    windows = read_windows(arguments.work, "calibration", arguments.device)
    batches = [{"input_ids": torch.cat(windows[i : i + 32])} for i in range(0, len(windows), 32)]
    for bits in arguments.bits:
        layout = ExportLayout.AWQ if bits == 4 else ExportLayout.COMPRESSED_TENSORS
        for method in OUR_METHODS:
            recipe = recipe_for(method, WeightFormat(bits, GROUP_SIZE))
            out = arguments.work / "checkpoints" / f"ours-{method}-b{bits}"
            job = Job(arguments.work / GIVEN, out, recipe, layout, arguments.device, "float32")
            start = time.perf_counter()
            run_job(job, batches if recipe.needs_calibration else [], restart=True)
            note = {
                "method": method, "implementation": "ours", "bits": bits,
                "version": arguments.commit, "torch": torch.__version__,
                "seconds": time.perf_counter() - start,
            }  # fmt: skip
            (out / "made.json").write_text(json.dumps(note))
            print(note, flush=True)


class Table:
    """Everyone's figures against the float model, all in float32."""

    def __init__(self, work: Path, device: str) -> None:
        self.device = device
        self.calibration = read_windows(work, "calibration", "cpu")
        self.reference: Any = load_model(work / WHOLE, device=device, dtype=torch.float32)
        self.judge = Judge.of(self.reference, read_windows(work, "test", device))
        self.model = "SmolLM2-135M-Instruct in float16, everyone from the same tokens"
        given = json.loads((work / GIVEN / "config.json").read_text())["num_hidden_layers"]
        if given < len(self.reference.model.layers):
            self.model += f", the first {given} blocks"

    def row(self, checkpoint: Path) -> dict[str, Any]:
        """A checkpoint's figures, also window by window for whoever asks how sure they are."""
        note: dict[str, Any] = json.loads((checkpoint / "made.json").read_text())
        model = load_model(checkpoint, device=self.device, dtype=torch.float32)
        blocks = self._complete(model)
        parts = self.judge.window_by_window(model)
        ppl, kl = ([getattr(part, name) for part in parts] for name in ("perplexity", "kl"))
        calibrated = note["method"] != "rtn"
        return note | {
            "blocks": blocks, "group_size": GROUP_SIZE, "symmetric": False,
            "ppl": geometric_mean(ppl), "kl": fmean(kl),
            "agreement": fmean(part.agreement for part in parts),
            "calibration_tokens": calibrated * sum(w.numel() for w in self.calibration),
            "window_ppl": ppl, "window_kl": kl,
        }  # fmt: skip

    def _complete(self, model: Any) -> int:
        """Put the float model's blocks behind the model's own; returns how many its own were."""
        layers = model.model.layers
        own = len(layers)
        layers.extend(self.reference.model.layers[own:])
        model.config.num_hidden_layers = len(layers)
        return own


@torch.no_grad()
def compare(arguments: argparse.Namespace) -> None:
    """Judge every checkpoint, as they come; the table is written anew after each."""
    table = Table(arguments.work, arguments.device)
    runs: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    report = machine(torch.device(arguments.device), arguments.commit) | {
        "model": table.model, "float_ppl": table.judge.perplexity,
        "test_windows": len(table.judge.windows),
        "test_window_tokens": table.judge.windows[0].numel(),
        "calibration_windows": len(table.calibration),
        "calibration_window_tokens": table.calibration[0].numel(),
        "runs": runs, "refused": refused,
    }  # fmt: skip
    for checkpoint in as_they_come(arguments.work, arguments.watch):
        try:
            runs.append(table.row(checkpoint))
        except CheckpointError as error:  # a finding too, and no reason to lose the other rows
            refused[checkpoint.name] = str(error)
            continue
        print(checkpoint.name, round(runs[-1]["ppl"], 4), round(runs[-1]["kl"], 4), flush=True)
        tell_shares(runs, table.judge.perplexity)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        gc.collect()
    report["logits"] = compare_logits(arguments.work, arguments.device)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def as_they_come(work: Path, seconds: float) -> Iterator[Path]:
    """Each finished checkpoint once, also those that are finished in the next ``seconds``."""
    seen: set[Path] = set()
    end = time.monotonic() + seconds
    while True:
        notes = (work / "checkpoints").glob("*/made.json")
        new = {note.parent for note in notes if note.stat().st_size} - seen
        yield from sorted(new)
        seen |= new
        if not new and time.monotonic() >= end:
            return
        time.sleep(0 if new else min(seconds, 0.5))


def compare_logits(work: Path, device: str) -> list[dict[str, Any]]:
    """Their code's logits on AWQ checkpoints against ours on the same files."""
    window = torch.tensor(json.loads((work / "probe.json").read_text()), device=device)
    rows = []
    for file in sorted(work.glob("logits-*.safetensors")):
        checkpoint, _, reader = file.stem.removeprefix("logits-").rpartition("-")
        theirs = load_file(file)["logits"].float()
        model = load_model(work / "checkpoints" / checkpoint, device=device, dtype=torch.float32)
        mine = model(window).logits[0].float().cpu()
        rows.append(
            {
                "checkpoint": checkpoint, "read_by": reader,
                "largest_difference": float((theirs - mine).abs().max()),
                "largest_logit": float(mine.abs().max()),
                "same_next_token": float((theirs.argmax(-1) == mine.argmax(-1)).float().mean()),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "ours", "compare"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--blocks", type=int, help="give everyone so many of the blocks alone")
    parser.add_argument("--test-windows", type=int, default=16)
    parser.add_argument("--watch", type=float, default=0, help="seconds to wait for checkpoints")
    arguments = parser.parse_args()
    {"prepare": prepare, "ours": ours, "compare": compare}[arguments.what](arguments)


if __name__ == "__main__":
    main()

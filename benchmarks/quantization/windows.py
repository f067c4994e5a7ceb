"""Does the length of the calibration's windows matter to GPTQ? The same tokens, cut differently.

    python benchmarks/quantization/windows.py --data DIR --out FILE.json

DIR is told in ``gguf_ladder.py``. The first blocks alone are quantised, the others stay in float,
so that two cores are enough; judged on windows of the ladder's length.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from gguf_ladder import Judge, Source, join_pieces, load_float, machine
from torch import Tensor, nn

from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.pipeline import InMemory, KeepInMemory, quantize_tower
from edge_perception.quantization.recipe import recipe_for
from edge_perception.quantization.streaming import record_samples
from edge_perception.quantization.structure import Tower, find_towers

TEST_WINDOW = 2048


def quantised(model: nn.Module, tokens: Tensor, method: str, blocks: int) -> nn.Module:
    """A copy whose first ``blocks`` are quantised with windows int64 [N, T]; 4 bits, group 64."""
    copied, device = copy.deepcopy(model), tokens.device
    whole = find_towers(copied)[0]
    tower = Tower(whole.path, whole.blocks[:blocks], whole.is_vision)
    quantize_tower(
        tower, record_samples(copied, tower, [{"input_ids": tokens}], device),
        recipe_for(method, WeightFormat(4, 64)), device=device, source=InMemory(device),
        sink=KeepInMemory(),
    )  # fmt: skip
    return copied


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> None:
    """A row for every method and length, written as it comes."""
    source = Source(arguments.data, "smollm2.gguf", "SmolLM2-135M-Instruct")
    device = torch.device(arguments.device)
    model = load_float(join_pieces(source.folder, source.gguf), device)
    test = source.windows("test.txt", TEST_WINDOW, arguments.test_windows)
    judge = Judge.of(model, [window.to(device) for window in test])
    runs: list[dict[str, Any]] = []
    report = machine(device, arguments.commit) | {
        "schema": 1, "model": source.name, "blocks": arguments.blocks, "bits": 4, "group_size": 64,
        "calibration_tokens": arguments.tokens, "float_ppl": judge.perplexity,
        "test_windows": len(test), "test_window_tokens": TEST_WINDOW, "runs": runs,
    }  # fmt: skip
    for method in arguments.methods:
        for length in arguments.lengths:
            windows = source.windows("valid.txt", length, arguments.tokens // length)
            calibration = torch.cat(windows).to(device)
            got = judge.fidelity(quantised(model, calibration, method, arguments.blocks))
            runs.append(
                {"method": method, "window": length, "ppl": got.perplexity, "kl": got.kl}
            )  # fmt: skip
            print(runs[-1], flush=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["gptq"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--test-windows", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="unknown")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()

"""Quantisation on a data-centre GPU: SmolLM2's ladder and the cost for Llama-3-8B's shape.

    python benchmarks/quantization/h100.py smollm2 --data DIR --out ladder.json
    python benchmarks/quantization/h100.py llama3-8b --out cost.json

DIR is told in ``gguf_ladder.py``. The JSON is written anew after every run, so that a run that is
cut short loses little. The ladder runs on a CPU too, if it is given few windows.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf_ladder import Limits, Source, machine, measure_ladder
from ladder import ladder_runs
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from edge_perception.quantization import gptq
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.pipeline import Progress, quantize_tower
from edge_perception.quantization.recipe import recipe_for
from edge_perception.quantization.streaming import record_samples
from edge_perception.quantization.structure import Tower, find_towers

TEST_WINDOWS = 16


def check_graphs(device: torch.device) -> None:
    """GPTQ's CUDA graph must round exactly as the plain loop does; if not, it is not used."""
    torch.manual_seed(0)
    weight, scales = torch.randn(64, 96, device=device), torch.full((64, 96), 0.3, device=device)
    spread, zeros = torch.randn(64, 64, device=device) * 0.1, torch.full_like(scales, 8.0)
    plain = gptq._round_block(weight.clone(), spread, scales, zeros, 15)
    try:
        graphed = gptq._graphed_block(64, 96, 15, device)(weight, spread, scales, zeros)
        same = all(torch.equal(a, b) for a, b in zip(plain, graphed, strict=True))
    except RuntimeError as error:
        print(f"graph capture failed: {error}")
        same = False
    print(f"CUDA graph equals the loop: {same}", flush=True)
    if not same:
        gptq._graphed_block = lambda *shape: partial(gptq._round_block, highest_code=shape[2])


def run_ladder(arguments: argparse.Namespace) -> None:
    """Measure a GGUF's ladder, SmolLM2's if nothing else is named."""
    source = Source(arguments.data, arguments.gguf, arguments.name, arguments.bos)
    limits = Limits(
        arguments.windows, arguments.window, arguments.calibration_windows,
        arguments.batch_tokens, arguments.seconds,
    )  # fmt: skip
    measure_ladder(
        source, ladder_runs(arguments.only), limits, torch.device(arguments.device),
        commit=arguments.commit, out=arguments.out,
    )  # fmt: skip


LLAMA3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


class RandomBlocks:
    """Blocks of random weights made on the device as they are needed, and dropped after."""

    def load(self, path: str, block: nn.Module, device: torch.device) -> None:
        """Fill the block: normal weights, deviation 0.02; norms 1."""
        torch.manual_seed(zlib.crc32(path.encode()))
        block.to_empty(device=device)
        for name, parameter in block.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def release(self, path: str, block: nn.Module) -> None:
        """Free the block."""
        block.to_empty(device="meta")


class CountBytes:
    """A sink that counts what a checkpoint would hold, and keeps nothing."""

    def __init__(self) -> None:
        self.bytes = 0

    def restore(self, path: str, block: nn.Module) -> bool:
        """Nothing was kept before."""
        return False

    def store(self, path: str, block: nn.Module, result: Any) -> None:
        """Count codes, fp16 scales and packed zeros."""
        for weight in result.values():
            groups = weight.grid.scales.numel()
            self.bytes += (weight.codes.numel() + groups) * weight.form.bits // 8 + 2 * groups


def run_llama3_8b(arguments: argparse.Namespace) -> None:
    """Time every method on the true shape of Llama-3-8B, random weights."""
    device = torch.device(arguments.device)
    shape = LLAMA3_8B | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})
    if arguments.toy:
        shape |= {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000,
                  "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
    config = AutoConfig.for_model("llama", **shape)
    report = machine(device, arguments.commit) | {
        "model": "Llama-3-8B shape, random weights", "layers": shape["num_hidden_layers"],
        "calibration_tokens": arguments.samples * 512, "runs": [],
    }  # fmt: skip

    def tell(method: str, progress: Progress) -> None:
        report["unfinished"] = {
            "method": method, "blocks": progress.done, "seconds": progress.elapsed_s,
            "peak_bytes": progress.peak_bytes,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(report, indent=1))

    for method in arguments.only or ["rtn", "awq", "gptq", "awq+gptq", "smoothquant"]:
        row = _time_method(config, method, arguments.samples, device, partial(tell, method))
        report["runs"].append(row)
        report.pop("unfinished")
        print(row, flush=True)
        arguments.out.write_text(json.dumps(report, indent=1))


def _time_method(
    config: Any, method: str, samples: int, device: torch.device,
    on_progress: Callable[[Progress], None],
) -> dict[str, Any]:  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    tower = find_towers(model)[0]
    recipe = recipe_for(method, WeightFormat(4, 128))
    recorded = _record_random(config, model, tower, samples, device) if (
        recipe.needs_calibration) else []  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    sink = CountBytes()
    start = time.perf_counter()
    peaks: list[int] = []

    def each_block(progress: Progress) -> None:
        peaks.append(progress.peak_bytes)
        on_progress(progress)

    quantize_tower(
        tower, recorded, recipe, device=device, source=RandomBlocks(), sink=sink,
        on_progress=each_block,
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {
        "method": method, "seconds": time.perf_counter() - start,
        "peak_bytes": peaks[-1], "bytes": sink.bytes,
        **asdict(recipe.form),
    }  # fmt: skip


def _record_random(
    config: Any, model: nn.Module, tower: Tower, samples: int, device: torch.device
) -> Any:
    """Hidden states as random embeddings would give them; rotary tables are the model's own."""
    model.model.embed_tokens.to_empty(device=device)
    nn.init.normal_(model.model.embed_tokens.weight)
    model.model.norm.to_empty(device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    torch.manual_seed(0)
    batches = [
        {"input_ids": torch.randint(0, config.vocab_size, (4, 512), device=device)}
        for _ in range(max(1, samples // 4))
    ]
    recorded = record_samples(model, tower, batches, device)
    model.model.embed_tokens.to_empty(device="meta")
    return recorded


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["smollm2", "llama3-8b"])
    parser.add_argument("--data", type=Path, default=Path(".carry/smollm2"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--gguf", default="smollm2.gguf", help="another model's file in --data")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct")
    parser.add_argument("--bos", type=int, help="token that begins every window (Gemma: 2)")
    parser.add_argument("--windows", type=int, default=TEST_WINDOWS)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--calibration-windows", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after this")
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    with torch.no_grad():
        if arguments.device == "cuda":
            check_graphs(torch.device("cuda"))
        {"smollm2": run_ladder, "llama3-8b": run_llama3_8b}[arguments.what](arguments)


if __name__ == "__main__":
    main()

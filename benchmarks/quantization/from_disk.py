"""Seconds and memory to quantise a model of Llama 3's shapes from disk to disk.

    python benchmarks/quantization/from_disk.py write --shape 8b --layers 32 --work DIR
    python benchmarks/quantization/from_disk.py quantise --method awq --work DIR --out FILE.json

``write`` makes a checkpoint of random float16 weights, a shard a block. ``quantise`` is what the
command does: it reads a block, quantises it, writes it, and tells the device's peak memory, the
process's own (anonymous) memory, and its resident set, in which the memory-mapped shards count
though the kernel may drop them at any time. Run it once a process: peaks never fall.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch
from gguf_ladder import machine
from safetensors.torch import save_file
from torch import Tensor

from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.pipeline import Progress
from edge_perception.quantization.recipe import recipe_for

SHAPES: dict[str, dict[str, int]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64},
    "toy": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8},
}
VOCABULARY = 128256
KV_HEADS = 8


def write(work: Path, shape: dict[str, int], layers: int, device: str) -> None:
    """Write the float16 checkpoint: a shard a block, one more for what lies outside."""
    work.mkdir(parents=True, exist_ok=True)
    config = shape | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16",
        "num_hidden_layers": layers, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }  # fmt: skip
    (work / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for index in range(layers + 1):
        names = _block(shape, index) if index < layers else _outside(shape)
        file = f"model-{index:05d}.safetensors"
        tensors = {name: _random(size, device) for name, size in names.items()}
        save_file({name: value.cpu() for name, value in tensors.items()}, work / file)
        weight_map |= dict.fromkeys(names, file)
    (work / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _block(shape: dict[str, int], index: int) -> dict[str, tuple[int, ...]]:
    wide, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = wide // shape["num_attention_heads"] * KV_HEADS
    rows = {
        "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (narrow, wide),
        "self_attn.v_proj": (narrow, wide), "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner), "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }  # fmt: skip
    return {f"model.layers.{index}.{name}.weight": size for name, size in rows.items()}


def _outside(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    table = (VOCABULARY, shape["hidden_size"])
    return {
        "model.embed_tokens.weight": table, "lm_head.weight": table,
        "model.norm.weight": table[1:],
    }  # fmt: skip


def _random(size: tuple[int, ...], device: str) -> Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.float16)
    return torch.randn(size, dtype=torch.float16, device=device) * 0.02


def quantise(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one job and tell what it took."""
    recipe = recipe_for(arguments.method, WeightFormat(4, 128))
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (arguments.samples, 512), device=arguments.device)
    batches = [{"input_ids": part} for part in tokens.split(4)] if recipe.needs_calibration else []
    own: list[int] = []

    def watch(progress: Progress) -> None:
        own.append(_anonymous_bytes())
        print(f"{progress.done}/{progress.total} {progress.elapsed_s:.1f} s", flush=True)

    job = Job(arguments.work, arguments.target, recipe, device=arguments.device, dtype="float16")
    outcome = run_job(job, batches, restart=True, on_progress=watch)
    return machine(torch.device(arguments.device), arguments.commit) | {
        "method": arguments.method, "bits": 4, "group_size": 128,
        "config": json.loads((arguments.work / "config.json").read_text()),
        "calibration_tokens": tokens.numel() if batches else 0, "device": arguments.device,
        "seconds": outcome.seconds, "bytes": outcome.bytes, "float_bytes": outcome.float_bytes,
        "device_peak_bytes": outcome.peak_bytes, "own_memory_peak_bytes": max(own),
        "resident_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "quantise"])
    parser.add_argument("--work", type=Path, required=True, help="the float checkpoint")
    parser.add_argument("--target", type=Path, default=Path("out/from_disk"))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--method", default="awq")
    parser.add_argument("--samples", type=int, default=128, help="windows of 512 random tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "write":
        write(arguments.work, SHAPES[arguments.shape], arguments.layers, arguments.device)
    else:
        report = quantise(arguments)
        print(report, flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

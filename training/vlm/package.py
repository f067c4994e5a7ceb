"""Put the quantised model into the package: one weight file, its configuration, a manifest.

    python -m training.vlm.package --model DIR-awq --accuracy accuracy.json --log log.jsonl \
        --out engines/demo_vlm [KEY=VALUE ...]

KEY=VALUE are facts of the run that the manifest keeps: seeds, frames, minutes, the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.vlm.model import ModelSize, smaller_sides

_CARRIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.jinja"),
)


def merge_weights(folder: Path, out: Path) -> str:
    """Write all tensors of a checkpoint into one file; returns its SHA-256."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    save_file(tensors, out, {"format": "pt"})
    out.chmod(0o644)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def manifest(
    sha256: str, size: ModelSize, accuracy: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """What the manifest says; ``accuracy`` is what ``benchmarks/vlm/accuracy.py`` wrote."""
    told = ("fp16", "awq_int4", "rtn_int4", "blank", "questions", "scenes")
    return {
        "schema": 1,
        "name": "demo_vlm",
        "runtime": "onnxruntime",
        "checkpoint": ".",
        "sha256": sha256,
        "license": "Apache-2.0",
        "source": "trained from scratch on the rendered world by training/vlm",
        "architecture": "Idefics3ForConditionalGeneration",
        "precision": "int4, AWQ, groups of 64, both towers",
        "image_sides_px": sorted((size.image_px, *smaller_sides(size))),
        "accuracy": {name: accuracy[name] for name in told},
        "provenance": {"recipe": "training/vlm/run_gpu.sh", **provenance},
    }


def _facts(pairs: list[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def _run_facts(log: Path) -> dict[str, Any]:
    """Images, steps and size that the training's log tells."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    loaded = next(event for event in events if event["event"] == "loaded")
    last = [event for event in events if event["event"] == "progress"][-1]
    return {"train_frames": loaded["images"], "steps": last["step"], "size": loaded["size"]}


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="put the quantised model into the package")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--accuracy", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("facts", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in _CARRIED:
        shutil.copyfile(options.model / name, options.out / name)
    sha256 = merge_weights(options.model, options.out / "model.safetensors")
    provenance = _run_facts(options.log)
    size = ModelSize(**provenance["size"])
    accuracy = json.loads(options.accuracy.read_text())
    made = manifest(sha256, size, accuracy, provenance | _facts(options.facts))
    (options.out / "manifest.yaml").write_text(yaml.safe_dump(made, sort_keys=False))


if __name__ == "__main__":
    main()

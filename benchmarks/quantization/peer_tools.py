"""Other people's quantisers on a model that ``peers.py prepare`` has written.

    python peer_tools.py autoawq --work WORK           # 4 bits, in AutoAWQ 0.2.9's environment
    python peer_tools.py llm-compressor-awq --work WORK [--bits 3]
    python peer_tools.py logits --work WORK            # what their code computes from checkpoints

Each runs in the environment its library asks for, so this file imports torch and them alone,
never this package. Every tool gets the same float16 checkpoint, the same token windows and the same
format (integers of ``--bits``, groups of 64, asymmetric, head and embedding in float); all other
settings are its own defaults, but for what llm-compressor computes in (see there).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GROUP_SIZE = 64


def calibration_windows(work: Path) -> list[list[int]]:
    """The token windows that every tool calibrates on."""
    windows: list[list[int]] = json.loads((work / "calibration.json").read_text())
    return windows


class GroupProducts:
    """Products of inputs [1, T, G, K] and weights [C, 1, G, K] that wait to be summed over K.

    AutoAWQ's clip search multiplies, then sums: [C, T, G, K] goes through main memory for every
    candidate, most of a block's time on a CPU. As a matrix product it is the same sum in a second.
    """

    def __init__(self, inputs: torch.Tensor, weights: torch.Tensor) -> None:
        self.inputs, self.weights = inputs, weights

    def sum(self, dim: int) -> torch.Tensor:
        """The sums over K, [C, T, G]."""
        assert dim == -1
        return torch.einsum("tgk,cgk->ctg", self.inputs[0], self.weights[:, 0])


_multiply = torch.Tensor.__mul__


def _multiply_groups_late(left: torch.Tensor, right: Any) -> Any:
    if isinstance(right, torch.Tensor) and left.dim() == right.dim() == 4:
        (one, _, *inputs), (rows, also_one, *weights) = left.shape, right.shape
        if one == also_one == 1 < rows and inputs == weights and weights[-1] == GROUP_SIZE:
            return GroupProducts(left, right)
    return _multiply(left, right)


def mend_autoawq_for_cpu() -> None:
    """Make AutoAWQ 0.2.9 right, and quick, without a GPU.

    Its search keeps the weights by ``tensor.cpu()`` while it scales them in place. On a CPU that is
    no copy: every candidate's scales stay in the weights, and the checkpoint is ruined
    (quantizer.py, ``org_sd``). So ``cpu`` is made to copy.
    """
    torch.Tensor.cpu = torch.Tensor.clone  # type: ignore[method-assign]
    torch.Tensor.__mul__ = _multiply_groups_late  # type: ignore[method-assign]


def autoawq(work: Path, out: Path, bits: int) -> str:
    """AutoAWQ's search and clipping as they come (but see ``mend_autoawq_for_cpu``)."""
    from awq import AutoAWQForCausalLM

    if not torch.cuda.is_available():
        mend_autoawq_for_cpu()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32  # half is slow on a CPU
    model = AutoAWQForCausalLM.from_pretrained(
        str(work / "float"), device_map=device, torch_dtype=dtype
    )
    windows = calibration_windows(work)
    model.quantize(
        None,
        {"zero_point": True, "q_group_size": GROUP_SIZE, "w_bit": bits, "version": "GEMM"},
        calib_data=windows,
        max_calib_samples=len(windows),
        max_calib_seq_len=len(windows[0]),
    )
    model.save_quantized(str(out))
    return "awq"


def llm_compressor(
    work: Path, out: Path, bits: int, recipe_of: Callable[[dict[str, Any]], Any]
) -> str:
    """llm-compressor's modifiers, computing in float32, written in float16.

    In float16 its AWQ finds no finite loss on this model: it sums the squares of an error in the
    outputs' own type, and the sum passes float16's 65,504.
    """
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(work / "float", dtype=torch.float32)
    tokens = torch.tensor(calibration_windows(work))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens.split(8)
    ]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(work / "float" / "tokenizer.json"))
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=torch.utils.data.DataLoader(batches, batch_size=None),
        recipe=recipe_of(_scheme(bits)),
    )
    model.half().save_pretrained(out, save_compressed=True)
    return "llmcompressor"


def _scheme(bits: int) -> dict[str, Any]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": False,
        "strategy": "group", "group_size": GROUP_SIZE,
    }  # fmt: skip
    return {
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def awq_recipe(scheme: dict[str, Any]) -> list[Any]:
    """AWQ, then rounding to nearest."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(**scheme)]


def gptq_recipe(scheme: dict[str, Any]) -> list[Any]:
    """GPTQ as it comes (static activation order, damping 0.01)."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    return [GPTQModifier(**scheme)]


def awq_gptq_recipe(scheme: dict[str, Any]) -> list[Any]:
    """AWQ's scales, GPTQ's rounding."""
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), *gptq_recipe(scheme)]


def gptqmodel(work: Path, out: Path, bits: int) -> str:
    """GPTQModel as it comes."""
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=bits, group_size=GROUP_SIZE, sym=False)
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = GPTQModel.load(str(work / "float"), config, dtype=dtype)
    windows = calibration_windows(work)
    model.quantize(
        [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows],
        batch_size=32,
    )
    model.save(str(out))
    return "gptqmodel"


def quantise(tool: str, work: Path, bits: int) -> None:
    """Run a tool, note its version and seconds beside the checkpoint it wrote."""
    out = work / "checkpoints" / f"{tool}-b{bits}"
    start = time.perf_counter()
    if tool == "autoawq":
        package = autoawq(work, out, bits)
    elif tool == "gptqmodel":
        package = gptqmodel(work, out, bits)
    else:
        package = llm_compressor(work, out, bits, _RECIPES[tool])
    note = {
        "method": _METHODS[tool], "implementation": _NAMES[package], "bits": bits,
        "version": importlib.import_module(package).__version__, "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    (out / "made.json").write_text(json.dumps(note))
    print(note, flush=True)


_RECIPES = {
    "llm-compressor-awq": awq_recipe,
    "llm-compressor-gptq": gptq_recipe,
    "llm-compressor-awq+gptq": awq_gptq_recipe,
}
_NAMES = {"awq": "autoawq", "llmcompressor": "llm-compressor", "gptqmodel": "gptqmodel"}
_METHODS = {
    "autoawq": "awq",
    "gptqmodel": "gptq",
    "llm-compressor-awq": "awq",
    "llm-compressor-gptq": "gptq",
    "llm-compressor-awq+gptq": "awq+gptq",
}


@torch.no_grad()
def write_logits(work: Path) -> None:
    """Logits of the AWQ checkpoints, ours and AutoAWQ's, by whatever of their code is here."""
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    window = torch.tensor(json.loads((work / "probe.json").read_text()), device=device)
    for checkpoint in sorted((work / "checkpoints").glob("*awq-b4")):
        section = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
        if section["quant_method"] != "awq":
            continue
        for name, load in _readers().items():
            try:
                logits = load(checkpoint, device).eval()(window).logits[0]
            except Exception as error:  # whatever their code raises is the finding
                print(f"{checkpoint.name} by {name}: {error!r}"[:500], flush=True)
                continue
            file = work / f"logits-{checkpoint.name}-{name}.safetensors"
            save_file({"logits": logits.half().cpu()}, file)
            print(f"{checkpoint.name} by {name}: {list(logits.shape)}", flush=True)


def _readers() -> dict[str, Callable[[Path, str], Any]]:
    """Loaders of AWQ checkpoints by name: AutoAWQ's own where it is installed, transformers'."""
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as version

    kernels = "autoawq" if importlib.util.find_spec("awq") else "gptqmodel"
    readers: dict[str, Callable[[Path, str], Any]] = {
        f"transformers_{version}_{kernels}": lambda path, device: (
            AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float16, device_map=device)
        )
    }
    if kernels == "autoawq":
        from awq import AutoAWQForCausalLM

        readers["autoawq"] = lambda path, _device: (
            AutoAWQForCausalLM.from_quantized(str(path), fuse_layers=False, device_map="auto").model
        )
    return readers


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=[*_METHODS, "logits"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.tool == "logits":
        write_logits(arguments.work)
    else:
        quantise(arguments.tool, arguments.work, arguments.bits)


if __name__ == "__main__":
    main()

"""Our decoder against transformers on real weights, and its INT4 perplexity against the toolkit's.

    python -m benchmarks.decoder.fidelity FLOAT [INT4] --text test.txt --tokenizer tokenizer.json \
        --out docs/benchmarks/decoder_cpu.json

FLOAT and INT4 are one model, as a checkpoint folder or a .gguf; without INT4 the toolkit rounds the
layers of FLOAT to the nearest here. transformers and the toolkit compute in float32. On the CPU our
decoder does so too; with ``--device cuda`` it runs its kernels in FP16, one row a call for the
top-1 figures and eight for the perplexity, and answers by CUDA graphs. What is proven here is
equality, not speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.decoder.results import run_facts
from edge_perception.quantization.calibration import read_token_ids
from edge_perception.quantization.encoding import round_alone
from edge_perception.quantization.evaluate import measure_fidelity, windows_of
from edge_perception.quantization.grid import WeightFormat
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.generation import GenerationOptions, TokenStream
from edge_perception.vlm.graphs import capture_decoder, gpu_operators
from edge_perception.vlm.language_model import LanguageModel, Prompt
from edge_perception.vlm.operators import SAME_ORDER_ROWS
from edge_perception.vlm.packed_linear import PackedLinear, PackedWeight
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import DecoderWeights

MARGIN = 0.05
"""Logits nearer than this may change places by rounding."""

POSITIONS = 256
INT4 = WeightFormat(bits=4, group_size=64)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("float", type=Path)
    parser.add_argument("int4", type=Path, nargs="?")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--commit", help="of the code, where this is no checkout")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(2)
    token_ids = read_token_ids(options.text, options.tokenizer).to(device)
    windows = windows_of(token_ids, options.window, options.windows)
    result: dict[str, Any] = {
        **run_facts(options.commit),
        "model": options.float.stem,
        "text": options.text.name,
        "dtype": "float32" if options.device == "cpu" else "float16, kernels",
        "models": {},
    }
    for kind, path in (("float", options.float), ("int4", options.int4)):
        model = load_model(path or options.float, device=device, dtype=torch.float32)
        if path is None:
            round_layers(model)
        result["models"][kind] = compare(model, device, token_ids, windows)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(kind, json.dumps(result["models"][kind], indent=1), flush=True)


def round_layers(model: nn.Module) -> None:
    """Put the model's own linear layers, rounded by the toolkit, in their places."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            rounded = round_alone(layer.weight.detach(), INT4)
            codes = rounded.codes.to(torch.uint8)
            packed = PackedWeight.from_codes(
                codes, rounded.grid.scales, rounded.grid.zeros, bits=4, bias=layer.bias
            )
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PackedLinear(packed))


@torch.inference_mode()
def compare(
    model: nn.Module, device: torch.device, token_ids: Tensor, windows: list[Tensor]
) -> dict[str, Any]:
    """All figures of one checkpoint: transformers first, then our decoder from the same weights."""
    forced = token_ids[:POSITIONS]
    theirs = model(forced[None]).logits[0]
    toolkit = measure_fidelity(lambda window: model(window).logits[0], None, windows)
    on_gpu = device.type == "cuda"
    weights = half_weights(model) if on_gpu else take_tower(model)
    options: dict[str, Any] = {"capacity": windows[0].shape[1]}
    if on_gpu:
        options |= {"operators": gpu_operators(), "prefill_chunk": SAME_ORDER_ROWS}
    decoder = Decoder(weights, **options)
    by_steps = torch.cat([decoder.logits(Prompt(forced[i : i + 1])) for i in range(POSITIONS)])
    ours = measure_fidelity(logits_of(decoder), None, windows)
    quantised_cache = Decoder(weights, kv_format="int8", **options)
    int8 = measure_fidelity(logits_of(quantised_cache), None, windows)
    with answering(decoder, weights, on_gpu) as answerer:
        speculation = speculation_figures(answerer, token_ids)
    return {
        "weight_bytes": weights.nbytes,
        "bytes_per_token": weights.bytes_per_token,
        "teacher_forced": top1_figures(theirs, by_steps.float()),
        "perplexity": {
            "tokens": ours.tokens,
            "toolkit": toolkit.perplexity,
            "decoder": ours.perplexity,
            "relative_difference": ours.perplexity / toolkit.perplexity - 1.0,
            "decoder_int8_kv": int8.perplexity,
        },
        "speculation": speculation,
    }


def half_weights(model: nn.Module) -> DecoderWeights:
    """A copy in FP16, but for the rotary frequencies: positions in the thousands multiply them."""
    frequencies = model.get_decoder().rotary_emb.inv_freq  # type: ignore[operator]
    return replace(take_tower(deepcopy(model).half()), inverse_frequencies=frequencies.clone())


@contextmanager
def answering(decoder: Decoder, weights: DecoderWeights, on_gpu: bool) -> Iterator[LanguageModel]:
    """The decoder itself, or on a GPU one whose steps are CUDA graphs."""
    if not on_gpu:
        yield decoder
        return
    from edge_perception.gpu.cuda import Stream, get_device

    stream = Stream(get_device())
    with capture_decoder(weights, stream.handle, capacity=decoder.capacity) as captured:
        yield captured
    stream.close()


def logits_of(decoder: Decoder) -> Callable[[Tensor], Tensor]:
    """The function of a window [1, T] that the toolkit's evaluation calls."""

    def logits(window: Tensor) -> Tensor:
        decoder.start(GREEDY)
        return decoder.logits(Prompt(window[0]))

    return logits


def top1_figures(theirs: Tensor, ours: Tensor) -> dict[str, Any]:
    """Whether both rank the same word first wherever theirs leads by more than ``MARGIN``."""
    best = theirs.topk(2, dim=-1).values
    clear = (best[:, 0] - best[:, 1]) > MARGIN
    same = theirs.argmax(-1) == ours.argmax(-1)
    return {
        "positions": len(theirs),
        "margin": MARGIN,
        "clear": int(clear.sum()),
        "same_where_clear": int((same & clear).sum()),
        "same": int(same.sum()),
        "largest_logit_difference": float((theirs - ours).abs().max()),
    }


def speculation_figures(decoder: LanguageModel, token_ids: Tensor) -> dict[str, Any]:
    """Tokens of 96-token answers with and without prompt lookup; they must be the same."""
    figures = {}
    for name, sampling in (("greedy", GREEDY), ("sampled", Sampling(0.7, top_p=0.9, seed=1))):
        prompt = Prompt(token_ids[:128])
        plain = TokenStream(decoder, prompt, GenerationOptions(96, sampling=sampling))
        tokens = list(plain)
        options = GenerationOptions(96, sampling=sampling, draft_length=7)
        guessed = TokenStream(decoder, prompt, options)
        figures[name] = {
            "equal": list(guessed) == tokens,
            "tokens": len(tokens),
            "steps_plain": plain.steps,
            "steps_with_lookup": guessed.steps,
        }
    return figures


if __name__ == "__main__":
    main()

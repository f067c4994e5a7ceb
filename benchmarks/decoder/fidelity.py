"""Our decoder against transformers on real weights, and its INT4 perplexity against the toolkit's.

    python -m benchmarks.decoder.fidelity FLOAT INT4 --text test.txt --tokenizer tokenizer.json \
        --out docs/benchmarks/decoder_cpu.json

FLOAT and INT4 are one model, as a checkpoint folder or a .gguf. All in float32 on the CPU; what is
proven here is equality, not speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.quantization.calibration import read_token_ids
from edge_perception.quantization.evaluate import measure_fidelity, windows_of
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.generation import GenerationOptions, TokenStream
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.tower import take_tower

MARGIN = 0.05
"""Logits nearer than this may change places by rounding."""

POSITIONS = 256


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("float", type=Path)
    parser.add_argument("int4", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    token_ids = read_token_ids(options.text, options.tokenizer)
    windows = windows_of(token_ids, options.window, options.windows)
    result = {
        "machine": describe_machine(),
        "date": utc_now(),
        "code": describe_code(),
        "model": options.float.stem,
        "text": options.text.name,
        "dtype": "float32",
        "models": {
            kind: compare(path, token_ids, windows)
            for kind, path in (("float", options.float), ("int4", options.int4))
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["models"], indent=1))


@torch.inference_mode()
def compare(path: Path, token_ids: Tensor, windows: list[Tensor]) -> dict[str, Any]:
    """All figures of one checkpoint: transformers first, then our decoder from the same weights."""
    model = load_model(path, dtype=torch.float32)
    forced = token_ids[:POSITIONS]
    theirs = model(forced[None]).logits[0]
    toolkit = measure_fidelity(lambda window: model(window).logits[0], None, windows)
    weights = take_tower(model)
    decoder = Decoder(weights, capacity=windows[0].shape[1])
    by_steps = torch.cat([decoder.logits(Prompt(forced[i : i + 1])) for i in range(POSITIONS)])
    ours = measure_fidelity(logits_of(decoder), None, windows)
    quantised_cache = Decoder(weights, capacity=windows[0].shape[1], kv_format="int8")
    int8 = measure_fidelity(logits_of(quantised_cache), None, windows)
    return {
        "weight_bytes": weights.nbytes,
        "bytes_per_token": weights.bytes_per_token,
        "teacher_forced": top1_figures(theirs, by_steps),
        "perplexity": {
            "tokens": ours.tokens,
            "toolkit": toolkit.perplexity,
            "decoder": ours.perplexity,
            "relative_difference": ours.perplexity / toolkit.perplexity - 1.0,
            "decoder_int8_kv": int8.perplexity,
        },
        "speculation": speculation_figures(decoder, token_ids),
    }


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


def speculation_figures(decoder: Decoder, token_ids: Tensor) -> dict[str, Any]:
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

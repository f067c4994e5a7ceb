"""Write what was trained as a transformers checkpoint that its Auto classes load without more.

    python -m training.vlm.export --run RUN --out FOLDER

FOLDER receives float16 weights (safetensors), configuration, tokenizer, processor and template.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.vlm.model import Learner, ModelSize
from training.vlm.tokens import BOS, CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS
from training.vlm.train import load_weights

_UNUSED = (
    *("dtype", "_name_or_path", "transformers_version", "id2label", "label2id", "return_dict"),
    *("output_attentions", "output_hidden_states", "is_encoder_decoder", "pretraining_tp"),
    "chunk_size_feed_forward",
)
"""What every configuration of transformers carries and these classes do not read."""


def load_learner(run: Path) -> Learner:
    """The trained model of a run, on the CPU, in eval mode."""
    vocabulary = Tokenizer.from_file(str(run / "tokenizer.json")).get_vocab_size()
    with safe_open(run / "learner.safetensors", framework="pt") as file:
        size = ModelSize(**json.loads(file.metadata()["size"]))
    learner = Learner(size, vocabulary).eval()
    load_weights(learner, run / "learner.safetensors")
    return learner


def write_checkpoint(learner: Learner, tokenizer: Path, out: Path) -> None:
    """Write the model without its dense heads, in float16."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.to(torch.float16).contiguous()
        for name, value in learner.vlm.state_dict().items()
        if name != "lm_head.weight"  # the embedding's
    }
    save_file(state, out / "model.safetensors", {"format": "pt"})
    config = json.loads(learner.vlm.config.to_json_string(use_diff=False))
    _write(out / "config.json", _plain_config(config))
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    _write(out / "tokenizer_config.json", _tokenizer_config())
    _write(out / "preprocessor_config.json", _processor_config(learner.size))
    _write(out / "processor_config.json", {
        "processor_class": "Idefics3Processor",
        "image_seq_len": learner.size.image_tokens(learner.size.image_px),
    })  # fmt: skip
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write(out / "generation_config.json", _token_ids(config))


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration by what the class needs, without this library's version of defaults."""
    kept = ("image_token_id", "scale_factor", "tie_word_embeddings", "text_config", "vision_config")
    parts = {name: config[name] for name in kept}
    for name in ("text_config", "vision_config"):
        parts[name] = {
            key: value
            for key, value in parts[name].items()
            if value is not None and key not in _UNUSED
        }
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "dtype": "float16",
        **_token_ids(config),
        **parts,
    }


def _token_ids(config: dict[str, Any]) -> dict[str, int]:
    text = config["text_config"]
    return {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }


def _processor_config(size: ModelSize) -> dict[str, Any]:
    """Pictures squeezed to the model's square, -1..1, never split."""
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": False,
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": size.image_px},
        "size": {"longest_edge": size.image_px},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pad": True,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="write a trained run as a checkpoint")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_checkpoint(load_learner(options.run), options.run / "tokenizer.json", options.out)


if __name__ == "__main__":
    main()

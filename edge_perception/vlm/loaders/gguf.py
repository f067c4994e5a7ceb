"""GGUF files (llama.cpp) as float checkpoints: weights, configuration and tokenizer.

The ``gguf`` library reads the container and dequantises its blocks (Q4_0, Q4_1, Q8_0, the K
quants); this module turns names and conventions into those of transformers. llama.cpp stores the
query and key rows of Llama models permuted for its own rotary kernel, and Gemma's norm weights
with the 1 added that Gemma's formula adds: both are undone here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_perception.errors import CheckpointError

FLOAT_TYPES = ("F32", "F16", "BF16")
"""Tensor types that hold floats as they are."""

QUANTISED_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Tensor types that are dequantised on reading."""

_BLOCK_NAMES: dict[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES: dict[str, str] = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTER_NAMES: dict[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


class GgufCheckpoint:
    """A GGUF file's tensors under their transformers names, dequantised on demand.

    The file stays memory-mapped; each read returns a new tensor the caller owns. Raises
    ``CheckpointError`` for a file that is no GGUF, an unknown architecture or tensor type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open_reader(path)
        self.architecture = str(self.metadata("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path.name} holds an architecture this reader does not know",
                expected=" or ".join(ARCHITECTURES),
                got=self.architecture,
            )
        self._tensors = {self._transformers_name(t.name): t for t in self._reader.tensors}
        self.config = self._read_config()

    def metadata(self, key: str, default: object = None) -> Any:
        """The value of a metadata key, as Python objects."""
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise CheckpointError(f"{self.path.name} lacks metadata", expected=key)
        return default

    def hyperparameter(self, key: str, default: object = None) -> Any:
        """The value of ``<architecture>.<key>``."""
        return self.metadata(f"{self.architecture}.{key}", default)

    def names(self) -> list[str]:
        """Tensor names in transformers' spelling, in file order."""
        return [name for name in self._tensors if not name.startswith("rope_freqs")]

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32, shape as transformers has it."""
        if name not in self._tensors:
            raise CheckpointError(
                "no such tensor", expected=f"a name in {self.path.name}", got=name
            )
        entry = self._tensors[name]
        values = _dequantise(entry)
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _undo_rotary_permutation(values, self._heads(name))
        if self.architecture == "gemma3" and name.endswith("norm.weight"):
            values = values - 1.0
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, one at a time."""
        for name in self.names():
            yield name, self.tensor(name)

    def _read_config(self) -> dict[str, Any]:
        """The transformers configuration (a ``config.json``) that the metadata describes."""
        hidden = int(self.hyperparameter("embedding_length"))
        heads = int(self.hyperparameter("attention.head_count"))
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": "gemma3_text" if self.architecture == "gemma3" else self.architecture,
            "hidden_size": hidden,
            "intermediate_size": int(self.hyperparameter("feed_forward_length")),
            "num_hidden_layers": int(self.hyperparameter("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self.hyperparameter("attention.head_count_kv", heads)),
            "head_dim": int(self.hyperparameter("attention.key_length", hidden // heads)),
            "max_position_embeddings": int(self.hyperparameter("context_length")),
            "rms_norm_eps": float(self.hyperparameter("attention.layer_norm_rms_epsilon")),
            "rope_theta": float(self.hyperparameter("rope.freq_base", 10000.0)),
            "vocab_size": int(self._tensors["model.embed_tokens.weight"].shape[1]),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "bos_token_id": int(self.metadata("tokenizer.ggml.bos_token_id", 1)),
            "eos_token_id": int(self.metadata("tokenizer.ggml.eos_token_id", 2)),
        }
        if self.architecture != "gemma3":
            theta = config.pop("rope_theta")
            config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        else:
            config |= {
                "sliding_window": int(self.hyperparameter("attention.sliding_window")),
                "query_pre_attn_scalar": config["head_dim"],
                "rope_local_base_freq": 10000.0,
            }
        return config

    def _heads(self, name: str) -> int:
        key = "attention.head_count" if "q_proj" in name else "attention.head_count_kv"
        return int(self.hyperparameter(key))

    def _transformers_name(self, name: str) -> str:
        stem, _, suffix = name.rpartition(".")
        if stem in _OUTER_NAMES:
            return f"{_OUTER_NAMES[stem]}.{suffix}"
        if not stem.startswith("blk."):
            return name
        _, index, part = stem.split(".", 2)
        names: Mapping[str, str] = _BLOCK_NAMES
        if self.architecture == "gemma3":
            names = _BLOCK_NAMES | _GEMMA_NAMES
        if part not in names:
            raise CheckpointError(
                f"{self.path.name} holds a tensor this reader does not know",
                expected=f"blk.N.{{{', '.join(names)}}}",
                got=name,
            )
        return f"model.layers.{index}.{names[part]}.{suffix}"


def _open_reader(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise CheckpointError("no such file", expected="a GGUF file", got=str(path)) from None
    except Exception as error:  # the reader raises whatever NumPy does on a damaged file
        raise CheckpointError(
            f"{path.name} cannot be read as GGUF ({error})", expected="an undamaged GGUF file"
        ) from error


def _dequantise(entry: gguf.ReaderTensor) -> NDArray[np.float32]:
    kind = entry.tensor_type.name
    if kind not in FLOAT_TYPES + QUANTISED_TYPES:
        raise CheckpointError(
            f"{entry.name} has a type this reader does not dequantise",
            expected=" or ".join(FLOAT_TYPES + QUANTISED_TYPES),
            got=kind,
        )
    values: NDArray[np.float32] = gguf.quants.dequantize(entry.data, entry.tensor_type)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{entry.name} is not finite", expected="finite block scales")
    # GGUF lists dimensions fastest first, so NumPy's shape is the reverse.
    return values.reshape(tuple(int(size) for size in reversed(entry.shape)))


def _undo_rotary_permutation(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """From llama.cpp's interleaved rotary rows to transformers' two halves."""
    half = values.shape[0] // heads // 2
    by_pair = values.reshape(heads, half, 2, *values.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(values.shape)

from typing import Any

import pytest

from edge_perception.core.language_model import read_shape
from edge_perception.errors import CheckpointError

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}


def test_missing_sizes_are_derived_as_transformers_does() -> None:
    shape = read_shape({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    assert (shape.kv_heads, shape.head_dim, shape.norm_eps) == (4, 16, 1e-6)


def test_text_section_of_a_vision_model_is_read_with_llamas_defaults() -> None:
    # LLaVA 1.5 says little more of its tower than this.
    shape = read_shape({
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064,
                        "max_position_embeddings": 4096},
    })  # fmt: skip
    assert (shape.layers, shape.hidden_size, shape.vocab_size) == (32, 4096, 32064)


WINDOWS = [
    (LLAMA | {"sliding_window": 8}, (None,) * 4, "Llama has none"),
    (LLAMA | {"model_type": "mistral", "sliding_window": 8}, (8,) * 4, "Mistral in all layers"),
    (LLAMA | {"model_type": "mistral", "sliding_window": None}, (None,) * 4, "Mistral 0.3"),
    (QWEN2 | {"max_window_layers": 3}, (None, None, None, 8), "Qwen2 from a layer on"),
    (QWEN2 | {"use_sliding_window": False}, (None,) * 4, "switched off"),
    (QWEN2 | {"layer_types": ["full_attention", "sliding_attention"] * 2},
     (None, 8, None, 8), "named by layer"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "windows", "reason"), WINDOWS, ids=[r[2] for r in WINDOWS])
def test_windows_by_layer(config: dict[str, Any], windows: tuple[Any, ...], reason: str) -> None:
    assert read_shape(config).windows == windows


BIASES = [
    ({}, (False, False)),
    ({"attention_bias": True}, (True, True)),
    ({"model_type": "qwen2"}, (True, False)),
    ({"model_type": "qwen3"}, (False, False)),
    ({"model_type": "mistral"}, (False, False)),
]


@pytest.mark.parametrize(("change", "biases"), BIASES)
def test_biases_by_family(change: dict[str, Any], biases: tuple[bool, bool]) -> None:
    shape = read_shape(LLAMA | change)
    assert (shape.qkv_bias, shape.output_bias) == biases


REFUSED = [
    ({"model_type": "mamba"}, "mamba"),
    ({"model_type": None}, "family"),
    ({"hidden_act": "gelu"}, "activation"),
    ({"num_key_value_heads": 3}, "divisor of 4"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"num_hidden_layers": 0}, "layers"),
    ({"head_dim": 15}, "even"),
    (QWEN2 | {"layer_types": ["full_attention"]}, "4 entries"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED)
def test_configuration_that_cannot_be_decoded_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_shape(LLAMA | change)

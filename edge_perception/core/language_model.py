"""The shape of a decoder-only language model, read from a transformers configuration.

One description serves the decoder, which builds itself from it, and the planner, which counts
bytes by it without any weights. Families outside the table are refused by name: a model that is
nearly like Llama decodes into nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_perception.errors import CheckpointError


@dataclass(frozen=True)
class _Family:
    """What a family does that its configuration does not say."""

    qkv_bias: bool | None = False
    """None: as ``attention_bias`` says, which then also adds a bias to the output projection."""
    qk_norm: bool = False
    slides: str = "never"
    """Which layers see a window only: "never", "always", or "by_layer" (max_window_layers)."""


_QWEN2 = _Family(qkv_bias=True, slides="by_layer")
_QWEN3 = _Family(qkv_bias=None, qk_norm=True, slides="by_layer")
FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(qkv_bias=None),
    "mistral": _Family(slides="always"),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    # Language towers of vision-language models, and their configurations of before transformers 5
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3_vl_text": _QWEN3,
}
"""Decoder families by transformers' ``model_type``: Llama 2 and 3, Vicuna and SmolLM2 are llama."""

# What transformers' own class assumes where a configuration is silent: LLaVA's text_config names
# its vocabulary and little else.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
}  # fmt: skip


@dataclass(frozen=True)
class LanguageModelShape:
    """Sizes of a decoder: rotary positions, RMS norms, SiLU-gated feed-forward, GQA.

    ``windows[i]`` is the number of latest positions that layer i attends to, None for all. Raises
    ``CheckpointError`` where sizes do not fit together.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    tied_head: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers", "query_heads",
                 "kv_heads", "head_dim", "max_positions")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise CheckpointError(
                    f"{name} of the model", expected="1 or more", got=getattr(self, name)
                )
        if self.query_heads % self.kv_heads:
            raise CheckpointError(
                "key-value heads do not divide the query heads",
                expected=f"a divisor of {self.query_heads}",
                got=self.kv_heads,
            )
        if self.head_dim % 2:
            raise CheckpointError("head_dim cannot be rotated", expected="even", got=self.head_dim)

    @property
    def query_width(self) -> int:
        """Channels of all query heads."""
        return self.query_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key (or value) heads."""
        return self.kv_heads * self.head_dim

    def layer_linears(self) -> dict[str, tuple[int, int, bool]]:
        """A layer's four matrices as they are run: name to (out features, in features, bias)."""
        hidden = self.hidden_size
        return {
            "qkv": (self.query_width + 2 * self.kv_width, hidden, self.qkv_bias),
            "output": (hidden, self.query_width, self.output_bias),
            "gate_up": (2 * self.intermediate_size, hidden, self.mlp_bias),
            "down": (hidden, self.intermediate_size, self.mlp_bias),
        }

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers' matrices, biases left out."""
        return self.layers * sum(rows * width for rows, width, _ in self.layer_linears().values())

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; the head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def norm_parameters(self) -> int:
        """Parameters of all norms."""
        heads = 2 * self.head_dim if self.qk_norm else 0
        return self.layers * (2 * self.hidden_size + heads) + self.hidden_size


def read_shape(config: Mapping[str, Any]) -> LanguageModelShape:
    """The language tower that a ``config.json`` describes.

    Raises:
        CheckpointError: an unknown family, a missing or senseless value, another activation.
    """
    text = _text_section(config)
    kind = str(text.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise CheckpointError(
            "a model family that this decoder does not know",
            expected=" or ".join(FAMILIES),
            got=text.get("model_type"),
            mend="Run it by transformers' own forward (vlm/foreign.py).",
        )
    values = {**_DEFAULTS.get(kind, {}), **{k: v for k, v in text.items() if v is not None}}
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError("unknown activation", expected="silu", got=activation)
    heads = _whole(values, "num_attention_heads")
    hidden = _whole(values, "hidden_size")
    layers = _whole(values, "num_hidden_layers")
    attention_bias = bool(values.get("attention_bias", False))
    by_config = family.qkv_bias is None
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return LanguageModelShape(
        family=kind,
        vocab_size=_whole(values, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_whole(values, "intermediate_size"),
        layers=layers,
        query_heads=heads,
        kv_heads=_whole(values, "num_key_value_heads", heads),
        head_dim=_whole(values, "head_dim", hidden // max(1, heads)),
        norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        max_positions=_whole(values, "max_position_embeddings"),
        tied_head=bool(tied or text.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if by_config else bool(family.qkv_bias),
        output_bias=attention_bias and by_config,
        mlp_bias=bool(values.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        windows=_windows(values, family, layers),
    )


def _text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("text_config", "llm_config"):
        section = config.get(key)
        if isinstance(section, Mapping):
            return section
    return config


def _windows(values: Mapping[str, Any], family: _Family, layers: int) -> tuple[int | None, ...]:
    window = values.get("sliding_window")
    if window is None or family.slides == "never":
        return (None,) * layers
    window = _whole(values, "sliding_window")
    if family.slides == "always":
        return (window,) * layers
    if not values.get("use_sliding_window", False):
        return (None,) * layers
    kinds = values.get("layer_types")
    if isinstance(kinds, (list, tuple)):
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = _whole(values, "max_window_layers", layers)
        slides = [index >= first for index in range(layers)]
    if len(slides) != layers:
        raise CheckpointError("layer_types", expected=f"{layers} entries", got=len(slides))
    return tuple(window if slide else None for slide in slides)


def _whole(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(
            f"config.json: {key!r}", expected="a whole number, 0 or more", got=value
        )
    return value

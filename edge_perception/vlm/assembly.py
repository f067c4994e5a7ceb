"""transformers models put together from checkpoints, float or quantised.

The class is transformers' own, named by ``config.json``; no code from a checkpoint is ever run.
The model is first built as a skeleton whose parameters take no memory, then filled tensor by
tensor, so that nothing is held twice and a caller may fill a part only (a block at a time, say).
Older checkpoints of vision-language models use other names than the classes of today: transformers'
own table of renamings is asked, so that they load, and are written, under the names they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.checkpoint import Checkpoint
from edge_perception.vlm.loaders.gguf import GgufCheckpoint
from edge_perception.vlm.packed_linear import PackedEmbedding, PackedLinear
from edge_perception.vlm.rounded_inputs import RoundedInputLinear

_CLASS_ENDINGS = ("ForCausalLM", "ForConditionalGeneration")
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class WeightSource(Protocol):
    """Where tensors come from by name: a checkpoint directory or a GGUF file."""

    config: dict[str, Any]

    def names(self) -> list[str]:
        """Every tensor's name."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, owned by the caller."""


@contextmanager
def open_weights(path: Path) -> Iterator[Checkpoint | GgufCheckpoint]:
    """A checkpoint directory or a ``.gguf`` file; raises ``CheckpointError``."""
    if path.suffix == ".gguf":
        yield GgufCheckpoint(path)
    else:
        with Checkpoint(path) as checkpoint:
            yield checkpoint


def stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The float type that a ``config.json`` names; float32 where it names none."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise CheckpointError("unknown dtype", expected=" or ".join(_DTYPES), got=name)
    return _DTYPES[str(name)]


def build_skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The model that ``config`` describes, in eval mode: parameters on "meta", buffers real.

    Raises ``CheckpointError`` where transformers has no such class of its own.
    """
    settings = {key: value for key, value in config.items() if key != "quantization_config"}
    kind = settings.pop("model_type", None)
    name = str(next(iter(settings.get("architectures") or []), None))
    found = getattr(transformers, name, None) if name.endswith(_CLASS_ENDINGS) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            "config.json names no language model that transformers has",
            expected=f"architectures with a class ending in {' or '.join(_CLASS_ENDINGS)}",
            got=settings.get("architectures"),
        )
    try:
        made = AutoConfig.for_model(kind, **settings)
        with _parameters_on_meta():
            model: nn.Module = found(made)
    except Exception as error:  # each class refuses a senseless configuration in its own way
        raise CheckpointError(f"config.json does not describe a {name} ({error})") from error
    made.dtype = dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if is_tied(model):
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model.eval()


def is_tied(model: nn.Module) -> bool:
    """Whether the head shares the embedding's weight."""
    configs = (model.config, model.config.get_text_config())
    told = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    return told and model.get_output_embeddings() is not None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters without memory; buffers (rotary tables) are real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def model_names(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """For each stored tensor's name the model's; raises where more than a name would change."""
    transforms = get_model_conversion_mapping(model)
    renamings = [part for part in transforms if isinstance(part, WeightRenaming)]
    converters = [part for part in transforms if not isinstance(part, WeightRenaming)]
    own = model.state_dict()
    names = {}
    for name in stored:
        prefix = model.base_model_prefix
        renamed, converted = rename_source_key(name, renamings, converters, prefix, own)
        if converted is not None:
            raise CheckpointError(
                f"tensor {name!r} is stored in a form that is converted on loading",
                expected="weights as the model's class holds them",
                mend="Load and save the checkpoint once with this transformers.",
            )
        names[name] = renamed
    return names


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` in the place of a parameter or buffer; it must have the same shape."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    kind = module._parameters if leaf in module._parameters else module._buffers
    there = kind[leaf]
    if there is None or there.shape != value.shape:
        raise CheckpointError(
            f"tensor {name!r} does not fit the model",
            expected="nothing" if there is None else str(list(there.shape)),
            got=list(value.shape),
        )
    is_parameter = kind is module._parameters
    kind[leaf] = nn.Parameter(value, requires_grad=False) if is_parameter else value


def fill(
    model: nn.Module,
    source: WeightSource,
    names: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Read the tensors ``names`` (stored name to model's name) into the model."""
    own = model.state_dict()
    for stored, name in names.items():
        if name not in own:
            continue  # rotary tables and the like, which older checkpoints stored
        value = source.tensor(stored)
        if value.is_floating_point():
            value = value.to(dtype)
        set_parameter(model, name, value.to(device))


def load_model(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """A checkpoint as a transformers model ready to run, quantised layers as ``PackedLinear``.

    Raises ``CheckpointError`` for whatever is missing, damaged or of the wrong shape.
    """
    device = torch.device(device)
    with open_weights(path) as source:
        dtype = dtype or stored_dtype(source.config)
        model = build_skeleton(source.config, dtype)
        packed = source.packed_layers() if isinstance(source, Checkpoint) else []
        inside = tuple(f"{layer}." for layer in packed)
        plain = [name for name in source.names() if not name.startswith(inside or ("\0",))]
        fill(model, source, model_names(model, plain), device=device, dtype=dtype)
        for layer, name in model_names(model, [f"{layer}.weight" for layer in packed]).items():
            assert isinstance(source, Checkpoint)
            linear = _packed_linear(source, layer.removesuffix(".weight"), device)
            _put_packed(model, name.removesuffix(".weight"), linear)
    _tie(model)
    _expect_complete(model, path)
    return model.to(device)  # buffers


def _packed_linear(source: Checkpoint, layer: str, device: torch.device) -> PackedLinear:
    """A quantised layer; one whose checkpoint says W8A8 rounds its inputs as well."""
    weight = source.packed(layer).to(device)
    if source.scheme is not None and source.scheme.rounds_inputs:
        return RoundedInputLinear(weight, source.input_scale(layer))
    return PackedLinear(weight)


def _put_packed(model: nn.Module, name: str, linear: PackedLinear) -> None:
    """Replace a linear layer or an embedding by its quantised form."""
    weight = linear.packed
    parent, _, leaf = name.rpartition(".")
    try:
        there = model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(f"quantised layer {name!r} is none of the model's") from None
    shape = list(getattr(there, "weight", torch.empty(0)).shape)
    if shape != [weight.out_features, weight.in_features]:
        raise CheckpointError(
            f"quantised layer {name!r} does not fit the model",
            expected=str(shape),
            got=[weight.out_features, weight.in_features],
        )
    dtype = there.get_parameter("weight").dtype
    if isinstance(there, nn.Embedding):
        factor = float(getattr(there, "embed_scale", 1.0))
        linear = PackedEmbedding(weight, dtype, factor)
    setattr(model.get_submodule(parent), leaf, linear)


def _tie(model: nn.Module) -> None:
    """Let the head share the embedding where the configuration says so."""
    head = getattr(model, "lm_head", None)
    if head is None or isinstance(head, PackedLinear) or not head.weight.is_meta:
        return
    embedding = model.get_input_embeddings()
    if isinstance(embedding, PackedEmbedding):
        model.lm_head = PackedLinear(embedding.packed)
    elif is_tied(model):
        head.weight = embedding.weight


def _expect_complete(model: nn.Module, path: Path) -> None:
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise CheckpointError(
            f"{path.name} lacks {len(missing)} of the model's weights",
            expected=", ".join(missing[:3]),
            mend="Use a complete checkpoint of the class that config.json names.",
        )

"""What a checkpoint's configuration says about its quantisation.

Three dialects: ``quantization_config`` with ``quant_method`` awq or gptq, compressed-tensors'
``config_groups``, and the older ``quant_config.json`` of AWQ repositories.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_perception.errors import CheckpointError

LAYOUTS = ("gemm", "gemv", "gemv_fast", "marlin", "gptq", "pack-quantized", "int-quantized")
"""Weight layouts that the loader reads; llm-awq v2 is read as "gemv_fast"."""


@dataclass(frozen=True)
class Scheme:
    """``bits`` of a code, ``group_size`` (-1: per channel), layout and, for GPTQ, its version.

    ``exceptions`` are (target, bits) of layers stored in another width; a target is a layer's name
    or, after "re:", a regular expression that matches at its start. ``rounds_inputs``: the
    activations take 8 bits too (W8A8).
    """

    layout: str
    bits: int
    group_size: int
    symmetric: bool = False
    version: int = 1
    ignored: tuple[str, ...] = ()
    exceptions: tuple[tuple[str, int], ...] = ()
    rounds_inputs: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise CheckpointError(
                "unknown weight layout", expected=" or ".join(LAYOUTS), got=self.layout
            )
        if self.bits not in (3, 4, 8):
            raise CheckpointError("unknown code width", expected="3, 4 or 8 bits", got=self.bits)
        if self.group_size != -1 and self.group_size <= 0:
            raise CheckpointError(
                "group size out of range", expected="-1 or a positive number", got=self.group_size
            )

    def bits_for(self, layer: str) -> int:
        """The code width of the layer of this name."""
        for target, bits in self.exceptions:
            if layer == target or (target[:3] == "re:" and re.match(target[3:], layer)):
                return bits
        return self.bits

    def group_size_for(self, columns: int) -> int:
        """The group size of a layer ``columns`` wide."""
        return columns if self.group_size == -1 else self.group_size


def read_scheme(
    config: Mapping[str, Any], old_config: Mapping[str, Any] | None = None
) -> Scheme | None:
    """The scheme a ``config.json`` (or an old ``quant_config.json``) describes, None for float."""
    section = config.get("quantization_config")
    if section is None:
        return None if old_config is None else _from_old_awq(old_config)
    if not isinstance(section, Mapping):
        raise CheckpointError("quantization_config is malformed", expected="a JSON object")
    method = section.get("quant_method")
    if method == "awq":
        return _from_awq(section)
    if method == "gptq":
        return _from_gptq(section)
    if method == "compressed-tensors":
        return _from_compressed_tensors(section)
    raise CheckpointError(
        "unknown quant_method", expected="awq, gptq or compressed-tensors", got=method
    )


def _integer(section: Mapping[str, Any], key: str) -> int:
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError("quantisation settings are malformed", expected=f"an integer {key!r}")
    return value


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _from_awq(section: Mapping[str, Any]) -> Scheme:
    layout = str(section.get("version", "gemm")).lower()
    return Scheme(
        layout="gemv_fast" if layout == "llm-awq" else layout,
        bits=_integer(section, "bits"),
        group_size=_integer(section, "group_size"),
        symmetric=not section.get("zero_point", True),
        ignored=_names(section.get("modules_to_not_convert")),
    )


def _from_old_awq(section: Mapping[str, Any]) -> Scheme:
    return Scheme(
        layout=str(section.get("version", "GEMM")).lower(),
        bits=_integer(section, "w_bit"),
        group_size=_integer(section, "q_group_size"),
        symmetric=not section.get("zero_point", True),
    )


def _from_gptq(section: Mapping[str, Any]) -> Scheme:
    return Scheme(
        layout="gptq",
        bits=_integer(section, "bits"),
        group_size=_integer(section, "group_size"),
        symmetric=bool(section.get("sym", True)),
        version=2 if section.get("checkpoint_format") == "gptq_v2" else 1,
    )


def _from_compressed_tensors(section: Mapping[str, Any]) -> Scheme:
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError(
            "compressed-tensors settings not supported", expected="config_groups with a group"
        )
    parts = [_weights_of(group) for group in groups.values()]
    common = [part for part in parts if "Linear" in part[0]] or parts[:1]
    if len(common) != 1:
        raise CheckpointError(
            "compressed-tensors settings not supported", expected="one group for all of Linear"
        )
    weights = common[0][1]
    others = [part for part in parts if part is not common[0]]
    per_channel = weights.get("strategy") == "channel" or weights.get("group_size") is None
    formats = [group.get("format") for group in groups.values()]
    return Scheme(
        layout=str(next(filter(None, formats), None) or section.get("format")),
        bits=_integer(weights, "num_bits"),
        group_size=-1 if per_channel else _integer(weights, "group_size"),
        symmetric=bool(weights.get("symmetric", True)),
        ignored=_names(section.get("ignore")),
        exceptions=tuple((t, _integer(w, "num_bits")) for targets, w in others for t in targets),
        rounds_inputs=any(map(_rounds_inputs, groups.values())),
    )


def _weights_of(group: object) -> tuple[Sequence[str], Mapping[str, Any]]:
    """A config group's targets and its weights' settings."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
        raise CheckpointError(
            "compressed-tensors settings not supported", expected="integer weights", got=weights
        )
    assert isinstance(group, Mapping)
    return _names(group.get("targets")), weights


def _rounds_inputs(group: Mapping[str, Any]) -> bool:
    """Whether a config group's activations are quantised; refuses what is not computed here."""
    inputs = group.get("input_activations")
    if inputs is None:
        return False
    token, tensor = ("token", True), ("tensor", False)
    known = isinstance(inputs, Mapping) and (
        inputs.get("num_bits") == 8
        and inputs.get("type", "int") == "int"
        and inputs.get("symmetric", True)
        and (inputs.get("strategy"), inputs.get("dynamic", False)) in (token, tensor)
        and _weights_of(group)[1].get("num_bits") == 8
    )
    if not known:
        raise CheckpointError(
            "quantised activations not supported",
            expected="W8A8: 8-bit integers, symmetric, a scale a token or a static one",
            got=inputs,
        )
    return True

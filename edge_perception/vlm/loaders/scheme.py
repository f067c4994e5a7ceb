"""What a checkpoint's configuration says about its quantisation.

Three dialects: ``quantization_config`` with ``quant_method`` awq or gptq, compressed-tensors'
``config_groups``, and the older ``quant_config.json`` of AWQ repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_perception.errors import CheckpointError

LAYOUTS = ("gemm", "gemv", "gemv_fast", "marlin", "gptq", "pack-quantized")
"""Weight layouts that the loader reads; llm-awq v2 is read as "gemv_fast"."""


@dataclass(frozen=True)
class Scheme:
    """``bits`` of a code, ``group_size`` (-1: per channel), layout and, for GPTQ, its version."""

    layout: str
    bits: int
    group_size: int
    symmetric: bool = False
    version: int = 1
    ignored: tuple[str, ...] = ()

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
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise CheckpointError(
            "compressed-tensors settings not supported", expected="exactly one config group"
        )
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
        raise CheckpointError(
            "compressed-tensors settings not supported", expected="integer weights", got=weights
        )
    per_channel = weights.get("strategy") == "channel" or weights.get("group_size") is None
    return Scheme(
        layout=str(group.get("format") or section.get("format")),
        bits=_integer(weights, "num_bits"),
        group_size=-1 if per_channel else _integer(weights, "group_size"),
        symmetric=bool(weights.get("symmetric", True)),
        ignored=_names(section.get("ignore")),
    )

"""Device profiles, and the shares of their peaks that predictions assume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from edge_perception.embedded import carried_file
from edge_perception.errors import ConfigError

GIB = 2**30

KERNEL_GAP_US = 1.3
"""What a kernel costs beyond its work inside a CUDA graph (published by NVIDIA's users)."""


@dataclass(frozen=True)
class DeviceProfile:
    """One GPU or module, as its data sheet has it; see ``config/devices/``.

    Throughputs are dense and of the GPU alone. With ``unified_memory`` the CPU's programs live in
    the same memory: ``carveout_gib`` (firmware) and ``system_reserve_gib`` (system, CUDA context)
    are assumptions, not data-sheet figures. Raises ``ConfigError`` for figures that make no sense.
    """

    name: str
    title: str
    compute_capability: str
    unified_memory: bool
    memory_gib: float
    carveout_gib: float
    system_reserve_gib: float
    bandwidth_gb_s: float
    tensor_cores: int
    gpu_ghz: float
    int8_dense_tops: float
    fp16_dense_tflops: float
    advertised_sparse_tops: float
    power_w: tuple[float, float]
    power_modes: tuple[str, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        positive = ("memory_gib", "bandwidth_gb_s", "int8_dense_tops", "fp16_dense_tflops")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"device {self.name!r}: {name}", expected="above 0", got=getattr(self, name)
                )
        if not 0 <= self.carveout_gib + self.system_reserve_gib < self.memory_gib:
            raise ConfigError(
                f"device {self.name!r}: reserves",
                expected=f"0 to less than the memory of {self.memory_gib} GiB",
                got=(self.carveout_gib, self.system_reserve_gib),
            )
        if not self.sources:
            raise ConfigError(f"device {self.name!r} names no source", expected="sources")


@dataclass(frozen=True)
class Share:
    """A share of a peak, 0 to 1, and where it comes from."""

    share: float
    source: str

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigError("efficiency", expected="a share above 0, up to 1", got=self.share)


@dataclass(frozen=True)
class Efficiency:
    """What is reached of peak bandwidth in decode and of peak throughput in prefill.

    ``kernel_gap_us`` is what each kernel of a step costs beyond that.
    """

    decode: Share
    prefill: Share
    kernel_gap_us: float = KERNEL_GAP_US


def device_names() -> list[str]:
    """All devices that the package has a profile of."""
    folder = carried_file("config/devices/orin-agx-64.yaml").parent
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_device(name: str) -> DeviceProfile:
    """The profile of a device by its name, or from a ``.yaml`` file; raises ``ConfigError``."""
    if name.endswith(".yaml"):
        return parse_device(_read_yaml(Path(name)))
    if name not in device_names():
        raise ConfigError("unknown device", expected=" or ".join(device_names()), got=name)
    return parse_device(_read_yaml(carried_file(f"config/devices/{name}.yaml")))


def parse_device(values: Mapping[str, Any]) -> DeviceProfile:
    """A profile from its file's mapping; raises ``ConfigError`` for unknown or missing keys."""
    known = {field.name: str(field.type) for field in fields(DeviceProfile)}
    if set(values) != set(known):
        raise ConfigError(
            "device profile has other keys than it should",
            expected=", ".join(known),
            got=sorted(set(values) ^ set(known)),
        )
    try:
        converted = {name: _convert(kind, values[name]) for name, kind in known.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"device profile is malformed ({error})") from error
    return DeviceProfile(**converted)


def _convert(kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        return tuple(value)
    if kind == "bool" and not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return {"str": str, "int": int, "float": float, "bool": bool}[kind](value)


def load_efficiency(device: DeviceProfile, precision: str) -> Efficiency:
    """The published shares for a device's architecture and weights of ``precision``."""
    table = _read_yaml(carried_file("config/planner/efficiency.yaml"))
    row = table.get(device.compute_capability)
    if row is None:
        raise ConfigError(
            f"no published efficiency for compute capability {device.compute_capability}",
            expected=" or ".join(map(str, table)),
            mend="Give --decode-efficiency and --prefill-efficiency.",
        )
    if precision not in row["decode"]:
        raise ConfigError(
            f"no published efficiency for {precision} weights on {device.compute_capability}",
            expected=" or ".join(row["decode"]),
            mend="Give --decode-efficiency and --prefill-efficiency.",
        )
    decode, prefill = Share(**row["decode"][precision]), Share(**row["prefill"])
    return Efficiency(decode, prefill, float(row.get("kernel_gap_us", KERNEL_GAP_US)))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path.name} is malformed", expected="a mapping")
    return value

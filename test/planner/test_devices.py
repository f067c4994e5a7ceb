from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_perception.errors import ConfigError
from edge_perception.planner.devices import (
    Share,
    device_names,
    load_device,
    load_efficiency,
    parse_device,
)

PROFILES = Path(__file__).resolve().parents[2] / "config" / "devices"
ORIN = [name for name in device_names() if name.startswith("orin")]

# Memory in GiB, GB/s and advertised sparse TOPS, from NVIDIA's table of Jetson modules.
MODULES = {
    "orin-agx-devkit": (64, 204.8, 275),
    "orin-agx-64": (64, 204.8, 275),
    "orin-agx-industrial": (64, 204.8, 248),
    "orin-agx-32": (32, 204.8, 200),
    "orin-nx-16": (16, 102.4, 100),
    "orin-nx-8": (8, 102.4, 70),
    "orin-nano-super": (8, 102.4, 67),
    "orin-nano-8": (8, 68.3, 40),
    "orin-nano-4": (4, 34.1, 20),
}


def test_every_module_of_the_orin_family_has_a_profile() -> None:
    assert set(ORIN) == set(MODULES)
    assert {"rtx3090", "h100"} <= set(device_names())


@pytest.mark.parametrize("name", MODULES)
def test_profile_has_the_figures_of_the_modules_table(name: str) -> None:
    device = load_device(name)
    figures = (device.memory_gib, device.bandwidth_gb_s, device.advertised_sparse_tops)
    assert figures == MODULES[name]
    assert device.unified_memory
    assert device.name == name


@pytest.mark.parametrize("name", ORIN)
def test_throughput_is_what_tensor_cores_and_clock_make(name: str) -> None:
    device = load_device(name)
    made = device.tensor_cores * 1024 * device.gpu_ghz / 1000
    assert device.int8_dense_tops == pytest.approx(made, abs=0.1)
    assert device.fp16_dense_tflops == pytest.approx(made / 2, abs=0.1)
    assert 2 * made <= 1.03 * device.advertised_sparse_tops


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_device_has_a_sourced_efficiency(name: str, precision: str) -> None:
    efficiency = load_efficiency(load_device(name), precision)
    assert 0.2 < efficiency.decode.share < 0.8
    assert efficiency.decode.source
    assert efficiency.prefill.source


def values_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((PROFILES / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bandwidth_gb_s": 0}, "bandwidth_gb_s"),
        ({"memory_gib": "much"}, "malformed"),
        ({"unified_memory": 1}, "neither true nor false"),
        ({"system_reserve_gib": 64}, "reserves"),
        ({"sources": []}, "names no source"),
        ({"colour": "green"}, "other keys"),
    ],
)
def test_profile_that_makes_no_sense_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_device(values_of("orin-agx-64") | change)


def test_profile_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values_of("orin-nx-8") | {"memory_gib": 12}))
    assert load_device(str(path)).memory_gib == 12
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="a mapping"):
        load_device(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_device(str(tmp_path / "none.yaml"))


def test_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="orin-agx-64"):
        load_device("orin-agx-128")


def test_precision_without_a_published_share_is_told() -> None:
    with pytest.raises(ConfigError, match=r"int3 weights on 8\.7.*--decode-efficiency"):
        load_efficiency(load_device("orin-nx-16"), "int3")


def test_share_is_a_share() -> None:
    with pytest.raises(ConfigError, match="share above 0"):
        Share(65, "a percentage")

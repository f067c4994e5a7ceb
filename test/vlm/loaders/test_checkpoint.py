import json
import struct
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders import layouts
from edge_perception.vlm.loaders.checkpoint import Checkpoint
from edge_perception.vlm.loaders.layouts import Codes

ROWS, COLUMNS, GROUP = 64, 128, 64


def codes(bits: int = 4, zero: int | None = None) -> Codes:
    generator = torch.Generator().manual_seed(bits)
    shape = (ROWS, COLUMNS // GROUP)
    values = torch.randint(0, 2**bits, (ROWS, COLUMNS), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(1, 2**bits, shape, dtype=torch.uint8, generator=generator)
    if zero is not None:
        zeros = torch.full(shape, zero, dtype=torch.uint8)
    return Codes(values, (torch.rand(shape, generator=generator) + 0.1).half(), zeros)


def awq(version: str) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": version}


def gptq(version: int) -> dict[str, Any]:
    form = "gptq_v2" if version == 2 else "gptq"
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": form}


def compressed(bits: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


PUBLISHED = {
    "gemm": (awq("gemm"), codes(), layouts.write_awq_gemm),
    "gemv": (awq("gemv"), codes(), layouts.write_awq_gemv),
    "gemv_fast": (awq("gemv_fast"), codes(), layouts.write_awq_fast),
    "llm-awq": (awq("llm-awq"), codes(), lambda c: layouts.write_awq_fast(c, "scaled_zeros")),
    "marlin": (awq("marlin"), codes(zero=8), layouts.write_awq_marlin),
    "gptq": (gptq(1), codes(), lambda c: layouts.write_gptq(c, bits=4, version=1)),
    "gptq v2": (gptq(2), codes(), lambda c: layouts.write_gptq(c, bits=4, version=2)),
    **{
        f"compressed-tensors {bits} bits{' symmetric' if symmetric else ''}": (
            compressed(bits, symmetric),
            codes(bits, 2 ** (bits - 1) if symmetric else None),
            lambda c, bits=bits, symmetric=symmetric: layouts.write_compressed(
                c, bits=bits, symmetric=symmetric
            ),
        )
        for bits in (3, 4, 8)
        for symmetric in (False, True)
    },
}


def write(folder: Path, section: dict[str, Any], tensors: dict[str, Any]) -> Path:
    named = {f"block.layer.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": section}))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_checkpoint_of_every_layout_is_read_to_the_same_weight(name: str, tmp_path: Path) -> None:
    section, want, writer = PUBLISHED[name]
    with Checkpoint(write(tmp_path, section, writer(want))) as checkpoint:
        assert checkpoint.packed_layers() == ["block.layer"]
        got = checkpoint.packed("block.layer")
    scales = want.scales.float().repeat_interleave(GROUP, dim=1)
    zeros = want.zeros.float().repeat_interleave(GROUP, dim=1)
    assert torch.equal(got.dequantize(), (want.codes.float() - zeros) * scales)


def test_three_bit_codes_of_older_releases_are_read_by_their_width(tmp_path: Path) -> None:
    want = codes(3, 4)
    tensors = layouts.write_compressed(want, bits=3, symmetric=True)
    tensors["weight_packed"] = layouts.pack_words(want.codes, 3)  # ten codes a word
    with Checkpoint(write(tmp_path, compressed(3, True), tensors)) as checkpoint:
        assert torch.equal(checkpoint.codes("block.layer").codes, want.codes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    section, good, writer = PUBLISHED["gemm"]
    tensors = writer(good)
    tensors["scales"][0, 3] = bad
    with (
        Checkpoint(write(tmp_path, section, tensors)) as checkpoint,
        pytest.raises(CheckpointError, match=r"'block.layer'.*not finite"),
    ):
        checkpoint.packed("block.layer")


def test_layer_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    section, good, writer = PUBLISHED["gemm"]
    tensors = writer(good)
    del tensors["qzeros"]
    with (
        Checkpoint(write(tmp_path, section, tensors)) as checkpoint,
        pytest.raises(CheckpointError, match=r"block\.layer\.qzeros"),
    ):
        checkpoint.packed("block.layer")


def test_packed_tensors_without_a_configuration_are_refused(tmp_path: Path) -> None:
    _, good, writer = PUBLISHED["gemm"]
    write(tmp_path, {}, writer(good))
    (tmp_path / "config.json").write_text("{}")
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match="names no quantisation"),
    ):
        checkpoint.packed("block.layer")


def test_reading_after_close_is_refused(tmp_path: Path) -> None:
    section, good, writer = PUBLISHED["gemm"]
    checkpoint = Checkpoint(write(tmp_path, section, writer(good)))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.tensor("block.layer.scales")


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    section, good, writer = PUBLISHED["gemm"]
    with Checkpoint(write(tmp_path, section, writer(good))) as checkpoint:
        scales = checkpoint.tensor("block.layer.scales")
    assert torch.equal(scales, good.scales.T)


def container(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def described(begin: int, end: int, *, shape: str = "[4]", dtype: str = "U8") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


HOSTILE_FILES = {
    "empty": b"",
    "cut short": b"\x08\x00\x00",
    "header longer than the file": container(b"{}", length=2**20),
    "header of exabytes": container(b"{}", length=2**62),
    "no JSON": container(b"\xff\xfe\x00oops"),
    "a list": container(b"[]"),
    "deeply nested": container(b"[" * 5000 + b"]" * 5000),
    "offsets past the end": container(f'{{"a":{described(0, 64, shape="[64]")}}}'.encode(), b"123"),
    "offsets backwards": container(f'{{"a":{described(4, 0)}}}'.encode(), b"1234"),
    "overlapping tensors": container(
        f'{{"a":{described(0, 4)},"b":{described(2, 6)}}}'.encode(), b"123456"
    ),
    "a hole between tensors": container(
        f'{{"a":{described(0, 4)},"b":{described(6, 10)}}}'.encode(), b"1234567890"
    ),
    "shape larger than its bytes": container(
        f'{{"a":{described(0, 4, shape="[1000000]")}}}'.encode(), b"1234"
    ),
    "shape that overflows": container(
        f'{{"a":{described(0, 4, shape="[4294967296,4294967296,4]")}}}'.encode(), b"1234"
    ),
    "negative shape": container(f'{{"a":{described(0, 4, shape="[-4]")}}}'.encode(), b"1234"),
    "unknown type": container(f'{{"a":{described(0, 4, dtype="X9")}}}'.encode(), b"1234"),
    "bytes that no tensor owns": container(f'{{"a":{described(0, 4)}}}'.encode(), b"12345678"),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n",
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_damaged_or_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(HOSTILE_FILES[name])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no sound"):
        Checkpoint(tmp_path)


HOSTILE_INDEXES = [
    ({"weight_map": {"a": "../outside.safetensors"}}, "outside", "a path upwards"),
    ({"weight_map": {"a": "/etc/passwd"}}, "outside", "an absolute path"),
    ({"weight_map": {"a": "model.bin"}}, "no safetensors", "a pickle"),
    ({"weight_map": {"a": "gone.safetensors"}}, "missing", "a file that is not there"),
    ({"weight_map": {"b": "part.safetensors"}}, "its file lacks", "a tensor that is not there"),
    ({"weight_map": ["a"]}, "malformed", "a list"),
    ({}, "malformed", "no map"),
]


@pytest.mark.parametrize(
    ("index", "match", "reason"), HOSTILE_INDEXES, ids=[row[2] for row in HOSTILE_INDEXES]
)
def test_index_that_lies_is_refused(index, match, reason, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "part.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "cannot be read"), ("[]", "malformed"), ("[" * 100_000, "cannot be read")],
    ids=["cut short", "a list", "deeply nested"],
)
def test_configuration_that_is_no_object_is_refused(text, match, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{match}"):
        Checkpoint(tmp_path)


def test_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint(tmp_path)

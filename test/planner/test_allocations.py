"""What the planner counts, against what torch allocates."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import DECODER_FAMILIES, pack_model, tiny_model

from edge_perception.planner.memory import (
    SCHEMES,
    bytes_read_per_token,
    count_weights,
    kv_bytes_per_token,
)
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.tower import take_tower

FP16 = SCHEMES["fp16"]


@pytest.mark.parametrize("row", DECODER_FAMILIES)
def test_float_decoder_takes_the_bytes_planned(row: str) -> None:
    weights = take_tower(tiny_model(row).half())
    assert count_weights(weights.shape, FP16, FP16).total == weights.nbytes
    assert bytes_read_per_token(weights.shape, FP16, FP16) == weights.bytes_per_token


@pytest.mark.parametrize("row", ["Llama 3, SmolLM2", "Qwen2, Qwen2.5", "Qwen3"])
def test_packed_decoder_takes_the_bytes_planned(row: str) -> None:
    weights = take_tower(pack_model(tiny_model(row).half()))
    planned = count_weights(weights.shape, SCHEMES["int4-g32"], FP16)
    assert planned.total == weights.nbytes


@pytest.mark.parametrize(("planned", "kv_format"), [("fp16", "float"), ("int8", "int8")])
def test_cache_takes_the_bytes_planned(planned: str, kv_format: str) -> None:
    decoder = Decoder(take_tower(tiny_model("Qwen3").half()), capacity=50, kv_format=kv_format)
    assert 50 * kv_bytes_per_token(decoder.weights.shape, planned) == decoder.cache.nbytes


@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.bits < 16])
@pytest.mark.parametrize(("rows", "columns"), [(48, 128), (6144, 4096)])
def test_packed_matrix_takes_the_bytes_planned(scheme, rows: int, columns: int) -> None:
    groups = columns // scheme.group_size
    packed = PackedWeight.from_codes(
        torch.zeros(rows, columns, dtype=torch.uint8),
        torch.ones(rows, groups, dtype=torch.float16),
        torch.zeros(rows, groups),
        bits=scheme.bits,
        bias=torch.zeros(rows, dtype=torch.float16),
    )
    assert scheme.matrix_bytes(rows, columns, bias=True) == packed.nbytes

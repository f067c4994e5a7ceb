import pytest

from edge_perception.core.language_model import LanguageModelShape
from edge_perception.errors import ConfigError
from edge_perception.planner.memory import (
    SCHEMES,
    WeightScheme,
    bytes_read_per_token,
    count_weights,
    kv_bytes_per_token,
    kv_bytes_read,
    scheme_named,
)
from edge_perception.planner.models import load_planned_model, model_names

FP16, INT4 = SCHEMES["fp16"], SCHEMES["int4-g128"]


def shape_of(name: str) -> LanguageModelShape:
    return load_planned_model(name).shape


# Published parameter counts, in all.
PARAMETERS = [
    ("llama-3-8b", 8_030_261_248),
    ("llama-2-7b", 6_738_415_616),
    ("llama-2-13b", 13_015_864_320),
    ("llama-2-70b", 68_976_648_192),
    ("mistral-7b", 7_241_732_096),
    ("smollm2-135m", 134_515_008),
    ("qwen2-1.5b", 1_543_714_304),
    ("qwen2.5-7b", 7_615_616_512),
    ("qwen3-8b", 8_190_735_360),
]


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_fp16_bytes_are_two_for_each_published_parameter(name: str, parameters: int) -> None:
    assert count_weights(shape_of(name), FP16, FP16).total == 2 * parameters


# Bytes a token of Llama-3-8B, from bits a weight: 16; 4.1875 in our layout at group 128.
GIGABYTES = [
    ("fp16", "fp16", 15.01),
    ("int4-g128", "fp16", (6.979321856 * 4.1875 / 8) + 1.0507),
    ("int4-g128", "int4-g128", (6.979321856 + 0.525336576) * 4.1875 / 8),
]


@pytest.mark.parametrize(("weights", "head", "gigabytes"), GIGABYTES)
def test_bytes_a_token_of_llama_3_8b(weights: str, head: str, gigabytes: float) -> None:
    read = bytes_read_per_token(shape_of("llama-3-8b"), SCHEMES[weights], SCHEMES[head])
    assert read / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_zero_bytes_cost_less_than_a_hundredth_over_packed_zeros() -> None:
    # With zeros packed into nibbles a weight takes 4.156 bits, and a token 4.68 GB.
    read = bytes_read_per_token(shape_of("llama-3-8b"), INT4, FP16)
    assert 4.68e9 < read < 1.01 * 4.68e9


@pytest.mark.parametrize(("name", "share"), [("nvila-2b", 0.41), ("qwen3-1.7b", 0.46)])
def test_head_dominates_small_models(name: str, share: float) -> None:
    shape = shape_of(name)
    head = FP16.matrix_bytes(shape.vocab_size, shape.hidden_size)
    assert head / bytes_read_per_token(shape, INT4, FP16) == pytest.approx(share, abs=0.02)


def test_cache_of_llama_3_8b_takes_128_kib_a_token() -> None:
    assert kv_bytes_per_token(shape_of("llama-3-8b"), "fp16") == 128 * 1024
    assert kv_bytes_per_token(shape_of("llama-3-8b"), "int8") == 64 * 1024 + 2 * 32 * 8 * 4


def test_window_limits_what_is_read_not_what_is_held() -> None:
    shape = shape_of("mistral-7b")
    a_token = kv_bytes_per_token(shape, "fp16")
    assert kv_bytes_read(shape, "fp16", 1000) == 1000 * a_token
    assert kv_bytes_read(shape, "fp16", 20000) == 4096 * a_token


def test_group_that_does_not_divide_a_width_is_refused_with_another() -> None:
    with pytest.raises(ConfigError, match=r"576 wide.*int4-g64"):
        count_weights(shape_of("smollm2-135m"), INT4, FP16)
    assert count_weights(shape_of("smollm2-135m"), SCHEMES["int4-g64"], FP16).total < 1.2e8


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown weights"):
        scheme_named("int2-g128")
    with pytest.raises(ConfigError, match="unknown KV format"):
        kv_bytes_per_token(shape_of("llama-3-8b"), "fp8")


@pytest.mark.parametrize("name", model_names())
def test_every_model_known_by_name_can_be_counted(name: str) -> None:
    smallest = WeightScheme("int4-g32", 4, 32)
    assert count_weights(shape_of(name), smallest, FP16).layers > 0

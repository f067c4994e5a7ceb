import pytest

pytest.importorskip("torch")

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.scheme import Scheme, read_scheme

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}


def compressed(*groups: dict[str, object], **other: object) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        **other,
    }


DIALECTS = [
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
        Scheme("gemm", 4, 128),
        "AutoAWQ without a version is gemm",
    ),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMV_FAST"},
        Scheme("gemv_fast", 4, 64),
        "versions are spelt in either case",
    ),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "llm-awq"},
        Scheme("gemv_fast", 4, 128),
        "llm-awq v2 is laid out as gemv_fast",
    ),
    (
        {
            "quant_method": "awq", "bits": 4, "group_size": 128, "version": "marlin",
            "zero_point": False, "modules_to_not_convert": ["visual"],
        },
        Scheme("marlin", 4, 128, symmetric=True, ignored=("visual",)),
        "marlin is symmetric",
    ),
    (
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": False},
        Scheme("gptq", 8, -1),
        "GPTQ's first version stores zeros less one",
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        Scheme("gptq", 4, 32, symmetric=True, version=2),
        "GPTQ's second does not",
    ),
    (
        compressed({"targets": ["Linear"], "weights": INT4}, ignore=["lm_head"]),
        Scheme("pack-quantized", 4, 64, symmetric=True, ignored=("lm_head",)),
        "compressed-tensors",
    ),
    (
        compressed(
            {"targets": ["Linear"], "weights": INT4 | {"strategy": "channel", "group_size": None}}
        ),
        Scheme("pack-quantized", 4, -1, symmetric=True),
        "per channel",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("section", "want", "reason"), DIALECTS, ids=[d[2] for d in DIALECTS])
def test_scheme_reads_every_dialect(section, want, reason) -> None:
    assert read_scheme({"quantization_config": section}) == want


def test_scheme_reads_the_older_awq_file() -> None:
    old = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    assert read_scheme({}, old) == Scheme("gemm", 4, 128)


def test_scheme_of_a_float_model_is_none() -> None:
    assert read_scheme({"model_type": "llama"}) is None


def test_widths_that_differ_are_found_by_target() -> None:
    eight = {"weights": INT4 | {"num_bits": 8}}
    section = compressed(
        eight | {"targets": ["lm_head", "re:.*embed_tokens"]},
        {"targets": ["Linear"], "weights": INT4},
    )
    scheme = read_scheme({"quantization_config": section})
    assert scheme is not None
    assert [
        scheme.bits_for(name)
        for name in ("lm_head", "model.embed_tokens", "model.layers.0.mlp.up_proj")
    ] == [8, 8, 4]


SENSELESS = [
    ([], "malformed", "no object"),
    ({"quant_method": "bitsandbytes"}, "unknown quant_method", "another library"),
    ({"quant_method": "awq", "bits": "4", "group_size": 1}, "integer 'bits'", "text for a number"),
    ({"quant_method": "awq", "bits": True, "group_size": 1}, "integer 'bits'", "a truth value"),
    ({"quant_method": "awq", "bits": 5, "group_size": 128}, "code width", "five bits"),
    ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group size", "groups of none"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "x"}, "layout", "layout"),
    (compressed(), "config_groups", "no group"),
    (compressed({"targets": ["Linear"]}), "integer weights", "no weights"),
    (
        compressed({"targets": ["Linear"], "weights": INT4 | {"type": "float"}}),
        "integer weights",
        "floats",
    ),
    (
        compressed(
            {"targets": ["Linear"], "weights": INT4}, {"targets": ["Linear"], "weights": INT4}
        ),
        "one group",
        "two for all",
    ),
]


@pytest.mark.parametrize(("section", "match", "reason"), SENSELESS, ids=[s[2] for s in SENSELESS])
def test_senseless_settings_are_refused(section, match, reason) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_scheme({"quantization_config": section})

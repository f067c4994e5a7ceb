import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.decoder.compiled_peer import CompiledSteps
from benchmarks.decoder.peers import error_against_ours, matrices_of, transformers_model
from benchmarks.decoder.random_models import RandomModel, read_model
from benchmarks.decoder.results import BEST, SHAPES, TABLE, Results, main
from edge_perception.core.language_model import read_shape
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.language_model import Prompt

TINY = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA = TINY | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN2 = TINY | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
}  # fmt: skip
TOKENS = torch.arange(20)


@pytest.mark.parametrize("config", [LLAMA, QWEN2])
@torch.inference_mode()
def test_peer_with_the_same_random_weights_answers_the_same(config) -> None:
    weights = RandomModel(config, 16, 16, device="cpu").weights()
    model = transformers_model(config, weights, torch.float16)
    assert error_against_ours(model, weights) < 0.01


@pytest.mark.parametrize("config", [LLAMA, QWEN2])
@torch.no_grad()
def test_steps_of_the_compiled_peer_are_those_of_its_model(config) -> None:
    weights = RandomModel(config, 16, 16, device="cpu").weights()
    wanted = transformers_model(config, weights, torch.float16)(TOKENS[None]).logits[0]
    model = transformers_model(config, weights, torch.float16)
    steps = CompiledSteps(model, 32, lambda function: function)
    for index, token in enumerate(TOKENS):
        steps.token.fill_(int(token))
        steps.length.fill_(index)
        steps.step()
        torch.testing.assert_close(steps.logits[0], wanted[index], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("config", [LLAMA, QWEN2])
def test_random_weights_keep_the_size_of_activations(config, bits: int) -> None:
    weights = RandomModel(config, bits, bits, device="cpu").weights()
    logits = Decoder(weights, capacity=32).logits(Prompt(TOKENS)).float()
    assert 0.5 < float(logits.std()) < 2.0


def test_other_head_leaves_all_else_as_it_is() -> None:
    model = RandomModel(QWEN2, 4, 4, device="cpu")
    weights = model.weights()
    other = model.with_head(weights, 16)
    assert other.head is other.embedding
    assert other.head.nbytes > 3 * weights.head.nbytes
    assert other.layers is weights.layers


def test_matrices_of_a_model_have_the_names_and_rows_of_its_modules() -> None:
    weights = RandomModel(LLAMA, 4, 4, device="cpu").weights()
    rows = {name: matrix.out_features for name, matrix in matrices_of(weights)}
    assert rows["model.layers.1.self_attn.k_proj"] == 128
    assert rows["model.layers.0.mlp.up_proj"] == 512
    assert len(rows) == 2 + 2 * 7


def test_rows_of_the_table_have_configurations_of_their_shape() -> None:
    assert set(TABLE.values()) == set(SHAPES)
    for row, shape in TABLE.items():
        own, timed = (read_shape(read_model(name)) for name in (row.lower(), shape))
        assert own.layer_linears() == timed.layer_linears()
        assert (own.layers, own.vocab_size, own.kv_heads) == (
            timed.layers, timed.vocab_size, timed.kv_heads,
        )  # fmt: skip


def variant(ms: float) -> dict:
    return {"ms": {"4": {"p50": ms, "p90": ms}}, "bytes": {"4": 6_000_000_000}, "memory": {}}


def test_speed_up_is_over_the_fastest_fp16_of_all_that_ran(tmp_path) -> None:
    path = tmp_path / "decode.json"
    results = Results(path)
    results.figures["copy_bandwidth_gb_s"] = 3000.0
    results.shape("llama-2-7b")["decode"] = {BEST: variant(2.0), "fp16": variant(8.0)}
    results.write()
    results = Results(path)  # another script goes on in the same file
    results.figures["peers"] = {
        "compiled": {"precision": "fp16", "ms": {"llama-2-7b": {"4": 7.0}}},
        "int4 of others": {"precision": "int4", "ms": {"llama-2-7b": {"4": 3.0}}},
        "on another shape": {"precision": "fp16", "ms": {"llama-3-8b": {"4": 1.0}}},
    }
    results.write()
    models = json.loads(path.read_text())["models"]
    assert set(models) == {"Llama-2-7B", "Vicuna-7B", "VILA-7B"}
    row = models["VILA-7B"]
    assert row["speedup"] == {"4": 3.5}
    assert row["best_fp16_ms"] == {"4": 7.0}
    assert row["int4_tokens_per_s"] == {"4": 500.0}
    assert row["bandwidth_share"][BEST] == {"4": 1.0}


def test_part_that_fails_is_told_and_the_others_go_on(tmp_path, capsys) -> None:
    results = Results(tmp_path / "decode.json")
    with results.part("first"):
        raise ValueError("no such kernel")
    with results.part("second"):
        results.shape("llama-2-7b")["proof"] = {}
    written = json.loads((tmp_path / "decode.json").read_text())
    assert written["failed"] == {"first": "ValueError: no such kernel"}
    assert written["shapes"] == {"llama-2-7b": {"proof": {}}}
    assert "no such kernel" in capsys.readouterr().err


def test_figures_of_other_files_are_put_beside(tmp_path, monkeypatch) -> None:
    path, kernels, peers = (tmp_path / f"{name}.json" for name in ("decode", "kernels", "peers"))
    results = Results(path)
    results.figures["copy_bandwidth_gb_s"] = 3000.0
    results.shape("nvila-2b")["decode"] = {BEST: variant(1.0), "fp16": variant(3.0)}
    results.write()
    kernels.write_text(json.dumps({"kernels": [{"name": "linear"}], "date": "other"}))
    compiled = {"precision": "fp16", "ms": {"nvila-2b": {"4": 2.0}}}
    told = {"peers": {"compiled": compiled}, "date": "now", "peers_not_available": {}}
    peers.write_text(json.dumps(told))
    arguments = [str(path), "--kernels", str(kernels), "--peers", str(peers)]
    monkeypatch.setattr("sys.argv", ["results", *arguments])
    main()
    written = json.loads(path.read_text())
    assert written["kernels"] == [{"name": "linear"}]
    assert written["peers_run"] == {"date": "now"}
    assert written["models"]["NVILA-2B"]["speedup"] == {"4": 2.0}
    assert "date" not in written

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_language_models import tiny_text_model

from edge_perception.cli import main
from edge_perception.errors import QuantizationError
from edge_perception.quantization.evaluate import gap_share, measure_fidelity, windows_of
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.ladder import climb, layer_bytes, quantise_copy
from edge_perception.quantization.recipe import recipe_for

WORDS = torch.randint(0, 128, (1, 64), generator=torch.Generator().manual_seed(7))
CPU = torch.device("cpu")


def test_perplexity_of_equal_odds_is_the_number_of_words() -> None:
    got = measure_fidelity(lambda window: torch.zeros(window.shape[1], 50), None, [WORDS % 50])
    assert got.perplexity == pytest.approx(50)
    assert (got.kl, got.agreement, got.tokens) == (0.0, 1.0, 63)


def test_divergence_follows_its_formula() -> None:
    float_logits, logits = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 1.0, 0.0])
    p, q = float_logits.softmax(0), logits.softmax(0)
    want = float((p * (p / q).log()).sum())
    got = measure_fidelity(
        lambda window: logits.expand(window.shape[1], 3),
        lambda window: float_logits.expand(window.shape[1], 3),
        [WORDS % 3],
    )
    assert got.kl == pytest.approx(want, rel=1e-5)
    assert got.agreement == 0.0


def test_windows_are_consecutive_and_whole() -> None:
    windows = windows_of(torch.arange(10), 4)
    assert [w.tolist() for w in windows] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]


def test_windows_begin_with_the_token_they_are_given() -> None:
    windows = windows_of(torch.arange(10, 20), 4, 2, bos=1)
    assert [window.tolist() for window in windows] == [[[1, 10, 11, 12]], [[1, 13, 14, 15]]]


def test_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(QuantizationError, match="too little text"):
        windows_of(torch.arange(3), 4)


def test_share_of_roundings_loss() -> None:
    assert gap_share(19.0, 18.0, 20.0) == 0.5
    assert math.isnan(gap_share(19.0, 18.0, 18.0))


def test_ladder_measures_every_rung_against_the_float_model() -> None:
    model = tiny_text_model("Llama 3, SmolLM2")
    form = WeightFormat(4, 32)
    recipes = [
        recipe_for("rtn", form),
        recipe_for("awq+gptq", form),
        recipe_for("rtn", WeightFormat(8, 32)),
        recipe_for("w8a8"),
        recipe_for("smoothquant-static", alpha=0.7),
    ]
    result = climb(model, recipes, [{"input_ids": WORDS}], [WORDS], CPU)
    rtn, both, eight, w8a8, static = result["runs"]
    assert rtn["gap_share_of_rtn"] in (1.0, pytest.approx(math.nan, nan_ok=True))
    assert eight["kl"] < both["kl"] < rtn["kl"]
    assert 0 < w8a8["kl"] < rtn["kl"]
    assert static["calibration_tokens"] == 64
    assert rtn["calibration_tokens"] == 0
    assert (w8a8["alpha"], static["alpha"]) == (None, 0.7)
    assert eight["bytes"] > 1.7 * rtn["bytes"]


def test_quantising_is_deterministic() -> None:
    model = tiny_text_model("Qwen3")
    recipe = recipe_for("awq+gptq", WeightFormat(4, 32), float_target=0.5)
    first, second = (
        quantise_copy(model, recipe, [{"input_ids": WORDS}], CPU).model.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layer_bytes_count_codes_scales_and_zeros() -> None:
    from edge_perception.quantization.encoding import round_alone

    weight = torch.randn(8, 64)
    assert layer_bytes(round_alone(weight, WeightFormat(4, 32))) == 256 + 2 * 16 + 8
    assert layer_bytes(round_alone(weight, WeightFormat(4, 32, symmetric=True))) == 256 + 2 * 16


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer of letters, and a text."""
    tokenizers = pytest.importorskip("tokenizers")
    tiny_text_model("Llama 3, SmolLM2").save_pretrained(tmp_path / "float")
    letters = {chr(code): index for index, code in enumerate(range(97, 123))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({**letters, "?": 26}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "float" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 12)
    return tmp_path


def common(folder: Path) -> list[str]:
    return [
        "--tokenizer",
        str(folder / "float" / "tokenizer.json"),
        "--group-size",
        "32",
        "--calibration",
        str(folder / "text.txt"),
        "--window",
        "64",
        "--device",
        "cpu",
    ]


def test_command_quantises_and_evaluates(checkpoint: Path, capsys) -> None:
    model, out = str(checkpoint / "float"), str(checkpoint / "out")
    assert main(["quantize", model, "--out", out, "--method", "awq", *common(checkpoint)]) == 0
    assert "2/2 model.layers.1 done" in capsys.readouterr().out
    assert (checkpoint / "out" / "tokenizer.json").is_file()
    command = ["evaluate-lm", out, "--reference", model, "--text", str(checkpoint / "text.txt")]
    assert main([*command, "--out", str(checkpoint / "report"), *common(checkpoint)]) == 0
    figures = json.loads((checkpoint / "report" / "fidelity.json").read_text())["figures"]
    assert 0 < figures["kl"] < 0.5
    assert figures["seconds"] > 0
    assert figures["ppl"] == pytest.approx(figures["float_ppl"], rel=0.1)


def test_command_writes_w8a8_that_is_read_as_such(checkpoint: Path) -> None:
    model, out = str(checkpoint / "float"), str(checkpoint / "out")
    command = ["quantize", model, "--out", out, "--method", "smoothquant-static", "--alpha", "0.8"]
    assert main([*command, "--layout", "w8a8", *common(checkpoint)]) == 0
    card = (checkpoint / "out" / "README.md").read_text()
    assert "| alpha | 0.8 |" in card
    assert "| activations | 8 bits, static |" in card
    command = ["evaluate-lm", out, "--reference", model, "--text", str(checkpoint / "text.txt")]
    assert main([*command, "--out", str(checkpoint / "report"), *common(checkpoint)]) == 0
    figures = json.loads((checkpoint / "report" / "fidelity.json").read_text())["figures"]
    assert 0 < figures["kl"] < 0.05


def test_command_climbs_the_ladder(checkpoint: Path) -> None:
    command = [
        "evaluate-lm",
        str(checkpoint / "float"),
        "--ladder",
        "--bits",
        "4",
        "--text",
        str(checkpoint / "text.txt"),
        "--out",
        str(checkpoint / "report"),
    ]
    assert main([*command, *common(checkpoint)]) == 0
    report = json.loads((checkpoint / "report" / "ladder.json").read_text())
    runs = report["models"]["float"]["runs"]
    assert [run["method"] for run in runs] == ["rtn", "awq", "gptq", "awq+gptq"]
    page = (checkpoint / "report" / "ladder.html").read_text()
    assert page.count("<tr") == 5
    assert "<svg" in page


def test_command_sweeps_smoothquants_alpha(checkpoint: Path, capsys) -> None:
    command = ["evaluate-lm", str(checkpoint / "float"), "--ladder", "--bos"]
    command += ["--methods", "rtn", "w8a8", "smoothquant-static", "--alpha", "0.4", "0.8"]
    command += ["--bits", "4", "3", "--text", str(checkpoint / "text.txt")]
    assert main([*command, "--out", str(checkpoint / "report"), *common(checkpoint)]) == 0
    report = json.loads((checkpoint / "report" / "ladder.json").read_text())
    told = [(run["method"], run["bits"], run["alpha"]) for run in report["models"]["float"]["runs"]]
    assert told == [
        ("rtn", 4, None),
        ("rtn", 3, None),
        ("w8a8", 8, None),
        ("smoothquant-static", 8, 0.4),
        ("smoothquant-static", 8, 0.8),
    ]
    assert "smoothquant-static, alpha 0.8" in (checkpoint / "report" / "ladder.html").read_text()


def test_dry_run_tells_sizes_and_writes_nothing(checkpoint: Path, capsys) -> None:
    out = checkpoint / "out"
    command = ["quantize", str(checkpoint / "float"), "--out", str(out), "--dry-run"]
    assert main([*command, "--group-size", "32"]) == 0
    assert "14 layers, 0.3 MB to 0.1 MB" in capsys.readouterr().out
    assert not out.exists()


REFUSED = [
    (["--group-size", "128"], "does not divide", "width 64"),
    (["--method", "awq"], "needs calibration data", "no text"),
    (["--bits", "3"], "compressed-tensors", "AutoAWQ has no 3 bits"),
    (["--device", "cuda:77"], "device cannot be used", "no such device"),
    (["--calibration", "missing.txt"], "no such text", "no such file"),
]


@pytest.mark.parametrize(("options", "match", "reason"), REFUSED, ids=[r[2] for r in REFUSED])
def test_command_refuses_in_one_line(options, match, reason, checkpoint: Path, capsys) -> None:
    command = ["quantize", str(checkpoint / "float"), "--out", str(checkpoint / "out")]
    assert main([*command, "--group-size", "32", *options]) == 2
    told = capsys.readouterr().err
    assert match in told
    assert told.count("\n") == 1


def test_commands_say_how_to_install_what_is_missing(monkeypatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert main(["quantize", "anything", "--out", "anywhere"]) == 2
    assert "scripts/setup.sh --extra vlm" in capsys.readouterr().err

"""From a float checkpoint on disk to a quantised one, and back into a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_language_models import (
    TEXT_FAMILIES,
    VISION_FAMILIES,
    tiny_image_call,
    tiny_text_model,
    tiny_vision_model,
)

from edge_perception.errors import QuantizationError
from edge_perception.quantization.encoding import ExportLayout
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import DiskBlocks, Job, plan_job, run_job
from edge_perception.quantization.ladder import quantise_copy
from edge_perception.quantization.pipeline import Progress
from edge_perception.quantization.recipe import OddWidth, recipe_for
from edge_perception.vlm.assembly import build_skeleton, load_model, open_weights
from edge_perception.vlm.loaders.checkpoint import Checkpoint
from edge_perception.vlm.packed_linear import PackedEmbedding, PackedLinear

WORDS = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(7))
CALLS = [{"input_ids": WORDS}]
CPU = torch.device("cpu")
G32 = WeightFormat(4, 32)


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    made = tiny_text_model("Llama 3, SmolLM2")
    made.save_pretrained(tmp_path / "float")
    return made


def job(folder: Path, method: str = "awq", form: WeightFormat = G32, **fields: object) -> Job:
    return Job(folder / "float", folder / "out", recipe_for(method, form), **fields)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


LAYOUTS = [
    ("awq", G32, ExportLayout.AWQ),
    ("awq+gptq", G32, ExportLayout.COMPRESSED_TENSORS),
    ("gptq", WeightFormat(3, 64, symmetric=True), ExportLayout.COMPRESSED_TENSORS),
    ("rtn", WeightFormat(8, -1), ExportLayout.COMPRESSED_TENSORS),
    ("smoothquant", WeightFormat(), ExportLayout.W8A8),
    ("smoothquant-static", WeightFormat(), ExportLayout.W8A8),
]


@pytest.mark.parametrize(("method", "form", "layout"), LAYOUTS)
@torch.no_grad()
def test_written_checkpoint_computes_what_was_quantised(
    method: str, form: WeightFormat, layout: ExportLayout, tmp_path: Path, model: torch.nn.Module
) -> None:
    asked = job(tmp_path, method, form, layout=layout)
    outcome = run_job(asked, CALLS)
    loaded = load_model(tmp_path / "out")
    in_memory = quantise_copy(model, asked.recipe, CALLS, CPU).model
    layer = loaded.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(layer, PackedLinear)
    weight = in_memory.get_submodule("model.layers.1.mlp.down_proj").weight
    assert torch.equal(layer.packed.dequantize(), weight)
    assert torch.equal(loaded(WORDS).logits, in_memory(WORDS).logits)
    assert outcome.bytes == plan_job(asked).bytes


@pytest.mark.parametrize("family", [f for f in TEXT_FAMILIES if f != "Llama 3, SmolLM2"])
@torch.no_grad()
def test_every_family_survives_the_way_to_disk(family: str, tmp_path: Path) -> None:
    model = tiny_text_model(family)
    model.save_pretrained(tmp_path / "float")
    asked = job(tmp_path, "awq")
    run_job(asked, CALLS)
    want = quantise_copy(model, asked.recipe, CALLS, CPU).model(WORDS).logits
    assert torch.equal(load_model(tmp_path / "out")(WORDS).logits, want)


@torch.no_grad()
def test_half_precision_checkpoint_loads_to_the_same_bits(tmp_path: Path, model) -> None:
    asked = job(tmp_path, "awq+gptq", dtype="bfloat16")
    run_job(asked, CALLS)
    half = load_model(tmp_path / "float", dtype=torch.bfloat16)
    in_memory = quantise_copy(half, asked.recipe, CALLS, CPU).model
    loaded = load_model(tmp_path / "out")
    layer = loaded.get_submodule("model.layers.1.self_attn.o_proj")
    want = in_memory.get_submodule("model.layers.1.self_attn.o_proj").weight
    assert torch.equal(layer.packed.dequantize().bfloat16(), want)
    norm = "model.layers.1.input_layernorm"
    assert torch.equal(loaded.get_submodule(norm).weight, in_memory.get_submodule(norm).weight)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["awq", "awq+gptq", "smoothquant-static"])
def test_killed_run_goes_on_to_the_same_bytes(method: str, tmp_path: Path, model) -> None:
    layout = ExportLayout.W8A8 if method == "smoothquant-static" else ExportLayout.AWQ
    whole = job(tmp_path, method, layout=layout)
    run_job(whole, CALLS)
    broken = replace(whole, out=tmp_path / "broken")

    def kill(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_job(broken, CALLS, on_progress=kill)
    (broken.out / "model-00002-of-00003.safetensors.tmp").write_bytes(b"half a shard")
    told: list[Progress] = []
    outcome = run_job(broken, CALLS, on_progress=told.append)
    assert [progress.restored for progress in told] == [True, False]
    assert outcome.restored_blocks == 1
    assert contents(broken.out) == contents(whole.out)


def test_folder_of_another_request_is_refused(tmp_path: Path, model) -> None:
    run_job(job(tmp_path, "rtn"))
    with pytest.raises(QuantizationError, match="other settings"):
        run_job(job(tmp_path, "awq"), CALLS)
    with pytest.raises(QuantizationError, match="finished checkpoint already"):
        run_job(job(tmp_path, "rtn"))
    before = contents(tmp_path / "out")
    run_job(job(tmp_path, "rtn"), restart=True)
    assert contents(tmp_path / "out") == before


def test_folder_with_other_files_is_left_alone(tmp_path: Path, model) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(QuantizationError, match=r"other files.*thesis\.tex"):
        run_job(job(tmp_path, "rtn"), restart=True)


@torch.no_grad()
def test_embedding_and_tied_head_take_eight_bits(tmp_path: Path, model: torch.nn.Module) -> None:
    asked = job(tmp_path, "rtn", layout=ExportLayout.COMPRESSED_TENSORS, embedding_bits=8)
    outcome = run_job(asked)
    loaded = load_model(tmp_path / "out")
    assert isinstance(loaded.get_input_embeddings(), PackedEmbedding)
    assert isinstance(loaded.lm_head, PackedLinear)
    # The other layers are the same: what differs is the table's rounding alone.
    only_blocks = quantise_copy(model, asked.recipe, [], CPU).model(WORDS).logits
    assert (loaded(WORDS).logits - only_blocks).norm() < 0.02 * only_blocks.norm()
    assert outcome.bytes == plan_job(asked).bytes < outcome.float_bytes / 3


def test_untied_head_takes_four_bits(tmp_path: Path) -> None:
    tiny_text_model("Mistral").save_pretrained(tmp_path / "float")
    run_job(job(tmp_path, "rtn", layout=ExportLayout.COMPRESSED_TENSORS, head_bits=4))
    with Checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.is_packed("lm_head")
        assert checkpoint.packed("lm_head").bits == 4


def test_tied_head_alone_cannot_be_quantised(tmp_path: Path, model) -> None:
    asked = job(tmp_path, "rtn", layout=ExportLayout.COMPRESSED_TENSORS, head_bits=8)
    with pytest.raises(QuantizationError, match="shares the embedding"):
        plan_job(asked)


IMPOSSIBLE = [
    ({"form": WeightFormat(3, 32)}, "4 bits", "AutoAWQ has no 3 bits"),
    ({"embedding_bits": 8}, "compressed-tensors", "AutoAWQ packs no embedding"),
    ({"method": "smoothquant"}, "does not hold", "AutoAWQ rounds no activations"),
    ({"layout": ExportLayout.W8A8}, "does not hold", "rtn rounds no activations"),
    (
        {"method": "w8a8", "layout": ExportLayout.W8A8, "head_bits": 8},
        "head and embedding in float",
        "W8A8 has no other widths",
    ),
]


@pytest.mark.parametrize(("fields", "match", "reason"), IMPOSSIBLE, ids=[i[2] for i in IMPOSSIBLE])
def test_what_a_layout_cannot_hold_is_refused_first(fields, match, reason, tmp_path, model) -> None:
    with pytest.raises(QuantizationError, match=match):
        run_job(job(tmp_path, **({"method": "rtn"} | fields)), CALLS)
    assert not (tmp_path / "out").exists()


def test_method_that_needs_data_says_so(tmp_path: Path, model) -> None:
    with pytest.raises(QuantizationError, match="awq needs calibration data"):
        run_job(job(tmp_path, "awq"))


@pytest.mark.parametrize("choice", [OddWidth.SHRINK_GROUP, OddWidth.KEEP_FLOAT])
@torch.no_grad()
def test_width_that_the_group_does_not_divide(choice: OddWidth, tmp_path: Path) -> None:
    model = tiny_text_model("Mistral", intermediate_size=96)
    model.save_pretrained(tmp_path / "float")
    recipe = recipe_for("rtn", WeightFormat(4, 64), odd_width=choice)
    layout = ExportLayout.COMPRESSED_TENSORS
    asked = Job(tmp_path / "float", tmp_path / "out", recipe, layout)
    run_job(asked)
    with Checkpoint(tmp_path / "out") as checkpoint:
        packed = checkpoint.is_packed("model.layers.0.mlp.down_proj")
    assert packed == (choice is OddWidth.SHRINK_GROUP)
    want = quantise_copy(model, recipe, [], CPU).model(WORDS).logits
    assert torch.equal(load_model(tmp_path / "out")(WORDS).logits, want)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    named = "model.layers.0.mlp.down_proj" in config["ignore"]
    assert named == (choice is OddWidth.KEEP_FLOAT)


@pytest.mark.parametrize("family", VISION_FAMILIES)
@torch.no_grad()
def test_every_vision_familys_language_tower_survives_the_way_to_disk(
    family: str, tmp_path: Path
) -> None:
    model = tiny_vision_model(family)
    model.save_pretrained(tmp_path / "float")
    asked = job(tmp_path, "awq")
    words = [{"input_ids": WORDS.clamp(min=10)}]  # no image tokens
    run_job(asked, words)
    want = quantise_copy(model, asked.recipe, words, CPU).model(**words[0]).logits
    assert torch.equal(load_model(tmp_path / "out")(**words[0]).logits, want)


def test_blocks_lie_in_memory_only_while_it_is_their_turn(tmp_path: Path, model) -> None:
    with open_weights(tmp_path / "float") as source:
        skeleton = build_skeleton(source.config, torch.float32)
        blocks = skeleton.model.layers
        disk = DiskBlocks(source, {n: n for n in source.names()}, torch.float32, [])
        disk.load("model.layers.1", blocks[1], CPU)
        want = model.model.layers[1].state_dict()
        assert all(torch.equal(value, want[n]) for n, value in blocks[1].state_dict().items())
        assert all(parameter.is_meta for parameter in blocks[0].parameters())
        disk.release("model.layers.1", blocks[1])
    assert all(parameter.is_meta for parameter in blocks[1].parameters())


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("family", ["LLaVA", "SmolVLM"])
@torch.no_grad()
def test_vision_language_model_is_calibrated_with_images(
    family: str, vision: bool, tmp_path: Path
) -> None:
    model = tiny_vision_model(family)
    model.save_pretrained(tmp_path / "float")
    call = tiny_image_call(family)
    run_job(job(tmp_path, "awq", vision=vision), [call])
    loaded = load_model(tmp_path / "out")
    inside = [name for name, part in loaded.named_modules() if isinstance(part, PackedLinear)]
    assert any("vision" in name for name in inside) == vision
    assert sum("vision" not in name for name in inside) == 14
    want, got = model(**call).logits, loaded(**call).logits
    assert (got - want).norm() < 0.2 * want.norm()
    with Checkpoint(tmp_path / "out") as written, Checkpoint(tmp_path / "float") as original:
        layers = {name.rpartition(".")[0] for name in original.names()}
        assert set(written.packed_layers()) <= layers  # under the names it came with


def test_tokenizer_is_carried_and_code_is_not(tmp_path: Path, model) -> None:
    (tmp_path / "float" / "tokenizer.json").write_text("{}")
    (tmp_path / "float" / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "float" / "tokenizer.pkl").write_bytes(b"")
    run_job(job(tmp_path, "rtn"), notes={"calibration text": "none"})
    names = set(contents(tmp_path / "out"))
    assert "tokenizer.json" in names
    assert names.isdisjoint({"modeling_evil.py", "tokenizer.pkl"})
    assert "round to nearest" in (tmp_path / "out" / "README.md").read_text()


def test_quantised_checkpoint_is_not_quantised_again(tmp_path: Path, model) -> None:
    run_job(job(tmp_path, "rtn"))
    again = Job(tmp_path / "out", tmp_path / "again", recipe_for("rtn", G32))
    with pytest.raises(QuantizationError, match="already"):
        run_job(again)

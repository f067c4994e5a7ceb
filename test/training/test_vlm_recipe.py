"""The parts of the VLM's recipe that would fail silently: turns, placements, targets, weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipe is not installed

import numpy as np
from PIL import Image

from training.vlm.batch import (
    Placement,
    answer_places,
    dense_targets,
    draw_captions,
    draw_placement,
    draw_turns,
    place_images,
)
from training.vlm.exam import Asked, right_answers
from training.vlm.examples import Examples, load_examples
from training.vlm.model import (
    Learner,
    ModelSize,
    TurnLayout,
    patch_features,
    read_turns,
    smaller_sides,
)
from training.vlm.prepare import prepare
from training.vlm.texts import TURN_KINDS, drawing_weights
from training.vlm.tokens import ASSISTANT_ID, END_ID, PAD_ID, encode_turns
from training.vlm.train import Recipe, Trainer, save_learner

SMALL = ModelSize(
    image_px=160, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_hidden=64,
    kv_heads=1, head_dim=32,
)  # fmt: skip
IDENTITY = Placement(
    torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.bool),
    torch.zeros(1, dtype=torch.bool),
)  # fmt: skip


# Three objects: a red cup on the left, a blue box on the right, a ball in the middle.
OBJECTS = (("cup", 2, 100, "red", 1.0), ("box", 5, 500, "blue", 2.0), ("ball", 6, 320, None, 2.0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data set of one picture, its left half of 200 and its right half of 50, prepared."""
    data = tmp_path_factory.mktemp("data")
    for part in ("images", "masks", "scenes"):
        (data / part).mkdir()
    picture = np.full((480, 640, 3), 50, np.uint8)
    picture[:, :320] = 200
    mask = np.zeros((120, 160), np.uint8)
    annotations = []
    for instance, (_, category, x, colour, distance) in enumerate(OBJECTS, start=11):
        mask[50:70, (x - 40) // 4 : (x + 40) // 4] = instance
        annotations.append(
            {"category_id": category, "bbox": [x - 40, 200, 80, 80], "occlusion": 0.0,
             "area": 6400, "instance_id": instance, "colour": colour,
             "position_m": [0.0, 0.0, distance]}
        )  # fmt: skip
    Image.fromarray(picture).save(data / "images" / "a_00.png")
    (data / "images" / "a_00.png").rename(data / "images" / "a_00.jpg")  # exact, whatever its name
    Image.fromarray(mask).save(data / "masks" / "a_00.png")
    record = {"file_name": "a_00.jpg", "layout": "aisle", "way_free": True,
              "annotations": annotations}  # fmt: skip
    (data / "scenes" / "1.json").write_text(json.dumps([record]))
    (data / "plan.json").write_text(json.dumps({"frames": 1, "views_per_scene": 4}))
    out = tmp_path_factory.mktemp("prepared")
    assert prepare(data, out, side=160, workers=1) == 1
    return out


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return tokenizers.Tokenizer.from_file(str(prepared / "tokenizer.json"))


@pytest.fixture(scope="module")
def examples(prepared) -> Examples:
    return load_examples(prepared, torch.device("cpu"))


@pytest.fixture(scope="module")
def learner(tokenizer) -> Learner:
    torch.manual_seed(0)
    return Learner(SMALL, tokenizer.get_vocab_size()).eval()


@torch.no_grad()
def test_turns_beside_each_other_are_read_as_if_each_stood_alone(learner):
    pixels = torch.randn(2, 3, 160, 160)
    turns = torch.randint(8, 200, (2, 12))
    patches = patch_features(learner.vlm, pixels)
    count = SMALL.image_tokens(160)
    together = read_turns(
        learner.vlm, patches, turns, TurnLayout.of(count, [5, 7], torch.device("cpu"))
    )
    for start, stop in ((0, 5), (5, 12)):
        layout = TurnLayout.of(count, [stop - start], torch.device("cpu"))
        alone = read_turns(learner.vlm, patches, turns[:, start:stop], layout)
        torch.testing.assert_close(together[:, start:stop], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_turn_is_read_as_by_the_class_itself(learner, tokenizer):
    pixels = torch.randn(1, 3, 160, 160)
    (turn,) = encode_turns(tokenizer, [("Is the way free?", "yes")])
    layout = TurnLayout.of(SMALL.image_tokens(160), [len(turn)], torch.device("cpu"))
    ours = read_turns(
        learner.vlm, patch_features(learner.vlm, pixels), torch.tensor([turn]), layout
    )
    ids = torch.cat((layout.prefix, torch.tensor(turn)))[None]
    theirs = learner.vlm(input_ids=ids, pixel_values=pixels[:, None]).logits[:, -len(turn) :]
    torch.testing.assert_close(learner.logits(ours), theirs, atol=1e-4, rtol=1e-3)


def test_only_the_answer_and_its_end_are_learnt():
    tokens = torch.tensor([[5, 20, 21, ASSISTANT_ID, 30, END_ID, PAD_ID, PAD_ID], [PAD_ID] * 8])
    places = answer_places(tokens, ASSISTANT_ID, PAD_ID)
    assert places[0].nonzero().flatten().tolist() == [3, 4]
    assert not places[1].any()


def test_flip_brings_the_mirrored_turns_and_picture(examples, tokenizer):
    flip = Placement(
        torch.tensor([[-1.0, 1.0]]), torch.zeros(1, 2), torch.tensor([True]), torch.tensor([False])
    )
    placed = place_images(examples.images, flip, 160)
    assert placed[0, 0, 80, 10].item() == pytest.approx(50 / 255, abs=1e-3)
    assert placed[0, 0, 80, 150].item() == pytest.approx(200 / 255, abs=1e-3)
    chosen = torch.tensor([0])
    for placement, side in ((IDENTITY, "left"), (flip, "right")):
        turns = draw_turns(examples, chosen, placement, 20)[0]
        texts = [tokenizer.decode(turn.tolist(), skip_special_tokens=False) for turn in turns]
        about = [text for text in texts if "<user>Where" in text and "the cup?" in text]
        assert about, texts
        assert all(f"<assistant>{side}<end_of_utterance>" in text for text in about)


def test_shrunk_pictures_get_no_turns_about_places(examples):
    shrunk = Placement(
        torch.full((1, 2), 0.8),
        torch.full((1, 2), 0.2),
        torch.tensor([False]),
        torch.tensor([True]),
    )
    turns = draw_turns(examples, torch.tensor([0]), shrunk, 20)[0]
    about_place = {TURN_KINDS.index(kind) for kind in ("place", "locate", "way")}
    kinds = examples.kinds[0, 0].tolist()
    forbidden = [
        examples.turns[0, 0, slot] for slot, kind in enumerate(kinds) if kind in about_place
    ]
    assert forbidden
    assert not any(torch.equal(turn, other.long()) for turn in turns for other in forbidden)
    assert not draw_captions(examples, torch.tensor([0]), shrunk).any()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (-1.0, 1.0), (0.75, 0.8), (-0.75, 0.8)])
def test_dense_targets_move_with_the_picture(examples, scale):
    factor, shift = torch.tensor([scale]), torch.tensor([[0.1, -0.1]])
    placement = Placement(factor, shift, factor[:, 0] < 0, torch.tensor([True]))
    found = dense_targets(examples, torch.tensor([0]), placement, 40, 12)
    cups = (found.classes[0] == 1).nonzero()
    assert len(cups)
    steps = (torch.arange(40) + 0.5) / 20 - 1
    here = torch.stack((steps[cups[:, 1]], steps[cups[:, 0]]), -1)
    middle = torch.tensor([100 / 320 - 1, 240 / 240 - 1]) * factor[0] + shift[0]
    torch.testing.assert_close(here.mean(0), middle, atol=0.06, rtol=0)
    told = here + found.middle[0][cups[:, 0], cups[:, 1]] / 2
    torch.testing.assert_close(told, middle.expand_as(told), atol=1e-5, rtol=0)
    assert set(found.colours[0][found.classes[0] == 1].tolist()) == {0}, "red is the first colour"


def test_placements_never_cut_the_picture():
    torch.manual_seed(0)
    placement = draw_placement(500, torch.device("cpu"))
    assert (placement.scale.abs() + placement.shift.abs() <= 1 + 1e-6).all()
    assert (placement.flipped == (placement.scale[:, 0] < 0)).all()
    unmoved = ~placement.moved
    assert (placement.scale[unmoved].abs() == 1).all()
    assert (placement.shift[unmoved] == 0).all()


def test_smaller_sides_are_whole_squares_of_patches():
    assert smaller_sides(ModelSize()) == (192, 256)


def test_exam_counts_an_answer_only_with_all_its_tokens(learner, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    asked = [Asked("a.jpg", "way", "Is the way free?", answer) for answer in ("yes", "no")]
    said = [*tokenizer.encode("yes", add_special_tokens=False).ids, END_ID]

    class SaysYes(torch.nn.Module):
        """A head that ranks "yes" and the end first, from the answer's mark on."""

        def forward(self, turns: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*turns.shape, tokenizer.get_vocab_size())
            for row, turn in zip(logits.flatten(0, 1), turns.flatten(0, 1)):
                for start in (turn == ASSISTANT_ID).nonzero().flatten().tolist():
                    for offset, token in enumerate(said):
                        row[start + offset, token] = 1.0
            return logits

    def turns_alone(_vlm, _patches, turns, _layout):
        return turns.unflatten(1, (-1, 24))

    monkeypatch.setattr("training.vlm.exam.read_turns", turns_alone)
    monkeypatch.setattr(learner.vlm, "lm_head", SaysYes())
    right = right_answers(
        learner.vlm, asked, tmp_path, tokenizer, device=torch.device("cpu"), side=160
    )
    assert right == [True, False]


def test_answers_are_drawn_alike_whatever_their_number():
    keys = [[("way", "free", "yes")] * 3 + [("way", "free", "no")], [("locate", "", "")] * 2]
    weights = drawing_weights(keys)
    assert sum(weights[0][:3]) == pytest.approx(weights[0][3])
    assert sum(weights[0]) == pytest.approx(sum(weights[1]))


def test_masks_and_objects_are_prepared_by_row(examples):
    assert sorted(set(examples.masks.flatten().tolist())) == [0, 1, 2, 3]
    assert examples.objects[0, :3, 0].tolist() == [1.0, 4.0, 5.0]
    assert examples.objects[0, 0, 2:4].tolist() == pytest.approx([100 / 320 - 1, 0.0])
    assert not examples.objects[0, 3:].any()


def test_what_is_not_prepared_to_its_end_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run training\.vlm\.prepare"):
        load_examples(tmp_path, torch.device("cpu"))


def test_interrupted_training_goes_on_from_its_weights(examples, tmp_path, tokenizer):
    recipe = Recipe(steps=1, batch=2, turns=4)
    first = Trainer(SMALL, tokenizer.get_vocab_size(), recipe, examples)
    save_learner(first.learner, tmp_path)
    other = replace(recipe, seed=1)
    again = Trainer(
        SMALL, tokenizer.get_vocab_size(), other, examples, tmp_path / "learner.safetensors"
    )
    for name, value in first.learner.state_dict().items():
        torch.testing.assert_close(again.learner.state_dict()[name], value)
    before = again.learner.dense.weight.clone()
    assert torch.isfinite(again.step(1.0).total)
    assert not torch.equal(again.learner.dense.weight, before)

"""The runtime against transformers' own class on a tiny random checkpoint of our toolkit."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from safetensors.torch import save_file

from edge_perception.core.sampling import GREEDY
from edge_perception.errors import CheckpointError, DecodingError, ManifestError
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.recipe import recipe_for
from edge_perception.vlm.answering import Limits, Question, complete
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.onnx_model import open_onnx_model

MARKS = ["<pad>", "<s>", "<fake_token_around_image>", "<global-img>", "<image>", "<user>",
         "<assistant>", "<end_of_utterance>"]  # fmt: skip
WORDS = ["what", "is", "there", "a", "cup", "?", "no", "yes"]
SIDE = 64


def write_tokenizer(path):
    words = {word: index for index, word in enumerate([*MARKS, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of the class in INT4, groups of 32, and a manifest."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vlm")
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16}  # fmt: skip
    text = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "vocab_size": 16, "max_position_embeddings": 48, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True}  # fmt: skip
    settings = {"vision_config": vision, "text_config": text, "scale_factor": 2,
                "image_token_id": 4, "tie_word_embeddings": True}  # fmt: skip
    model = transformers.Idefics3ForConditionalGeneration(transformers.Idefics3Config(**settings))
    state = {
        n: 3 * v if v.ndim > 1 else v for n, v in model.state_dict().items() if "lm_head" not in n
    }
    (folder / "float").mkdir()
    save_file(state, folder / "float" / "model.safetensors")
    named = {"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3"}
    (folder / "float" / "config.json").write_text(json.dumps({**named, **settings}))
    write_tokenizer(folder / "float" / "tokenizer.json")
    recipe = recipe_for("rtn", WeightFormat(4, 32))
    run_job(Job(folder / "float", folder / "int4", recipe, vision=True))
    (folder / "manifest.yaml").write_text(
        "runtime: onnxruntime\nname: tiny\ncheckpoint: int4\nimage_sides_px: [32, 64]\n"
    )
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    opened = open_onnx_model(checkpoint / "manifest.yaml", threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def ask(model, pixels, text, side=SIDE, tokens=6):
    source = model.begin(model.encode_image(pixels, side), Question(text), GREEDY)
    return complete(model, source, Limits(tokens))


def by_transformers(checkpoint, pixels, text, side, tokens=6):
    """Greedy tokens of transformers' class over the same checkpoint and picture."""
    from PIL import Image

    reference = load_model(checkpoint / "int4", dtype=torch.float32)
    squeezed = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)[None, None] / 127.5 - 1
    words = [MARKS.index("<user>"), *[8 + WORDS.index(word) for word in text.split()], 6]
    picture = [4] * (side // 32) ** 2
    ids = torch.tensor([[1, 2, 3, *picture, 2, *words]])
    written = []
    with torch.no_grad():
        for _ in range(tokens):
            logits = reference(
                input_ids=ids, pixel_values=values, attention_mask=torch.ones_like(ids)
            ).logits
            token = int(logits[0, -1].argmax())
            if token == 7:
                break
            written.append(token)
            ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
    return tuple(written), ids.shape[1] - len(written)


def test_vision_tower_in_8_bits_sees_nearly_the_same(model, checkpoint, pixels):
    rounded = open_onnx_model(checkpoint / "manifest.yaml", threads=1, vision_int8=True)
    wanted, got = (
        np.concatenate([part.ravel() for part in each.encode_image(pixels, SIDE).cache])
        for each in (model, rounded)
    )
    rounded.close()
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.1


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("text", ["what is there ?", "is there a cup ?"])
def test_answers_are_those_of_transformers(model, checkpoint, pixels, text, side):
    answer = ask(model, pixels, text, side)
    assert (answer.tokens, answer.prompt_tokens) == by_transformers(checkpoint, pixels, text, side)


def test_one_encoded_picture_answers_many_questions(model, pixels):
    picture = model.encode_image(pixels, SIDE)
    before = [part.copy() for part in picture.cache]
    first = complete(model, model.begin(picture, Question("is there a cup ?"), GREEDY), Limits(4))
    assert first.tokens == ask(model, pixels, "is there a cup ?", tokens=4).tokens
    assert all(np.array_equal(one, other) for one, other in zip(before, picture.cache))
    assert picture.nbytes == 4 * 2 * picture.tokens * 32 * 4


def test_masked_tokens_are_not_chosen(model, pixels):
    mask = np.zeros(model.vocabulary.size, bool)
    mask[[14, 15]] = True
    source = model.begin(model.encode_image(pixels, SIDE), Question("is there a cup ?"), GREEDY)
    assert source.first(mask) in (14, 15)
    assert source.next(mask) in (14, 15)


def test_marks_in_a_question_are_text(model, pixels):
    picture = model.encode_image(pixels, SIDE)
    plain = model.begin(picture, Question("cup"), GREEDY).prompt_tokens
    marked = model.begin(picture, Question("cup <image>"), GREEDY).prompt_tokens
    assert marked == plain + 3, "<, image and > are three unknown words"


def test_question_that_does_not_fit_is_refused(model, pixels):
    picture = model.encode_image(pixels, SIDE)
    with pytest.raises(DecodingError, match="does not fit into the model's context"):
        model.begin(picture, Question("cup " * 50), GREEDY)


def test_answer_ends_where_the_context_is_full(model, pixels):
    mask = np.ones(model.vocabulary.size, bool)
    mask[list(model.vocabulary.end_tokens)] = False
    source = model.begin(model.encode_image(pixels, SIDE), Question("cup"), GREEDY)
    source.first(mask)
    while source.room > 0:
        source.next(mask)
    source.next(mask)
    with pytest.raises(DecodingError, match="context is full"):
        source.next(mask)


def test_answer_is_over_when_another_begins(model, pixels):
    picture = model.encode_image(pixels, SIDE)
    source = model.begin(picture, Question("cup"), GREEDY)
    model.begin(picture, Question("is"), GREEDY)
    with pytest.raises(DecodingError, match="another was begun"):
        source.first()


def test_side_that_was_not_learnt_is_refused(model, pixels):
    with pytest.raises(DecodingError, match="image side"):
        model.encode_image(pixels, 48)


def test_closed_model_raises(checkpoint, pixels):
    model = open_onnx_model(checkpoint / "manifest.yaml", threads=1)
    picture = model.encode_image(pixels, 32)
    model.close()
    with pytest.raises(DecodingError, match="closed"):
        model.encode_image(pixels, 32)
    with pytest.raises(DecodingError, match="closed"):
        model.begin(picture, Question("cup"), GREEDY).first()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "manifest: checkpoint"),
        ("{checkpoint: int4, name: 3}", "manifest: name"),
        ("{checkpoint: int4, name: tiny, image_sides_px: []}", "image_sides_px"),
        ("{", "cannot read manifest"),
    ],
)
def test_malformed_manifest_is_refused(tmp_path, text, match):
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=match):
        open_onnx_model(path)


def test_checkpoint_without_a_mark_is_refused(checkpoint, tmp_path):
    for name in (
        "config.json",
        *[path.name for path in (checkpoint / "int4").glob("*.safetensors")],
    ):
        (tmp_path / name).write_bytes((checkpoint / "int4" / name).read_bytes())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cup": 0}, unk_token="cup"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "manifest.yaml"
    path.write_text("{checkpoint: ., name: tiny, image_sides_px: [64]}")
    with pytest.raises(CheckpointError, match="lacks a mark"):
        open_onnx_model(path)

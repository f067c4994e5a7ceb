"""Tiny models of each family, from their directories: the same words as transformers' own."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from tiny_vlm_checkpoints import IMAGE, PROCESSORS, write_vlm

from edge_perception.core.sampling import GREEDY, Sampling
from edge_perception.errors import CheckpointError, DecodingError, DeviceMemoryError
from edge_perception.vlm.answering import Limits, Question, complete
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.models import open_model

PICTURE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
QUESTION = Question("What is there?")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):
    """The directory and transformers' model of a family, written once."""
    made = {}

    def checkpoint(family: str) -> tuple[Path, torch.nn.Module]:
        if family not in made:
            folder = tmp_path_factory.mktemp("vlm")
            made[family] = folder, write_vlm(folder, family)
        return made[family]

    return checkpoint


def open_at(folder: Path, **options):
    return open_model(ModelChoice(folder, context=options.pop("context", 200), **options))


def ask(model, pixels=PICTURE, question=QUESTION, *, sampling=GREEDY, tokens=12, features=None):
    features = features or model.encode_image(pixels, model.image_sides_px[0])
    source = model.begin(features, question, sampling)
    return complete(model, source, Limits(tokens))


def reference(model, ours, pixels=PICTURE, tokens: int = 12) -> list[int]:
    """What transformers' ``generate`` writes for the very same token ids and pixels."""
    features = ours.encode_image(pixels, ours.image_sides_px[0])
    ids = torch.tensor([ours._words.ask(QUESTION, IMAGE, features)])
    inputs = ours._image_inputs(ours._model.model, pixels, ours.image_sides_px[0])
    if features.grid is not None:
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=tokens, **inputs,
        )  # fmt: skip
    return [token for token in written[0, ids.shape[1] :].tolist() if token != 256]


@pytest.mark.parametrize("family", PROCESSORS)
def test_family_writes_what_transformers_writes(checkpoints, family: str) -> None:
    folder, theirs = checkpoints(family)
    ours = open_at(folder)
    written = ask(ours)
    assert list(written.tokens) == reference(theirs, ours)
    assert len(set(written.tokens)) > 2
    expected = "transformers" if family == "Qwen3-VL" else "our decoder"
    assert ours.backend == expected


@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL", "Qwen3-VL"])
def test_picture_matters(checkpoints, family: str) -> None:
    ours = open_at(checkpoints(family)[0])
    assert ask(ours, PICTURE).tokens != ask(ours, OTHER).tokens


def test_resolution_decides_how_many_tokens_a_picture_takes(checkpoints) -> None:
    ours = open_at(checkpoints("Qwen2.5-VL")[0])
    small, large = (
        len(ours.encode_image(np.repeat(np.repeat(PICTURE, 9, 0), 9, 1), side).embeddings)
        for side in ours.image_sides_px[:2]
    )
    assert small < large


@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL"])
def test_second_question_about_a_picture_runs_only_the_question(checkpoints, family: str) -> None:
    ours = open_at(checkpoints(family)[0])
    features = ours.encode_image(PICTURE, ours.image_sides_px[0])
    second = Question("Any colour?")
    fresh = ask(ours, question=second, features=features)
    ask(ours, question=QUESTION, features=features)
    decoder, rows = ours._tower._decoder, []
    prefill = decoder.prefill
    decoder.prefill = lambda prompt, between: rows.append(len(prompt)) or prefill(prompt, between)
    again = ask(ours, question=second, features=features)
    assert again.tokens == fresh.tokens
    assert rows == [len("Any colour?assistant:")]


def test_another_picture_shares_nothing(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0])
    fresh = ask(ours, OTHER)
    ask(ours, PICTURE)
    assert ask(ours, OTHER).tokens == fresh.tokens


def test_sampling_is_by_its_seed(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0])
    hot = [ask(ours, sampling=Sampling(temperature=3.0, seed=seed)).tokens for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL", "Qwen3-VL"])
def test_answer_can_be_constrained(checkpoints, family: str) -> None:
    pytest.importorskip("llguidance")
    from edge_perception.vlm.constraints import constrain_to_choices

    ours = open_at(checkpoints(family)[0])
    features = ours.encode_image(PICTURE, ours.image_sides_px[0])
    source = ours.begin(features, QUESTION, GREEDY)
    choices = constrain_to_choices(ours.vocabulary, ("yes", "no"))
    written = complete(ours, source, Limits(20), constraint=choices)
    assert written.text.strip() in ("yes", "no")
    assert written.reason == "end"


def test_mask_of_everything_changes_nothing(checkpoints) -> None:
    ours = open_at(checkpoints("Qwen2.5-VL")[0])
    features = ours.encode_image(PICTURE, ours.image_sides_px[0])
    free = ask(ours, features=features, tokens=6).tokens
    source = ours.begin(features, QUESTION, GREEDY)
    everything = np.ones(264, bool)
    masked = [source.first(everything), *(source.next(everything) for _ in range(3))]
    masked += [source.next(), source.next()]  # and on without a mask
    assert tuple(masked) == free


@pytest.mark.parametrize(
    ("sly", "reason"),
    [
        ("What <image><image> is there?<end>", "tokens as they are"),
        ("What <ima<image>ge> is there?<<end>end>", "tokens that come to be by leaving others out"),
    ],
)
def test_special_tokens_of_a_prompt_are_left_out(checkpoints, sly: str, reason: str) -> None:
    ours = open_at(checkpoints("LLaVA")[0])
    plain = Question("What  is there?")
    asked = ask(ours, question=Question(sly))
    assert asked.tokens == ask(ours, question=plain).tokens, reason


def test_system_prompt_is_heard(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0])
    features = ours.encode_image(PICTURE, 28)
    plain = ours.begin(features, QUESTION, GREEDY).prompt_tokens
    told = ours.begin(features, Question(QUESTION.text, "Be brief."), GREEDY).prompt_tokens
    assert told == plain + len("system: Be brief.")


def test_prompt_beyond_the_context_is_refused(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0], context=32)
    features = ours.encode_image(PICTURE, 28)
    with pytest.raises(DecodingError, match="does not fit"):
        ours.begin(features, Question("x" * 100), GREEDY)


def test_context_ends_an_answer(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0], context=40)
    written = ask(ours, question=Question("x"), tokens=100)
    assert written.reason in ("context", "end")
    assert len(written.tokens) <= 40


def test_closed_model_is_refused(checkpoints) -> None:
    ours = open_at(checkpoints("LLaVA")[0])
    ours.close()
    ours.close()
    with pytest.raises(DecodingError, match="closed"):
        ours.encode_image(PICTURE, 28)


@pytest.mark.parametrize(
    "missing",
    ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"],
)
def test_incomplete_directory_is_refused(tmp_path: Path, missing: str) -> None:
    write_vlm(tmp_path, "LLaVA")
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError):
        open_at(tmp_path)


def test_full_memory_is_told_apart_from_other_errors() -> None:
    from edge_perception.vlm.device_memory import memory_errors

    for full in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(DeviceMemoryError, match="full"), memory_errors():
            raise full
    with pytest.raises(RuntimeError, match="illegal"), memory_errors():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_memory_that_is_short_for_a_picture_lowers_the_resolution(checkpoints) -> None:
    from edge_perception.core.answers import Request
    from edge_perception.vlm.answerer import Answerer, AnswerSettings
    from edge_perception.vlm.inbox import Asked
    from edge_perception.vlm.vision_cache import Picture, VisionCache

    ours = open_at(checkpoints("Qwen2.5-VL")[0])
    largest = ours.image_sides_px[-1]
    encode = ours._image_inputs

    def short_of_memory(model, pixels, side_px):
        if side_px == largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, pixels, side_px)

    ours._image_inputs = short_of_memory
    answerer = Answerer(ours, VisionCache(8.0), AnswerSettings(max_tokens=3))
    answer = answerer.answer(Asked(Request("What?")), Picture(PICTURE, 1, "front", 0))
    assert answer.image_side_px == ours.image_sides_px[-2]
    assert answer.finish_reason in ("end", "length")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL", "Qwen3-VL"])
def test_model_on_gpu_answers_alike_twice_and_by_a_mask(tmp_path: Path, family: str) -> None:
    write_vlm(tmp_path, family, hidden_size=256, intermediate_size=512)
    ours = open_at(tmp_path, device="cuda:0", segments=2)
    features = ours.encode_image(PICTURE, ours.image_sides_px[0])
    first = ask(ours, features=features)
    again = ask(ours, features=features)
    assert again.tokens == first.tokens  # by the prompt's kept cache
    source = ours.begin(features, QUESTION, GREEDY)
    mask = np.zeros(264, bool)
    mask[[65, 66]] = True
    written = [source.first(mask), *(source.next(mask) for _ in range(4))]
    assert set(written) <= {65, 66}
    ours.close()

"""The model that the package carries: whole, of its own class, and worth asking."""

import hashlib
import io

import numpy as np
import pytest
import yaml
from PIL import Image

from edge_perception.core.sampling import GREEDY
from edge_perception.embedded import carried_file, demo_vlm_manifest
from edge_perception.replay import messages
from edge_perception.replay.bags import BagSource
from edge_perception.replay.questions import bag_questions
from edge_perception.vlm.answering import Limits, Question, complete
from edge_perception.vlm.onnx_model import open_onnx_model

FRAMES = 6

MANIFEST = demo_vlm_manifest()


@pytest.fixture(scope="module")
def model():
    opened = open_onnx_model(MANIFEST, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def frames():
    """Pictures of the demo bag, spread over it, each with its true boxes."""
    pictures, truths = {}, {}
    with BagSource(carried_file("demo/demo.mcap")) as bag:
        for message in bag.messages():
            stamp_ns = messages.read_stamp_ns(message.cdr)
            if message.msgtype == messages.COMPRESSED_IMAGE:
                pictures[stamp_ns] = message
            elif message.msgtype == messages.DETECTIONS:
                truths[stamp_ns] = messages.deserialize_detections(message.cdr)
    stamps = sorted(pictures.keys() & truths.keys())
    chosen = stamps[:: len(stamps) // FRAMES][:FRAMES]
    return [(_pixels(pictures[stamp]), truths[stamp]) for stamp in chosen]


def _pixels(message):
    data = messages.deserialize(message.cdr, message.msgtype).data
    return np.array(Image.open(io.BytesIO(bytes(data))).convert("RGB"))


def ask(model, features, text, tokens=48):
    return complete(model, model.begin(features, Question(text), GREEDY), Limits(tokens))


def test_weights_are_those_of_the_manifest():
    manifest = yaml.safe_load(MANIFEST.read_text())
    weights = MANIFEST.parent / manifest["checkpoint"] / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == manifest["sha256"]
    assert manifest["license"] == "Apache-2.0"
    carried = sum(file.stat().st_size for file in MANIFEST.parent.iterdir())
    assert carried < 30_000_000


def test_questions_about_the_demo_bag_are_mostly_answered_right(model, frames):
    asked = bag_questions(truth for _, truth in frames)
    judged = []
    for pixels, truth in frames:
        features = model.encode_image(pixels, model.image_sides_px[-1])
        for question in asked:
            expected = question.truth(truth)
            if expected is not None:
                judged.append(ask(model, features, question.prompt).text == expected)
    assert len(judged) > 20
    assert np.mean(judged) > 0.65


def test_caption_is_a_sentence_that_ends_by_itself(model, frames):
    pixels, _ = frames[0]
    for side in model.image_sides_px:
        answer = ask(model, model.encode_image(pixels, side), "Describe the picture.")
        assert answer.reason == "end"
        assert answer.text.startswith(("A table with", "An aisle with"))
        assert answer.text.endswith(".")


def test_answers_are_those_of_transformers_over_the_same_weights(model, frames):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from edge_perception.vlm.assembly import load_model

    folder = MANIFEST.parent
    reference = load_model(folder, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    prompts = ("Describe the picture.", "Is the way free?", "How many cups are there?")
    for pixels, _ in frames[:1]:
        features = model.encode_image(pixels, 320)
        for prompt in prompts:
            content = [{"type": "image", "image": Image.fromarray(pixels)},
                       {"type": "text", "text": prompt}]  # fmt: skip
            call = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True,
                tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                written = reference.generate(**call, max_new_tokens=48, do_sample=False)
            tokens = written[0, call["input_ids"].shape[1] :].tolist()
            expected = [t for t in tokens if t not in model.vocabulary.end_tokens]
            assert list(ask(model, features, prompt).tokens) == expected

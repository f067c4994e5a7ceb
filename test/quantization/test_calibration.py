from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edge_perception.errors import QuantizationError
from edge_perception.quantization.calibration import (
    digest_of,
    image_batches,
    image_files,
    load_processor,
    read_token_ids,
    text_batches,
)

CPU = "cpu"


def test_text_becomes_whole_windows_in_few_calls() -> None:
    calls = text_batches(torch.arange(100), window=8, tokens=40, batch_tokens=16, device=CPU)
    assert [call["input_ids"].shape for call in calls] == [(2, 8), (2, 8), (1, 8)]
    assert torch.equal(torch.cat([c["input_ids"] for c in calls]).flatten(), torch.arange(40))


class FakeProcessor:
    """Notes the conversation; answers with a word for each of its parts."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def apply_chat_template(self, conversation, **options):
        assert options["return_dict"]
        self.asked.append(conversation)
        return {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3, 2, 2)}


def test_images_become_calls_with_the_prompt(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    processor = FakeProcessor()
    calls = image_batches(image_files(tmp_path, 5), processor, CPU, prompt="What is it?")
    assert [sorted(call) for call in calls] == [["input_ids", "pixel_values"]] * 2
    parts = [part for conversation in processor.asked for part in conversation[0]["content"]]
    paths = [Path(part["path"]).name for part in parts if part["type"] == "image"]
    assert paths == ["a.JPG", "b.png"]
    assert {part["text"] for part in parts if part["type"] == "text"} == {"What is it?"}


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no images"):
        image_files(tmp_path, 4)


def test_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="image processor"):
        load_processor(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"], ids=["no tokenizer", "no text"])
def test_text_or_tokenizer_that_cannot_be_read_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(QuantizationError, match="cannot be read"):
        read_token_ids(tmp_path / "text.txt", tmp_path)


def test_digest_tells_calls_apart() -> None:
    words = torch.arange(6).view(1, 6)
    digests = {
        digest_of(calls)
        for calls in (
            [],
            [{"input_ids": words}],
            [{"input_ids": words.view(2, 3)}],
            [{"input_ids": words.int()}],
            [{"input_ids": words + 1}],
            [{"pixel_values": words}],
        )
    }
    assert len(digests) == 6
    assert digest_of([{"input_ids": words}]) == digest_of([{"input_ids": words.clone()}])

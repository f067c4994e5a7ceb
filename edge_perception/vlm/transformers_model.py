"""Any image-text model of transformers, from a local directory, as a ``VisionLanguageModel``.

The vision tower and the projector run by transformers' own code. The language tower is moved into
our decoder where that knows its family. Otherwise, and where vision features enter at several
layers (Qwen3-VL's deepstack), the whole model's forward runs, with our packed layers in place of
its linear ones. Weights come from safetensors, in any layout that the loaders know; code of a
checkpoint is never run.

A prompt that begins like the one before, about the very same features, keeps the cache of what they
share: of a second question about a picture only the question is run.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer

from edge_perception.core.image import UInt8Array
from edge_perception.core.sampling import Sampling
from edge_perception.errors import CheckpointError, DecodingError
from edge_perception.vlm.answering import ImageFeatures, Question, TokenSource, Vocabulary
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.decoder_tower import DecoderTower
from edge_perception.vlm.device_memory import memory_errors
from edge_perception.vlm.forward_tower import ForwardTower
from edge_perception.vlm.image_prompts import (
    LLAVA_TEMPLATE,
    ImagePrompt,
    image_prompt_of,
    image_token_of,
)
from edge_perception.vlm.int8_vision import to_int8_vision
from edge_perception.vlm.language_tower import AskedPrompt, LanguageTower, TowerSource
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.turns import Yield, go_on


@dataclass
class EncodedImage:
    """A picture's embeddings [T, hidden], and what else a model wants to know of it.

    ``output`` is the vision tower's whole output, kept for models run by their own forward.
    """

    embeddings: Tensor
    grid: Tensor | None
    output: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the embeddings."""
        return self.embeddings.nbytes


class TransformersModel:
    """A ``VisionLanguageModel`` on one torch device."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tower: LanguageTower,
        words: Words,
        picture: ImagePrompt,
        image_processor: Any,
    ) -> None:
        config = model.config.to_dict()  # type: ignore[operator,union-attr]
        self.name = name
        self.backend = tower.name
        self.image_sides_px = picture.sides_px(config)
        self.vocabulary = words.vocabulary
        self._model: nn.Module | None = model
        self._tower = tower
        self._words = words
        self._picture = picture
        self._image_processor = image_processor
        self._image_token = image_token_of(config)
        self._device = model.get_input_embeddings().weight.device  # type: ignore[operator]

    @torch.inference_mode()
    def encode_image(
        self, pixels_rgb: UInt8Array, side_px: int, between: Yield = go_on
    ) -> EncodedImage:
        """Encode by the vision tower; see ``VisionLanguageModel``."""
        model = self._opened().get_submodule("model")
        between()
        with memory_errors(), self._tower.work():
            inputs = self._image_inputs(model, pixels_rgb, side_px)
            output = model.get_image_features(**inputs)  # type: ignore[operator]
            found = output.pooler_output
            embeddings = found if isinstance(found, Tensor) else torch.cat(list(found))
            embeddings = embeddings.reshape(-1, embeddings.shape[-1])
            self._tower.synchronize()
        kept = output if self._tower.needs_output else None
        return EncodedImage(embeddings, inputs.get("image_grid_thw"), kept)

    def begin(self, features: ImageFeatures, question: Question, sampling: Sampling) -> TokenSource:
        """Tokenise a question; see ``VisionLanguageModel``."""
        model = self._opened()
        assert isinstance(features, EncodedImage)
        token_ids = torch.tensor(self._words.ask(question, self._image_token, features))
        prompt = AskedPrompt(token_ids.to(self._device), features, self._image_token)
        with self._tower.work():
            return TowerSource(self._tower, model, prompt, sampling)

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text, special ones left out."""
        return str(self._words.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def close(self) -> None:
        """Free the model; idempotent."""
        self._tower.close()
        self._model = None

    def _opened(self) -> nn.Module:
        if self._model is None:
            raise DecodingError("the model is closed")
        return self._model

    def _image_inputs(
        self, model: nn.Module, pixels_rgb: UInt8Array, side_px: int
    ) -> dict[str, Tensor]:
        """What the model's ``get_image_features`` takes of what its image processor makes."""
        options = self._picture.resizing(side_px)
        made = self._image_processor(images=[pixels_rgb], return_tensors="pt", **options)
        wanted = inspect.signature(model.get_image_features).parameters
        inputs = {name: value.to(self._device) for name, value in made.items() if name in wanted}
        pixels = inputs["pixel_values"]
        inputs["pixel_values"] = pixels.to(self._opened().dtype)  # type: ignore[arg-type]
        return inputs


class Words:
    """A checkpoint's tokenizer and chat template, and where a picture goes in a prompt."""

    def __init__(self, folder: Path, config: Mapping[str, Any], picture: ImagePrompt) -> None:
        self.tokenizer = _tokenizer(folder)
        self._special = _any_of(t.content for t in self.tokenizer.added_tokens_decoder.values())
        self._template = _chat_template(folder, self.tokenizer)
        self._before = self._ids_of(picture.before)
        self._after = self._ids_of(picture.after)
        self.vocabulary = Vocabulary(
            self.tokenizer.backend_tokenizer.to_str(),
            _vocabulary_size(config),
            _end_tokens(folder, config, self.tokenizer),
        )

    def ask(self, question: Question, image_token: int, features: EncodedImage) -> list[int]:
        """The token ids of a question about a picture."""
        text = self.tokenizer.apply_chat_template(
            self._messages(question),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(text, add_special_tokens=not self._begins_special(text))["input_ids"]
        if ids.count(image_token) != 1:
            raise CheckpointError(
                "the chat template leaves no place for a picture",
                expected="one image token",
                got=ids.count(image_token),
            )
        place = ids.index(image_token)
        head, tail = ids[:place], ids[place + 1 :]
        # A template may write the tokens around the picture itself, as Qwen's does.
        before = [] if head[-len(self._before) :] == self._before else self._before
        after = [] if tail[: len(self._after)] == self._after else self._after
        return [*head, *before, *[image_token] * len(features.embeddings), *after, *tail]

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        user = [{"type": "image"}, {"type": "text", "text": self._plain(question.text)}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
        if question.system:
            text = {"type": "text", "text": self._plain(question.system)}
            messages.insert(0, {"role": "system", "content": [text]})
        return messages

    def _plain(self, text: str) -> str:
        """Text without special tokens: nobody but the template may begin a picture or a turn."""
        # Again and again: what is left out of "<ima<image>ge>" leaves another token behind.
        while (cleaned := self._special.sub("", text)) != text:
            text = cleaned
        return text

    def _begins_special(self, text: str) -> bool:
        begin = self.tokenizer.bos_token
        return bool(begin) and text.startswith(begin)

    def _ids_of(self, tokens: Sequence[str]) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            raise CheckpointError("tokenizer lacks tokens of its family", got=missing)
        return [vocabulary[token] for token in tokens]


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern of all tokens that are not blank, the longest first; without any, of nothing."""
    visible = sorted(filter(str.strip, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, visible)))


def open_checkpoint(choice: ModelChoice) -> TransformersModel:
    """A model from a directory, ready to be asked.

    Raises ``CheckpointError`` for what cannot be loaded or run, ``DeviceMemoryError`` where memory
    is short.
    """
    device = torch.device(choice.device)
    if choice.threads and device.type == "cpu":
        torch.set_num_threads(choice.threads)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    config = _read_json(choice.path / "config.json")
    picture = image_prompt_of(config)
    words = Words(choice.path, config, picture)
    with memory_errors():
        model = load_model(choice.path, device=device, dtype=dtype)
        if choice.vision_int8:
            to_int8_vision(model)
        tower = _language_tower(model, choice)
    return TransformersModel(
        choice.path.name, model, tower, words, picture, _image_processor(choice.path)
    )


def _language_tower(model: nn.Module, choice: ModelChoice) -> LanguageTower:
    """Our decoder where it can run the model, otherwise the model itself."""
    vision = model.config.to_dict().get("vision_config") or {}  # type: ignore[operator,union-attr]
    if not vision.get("deepstack_visual_indexes"):
        try:
            return DecoderTower.open(take_tower(model), choice)
        except CheckpointError as error:
            if "family" not in error.problem:
                raise
    return ForwardTower(choice.context)


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each class has its own ways to fail
        raise CheckpointError(f"{folder.name} has no tokenizer that runs here ({error})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{folder.name} has no fast tokenizer", expected="tokenizer.json")
    return tokenizer


def _image_processor(folder: Path) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # each class has its own ways to fail
        raise CheckpointError(
            f"{folder.name} has no image processor that runs here ({error})",
            expected="preprocessor_config.json of a class of transformers",
        ) from error


def _chat_template(folder: Path, tokenizer: Any) -> str:
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(_read_json(folder / "chat_template.json")["chat_template"])
    return LLAVA_TEMPLATE


def _end_tokens(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: by generation_config.json, config.json or the tokenizer."""
    told: Any = None
    if (folder / "generation_config.json").is_file():
        told = _read_json(folder / "generation_config.json").get("eos_token_id")
    for section in (config, config.get("text_config") or {}):
        told = section.get("eos_token_id") if told is None else told
    told = tokenizer.eos_token_id if told is None else told
    ids = told if isinstance(told, list) else [told]
    if not all(isinstance(token, int) for token in ids):
        raise CheckpointError("the checkpoint names no end token", expected="eos_token_id")
    return frozenset(ids)


def _vocabulary_size(config: Mapping[str, Any]) -> int:
    text = config.get("text_config") or config
    size = text.get("vocab_size", config.get("vocab_size"))
    if not isinstance(size, int):
        raise CheckpointError("config.json: vocab_size", expected="a whole number", got=size)
    return size


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path.name} ({error})") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{path.name} holds no object")
    return read

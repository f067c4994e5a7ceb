"""The embedded vision-language model on ONNX Runtime: a CPU, and no torch.

A picture is encoded up to the last token that does not depend on the question: the vision tower,
and then the language tower over the picture's tokens, whose cache is what an ``EncodedPicture``
holds. A question about it costs its own dozen tokens only, and the next question starts from the
same cache again.

A manifest names the checkpoint directory beside it:

    runtime: onnxruntime
    name: demo_vlm
    checkpoint: .
    image_sides_px: [192, 256, 320]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import yaml
from tokenizers import Tokenizer

from edge_perception.core.image import UInt8Array
from edge_perception.core.language_model import read_shape
from edge_perception.core.sampling import Sampling
from edge_perception.errors import CheckpointError, DecodingError, ManifestError
from edge_perception.vlm.answering import Question, TokenMask, Vocabulary
from edge_perception.vlm.host_sampling import choose_token
from edge_perception.vlm.nibbles import NibbleCheckpoint
from edge_perception.vlm.onnx_graph import embedding_table, language_graph, vision_graph
from edge_perception.vlm.patches import patch_positions, picture_patches
from edge_perception.vlm.turns import Yield, go_on

FloatArray = npt.NDArray[np.float32]
Cache = tuple[FloatArray, ...]
"""Keys and values of every layer, each float32 (1, KV heads, tokens, head)."""

_BEFORE, _AFTER = "<s><fake_token_around_image><global-img>", "<fake_token_around_image>"
_QUESTION, _ANSWER, _END = "<user>", "<assistant>", "<end_of_utterance>"


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as the language tower remembers it; ``tokens`` are the cache's length."""

    cache: Cache
    tokens: int

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(part.nbytes for part in self.cache)


class OnnxVisionLanguageModel:
    """A ``VisionLanguageModel``: both towers on ONNX Runtime's CPU provider. Not thread-safe."""

    backend = "onnxruntime"

    def __init__(
        self,
        checkpoint: Path,
        *,
        name: str,
        image_sides_px: Sequence[int],
        threads: int = 0,
        vision_int8: bool = False,
    ) -> None:
        """Read a checkpoint in AutoAWQ's layout; ``threads`` 0 means one a physical core.

        Raises ``CheckpointError`` for what is missing or is no such model.
        """
        self.name = name
        self.image_sides_px = tuple(sorted(image_sides_px))
        weights = NibbleCheckpoint(checkpoint)
        shape = read_shape(weights.config)
        vision = weights.config["vision_config"]
        self._patch_px, self._pooling = (
            int(vision["patch_size"]),
            int(weights.config["scale_factor"]),
        )
        self._learnt = int(vision["image_size"]) // self._patch_px
        self._capacity = shape.max_positions
        self._embeddings = embedding_table(weights)
        self._empty: Cache = (np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32),) * (
            2 * shape.layers
        )
        self._vision: Any = _session(vision_graph(weights, int8=vision_int8), threads)
        self._language: Any = _session(language_graph(weights, self._capacity), threads)
        self._read_tokenizer(checkpoint / "tokenizer.json", shape.vocab_size)
        self._latest: _Answer | None = None

    def _read_tokenizer(self, path: Path, size: int) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise CheckpointError(f"{path.name} cannot be read ({error})") from error
        # What people write is text, also where it looks like one of the model's own marks.
        self._tokenizer.encode_special_tokens = True
        self.vocabulary = Vocabulary(text, size, frozenset([self._id(_END)]))
        self._before = [self._id(mark) for mark in _BEFORE.replace("><", "> <").split()]
        self._after = [self._id(_AFTER)]

    def _id(self, mark: str) -> int:
        found = self._tokenizer.token_to_id(mark)
        if found is None:
            raise CheckpointError("tokenizer.json lacks a mark of this model", expected=mark)
        return int(found)

    def encode_image(
        self, pixels_rgb: UInt8Array, side_px: int, between: Yield = go_on
    ) -> EncodedPicture:
        if side_px not in self.image_sides_px:
            raise DecodingError("image side", expected=f"{self.image_sides_px}", got=side_px)
        sessions = self._opened()
        geometry = (side_px, self._patch_px, self._pooling)
        feed = {
            "patches": picture_patches(pixels_rgb, *geometry),
            "positions": patch_positions(*geometry, self._learnt),
        }
        seen = sessions[0].run(None, feed)[0][0]
        between()
        rows = (self._embeddings[self._before], seen, self._embeddings[self._after])
        prompt = np.concatenate(rows)
        _, cache = self.run(prompt, self._empty)
        return EncodedPicture(cache, len(prompt))

    def begin(self, features: EncodedPicture, question: Question, sampling: Sampling) -> _Answer:
        text = f"{question.system}\n{question.text}" if question.system else question.text
        written = self._tokenizer.encode(text, add_special_tokens=False).ids
        tokens = [self._id(_QUESTION), *written, self._id(_ANSWER)]
        room = self._capacity - features.tokens
        if len(tokens) >= room:
            raise DecodingError(
                "the question does not fit into the model's context",
                expected=f"at most {room - 3} tokens", got=len(written),
            )  # fmt: skip
        self._latest = _Answer(self, features, tokens, sampling, self._capacity)
        return self._latest

    def run(self, embeddings: FloatArray, cache: Cache) -> tuple[FloatArray, Cache]:
        """The language tower over (T, width) behind a cache: logits (V,) and the cache grown."""
        length = cache[0].shape[2] + len(embeddings)
        feed = {
            "embeddings": embeddings[None],
            "last": np.array([length - 1], np.int32),
            "length": np.array([length], np.int32),
        }
        for place, part in enumerate(cache):
            feed[f"{('key', 'value')[place % 2]}_{place // 2}"] = part
        logits, *grown = self._opened()[1].run(None, feed)
        return logits[0], tuple(grown)

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """Embeddings (T, width) of tokens."""
        return self._embeddings[list(tokens)]

    def is_latest(self, answer: _Answer) -> bool:
        """Whether no other answer was begun since."""
        return self._latest is answer

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def close(self) -> None:
        self._vision = self._language = self._latest = None

    def _opened(self) -> tuple[Any, Any]:
        if self._vision is None:
            raise DecodingError("the model is closed", mend="Open it again.")
        return self._vision, self._language


class _Answer:
    """A ``TokenSource`` over the model's language tower."""

    def __init__(
        self,
        model: OnnxVisionLanguageModel,
        picture: EncodedPicture,
        question: Sequence[int],
        sampling: Sampling,
        capacity: int,
    ) -> None:
        self.prompt_tokens = picture.tokens + len(question)
        self._model, self._cache, self._pending = model, picture.cache, list(question)
        self._sampling, self._capacity = sampling, capacity
        self._length = picture.tokens

    @property
    def room(self) -> int:
        return self._capacity - self._length - len(self._pending)

    def first(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        return self.next(mask, between)

    def next(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        if not self._model.is_latest(self):
            raise DecodingError("the answer is over: another was begun")
        if self.room < 0:
            raise DecodingError("the model's context is full", expected=f"{self._capacity} tokens")
        between()
        logits, self._cache = self._model.run(self._model.embed(self._pending), self._cache)
        self._length += len(self._pending)
        token = choose_token(logits, self._sampling, self._length - 1, mask)
        self._pending = [token]
        return token


def _session(model: bytes, threads: int) -> Any:
    """A session whose threads do not spin: see ``backends.onnxruntime``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes straight from Exception
        raise CheckpointError(f"ONNX Runtime cannot run this model ({error})") from error


def open_onnx_model(
    manifest: Path, *, threads: int = 0, vision_int8: bool = False
) -> OnnxVisionLanguageModel:
    """Open the model that a manifest names; raises ``ManifestError`` and ``CheckpointError``."""
    try:
        mapping = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"cannot read manifest {str(manifest)!r}: {error}") from error
    return OnnxVisionLanguageModel(
        manifest.parent / _text(mapping, "checkpoint"),
        name=_text(mapping, "name"),
        image_sides_px=_sides(mapping),
        threads=threads,
        vision_int8=vision_int8,
    )


def _text(mapping: object, key: str) -> str:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    if not isinstance(value, str):
        raise ManifestError(f"manifest: {key}", expected="text", got=value)
    return value


def _sides(mapping: Mapping[str, Any]) -> list[int]:
    sides = mapping.get("image_sides_px")
    if not isinstance(sides, list) or not sides or not all(isinstance(s, int) for s in sides):
        raise ManifestError("manifest: image_sides_px", expected="whole numbers", got=sides)
    return sides

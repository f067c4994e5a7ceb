"""A vision-language model that reads a number drawn into the picture, and says it.

It speaks bytes: token i is byte i, 256 ends an answer. Written by hand, so that tests of what is
around a model need no weights, no torch and no tokenizer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_perception.core.image import UInt8Array
from edge_perception.core.sampling import Sampling
from edge_perception.errors import DecodingError, DeviceMemoryError
from edge_perception.vlm.answering import Question, TokenMask, Vocabulary
from edge_perception.vlm.turns import Yield, go_on

END = 256
_BITS = 16


def draw_number(number: int, height: int = 120, width: int = 160) -> UInt8Array:
    """A picture that shows a number of 16 bits as 4x4 fields of black and white."""
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], np.uint8).reshape(4, 4)
    fields = np.kron(bits * 200 + 20, np.ones((height // 4, width // 4), np.uint8))
    return np.repeat(fields[:, :, None], 3, axis=2)


def read_number(pixels_rgb: UInt8Array) -> int:
    """The number that a picture shows."""
    height, width = (side // 4 for side in pixels_rgb.shape[:2])
    middle = pixels_rgb[height // 2 :: height, width // 2 :: width][:4, :4, 0]
    return sum(1 << bit for bit, value in enumerate(middle.reshape(-1)) if value > 127)


def byte_tokenizer() -> str:
    """A ``tokenizer.json`` of 256 bytes and an end token, without merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {
        "id": END, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    vocabulary = {letters[byte]: byte for byte in range(256)} | {"<end>": END}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return json.dumps(
        {
            "version": "1.0", "added_tokens": [end], "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level, "model": model,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class FakeFeatures:
    number: int
    side_px: int
    nbytes: int = 4


@dataclass
class FakeSource:
    """Writes a text byte by byte; a mask makes it take the likeliest byte that is left."""

    model: FakeModel
    text: bytes
    prompt_tokens: int
    written: int = 0

    @property
    def room(self) -> int:
        return self.model.context - self.prompt_tokens - self.written

    def first(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        return self._choose(mask, between)

    def next(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        return self._choose(mask, between)

    def _choose(self, mask: TokenMask | None, between: Yield) -> int:
        between()
        time.sleep(self.model.token_s)
        self.model.on_token()
        token = self.text[self.written] if self.written < len(self.text) else END
        self.written += 1
        if mask is not None and not mask[token]:
            return int(np.flatnonzero(mask)[0])
        return token


@dataclass
class FakeModel:
    """Says "this is frame N", or N alone where the question ends in "number?".

    ``memory_px`` is the largest side that memory holds, ``on_token`` is called before each token.
    """

    image_sides_px: tuple[int, ...] = (112, 224)
    context: int = 4096
    encode_s: float = 0.0
    token_s: float = 0.0
    memory_px: int = 10_000
    on_token: Callable[[], None] = lambda: None
    name: str = "fake"
    backend: str = "none"
    encoded: list[int] = field(default_factory=list)
    closed: bool = False
    vocabulary: Vocabulary = field(
        default_factory=lambda: Vocabulary(byte_tokenizer(), 260, frozenset({END}))
    )

    def encode_image(
        self, pixels_rgb: UInt8Array, side_px: int, between: Yield = go_on
    ) -> FakeFeatures:
        if side_px > self.memory_px:
            raise DeviceMemoryError(f"no memory for {side_px} px")
        between()
        time.sleep(self.encode_s * (side_px / self.image_sides_px[-1]) ** 2)
        self.encoded.append(side_px)
        return FakeFeatures(read_number(pixels_rgb), side_px)

    def begin(self, features: FakeFeatures, question: Question, sampling: Sampling) -> FakeSource:
        prompt = f"{question.system}{question.text}".encode()
        if len(prompt) >= self.context:
            raise DecodingError("the prompt does not fit", got=len(prompt))
        plain = question.text.endswith("number?")
        text = str(features.number) if plain else f"this is frame {features.number}"
        return FakeSource(self, text.encode(), len(prompt))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < END).decode(errors="replace")

    def close(self) -> None:
        self.closed = True

"""How the next token of an answer is chosen from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.errors import DecodingError


@dataclass(frozen=True)
class Sampling:
    """How to choose: ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every word."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise DecodingError("temperature", expected="0 to 100", got=self.temperature)
        if self.top_k < 0:
            raise DecodingError("top_k", expected="0 (all words) or more", got=self.top_k)
        if not 0.0 < self.top_p <= 1.0:
            raise DecodingError("top_p", expected="above 0, up to 1", got=self.top_p)
        if not 0 <= self.seed < 1 << 63:
            raise DecodingError("seed", expected="0 to 2^63 - 1", got=self.seed)


GREEDY = Sampling()

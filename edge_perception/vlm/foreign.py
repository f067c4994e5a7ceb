"""Any other language model of transformers, run by its own forward, as a ``LanguageModel``.

For families that ``core.language_model`` does not know: slower, since each step is eager Python,
but with our packed layers in place of its linear ones, our sampling and the same interface. On a
GPU ``use_kernels`` lets those layers run by our kernels where rows are few: in decoding. Such a
forward promises nothing about the bits of a row among others, so a draft is verified by single
steps: the answer stays that of greedy decoding, and speculation gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from edge_perception.errors import DecodingError
from edge_perception.vlm.language_model import Prompt, Yield, check_room, go_on
from edge_perception.vlm.operators import SAME_ORDER_ROWS, Operators
from edge_perception.vlm.packed_linear import PackedEmbedding, PackedLinear
from edge_perception.vlm.sampling import GREEDY, Sampling, choose_tokens


class KernelLinear(PackedLinear):
    """A packed layer that runs 1 to 8 rows of FP16 by ``operators``, and more as it did before."""

    def __init__(self, layer: PackedLinear, operators: Operators) -> None:
        super().__init__(layer.packed)
        self._operators = operators
        self._weight = layer.packed

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to float ``inputs`` [..., K]."""
        rows = inputs.reshape(-1, self.in_features)
        if inputs.dtype != torch.float16 or not 0 < len(rows) <= SAME_ORDER_ROWS:
            return super().forward(inputs)
        nothing = rows.new_zeros(
            len(rows), self.out_features
        )  # what the operator adds its result to
        result = self._operators.linear_add(rows, self._weight, nothing)
        return result.view(*inputs.shape[:-1], self.out_features)


def use_kernels(model: nn.Module, operators: Operators) -> int:
    """Put ``KernelLinear`` in the place of every packed linear layer; returns how many there were.

    The model must be where its operators compute, and stay there: no weight is copied.
    """
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, PackedLinear) and not isinstance(layer, PackedEmbedding)
    ]
    for name, layer in found:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, KernelLinear(layer, operators))
    return len(found)


class ForeignModel:
    """A transformers model (``assembly.load_model``) decoding one sequence; not thread-safe.

    The cache grows with the sequence up to ``capacity`` tokens.
    """

    def __init__(self, model: nn.Module, *, capacity: int) -> None:
        if capacity < 1:
            raise DecodingError("context of the model", expected="1 or more", got=capacity)
        self.capacity = capacity
        self._model = model
        self._device = next(model.parameters()).device
        self.start(GREEDY)

    @property
    def length(self) -> int:
        return self._length

    def start(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._cache = DynamicCache()
        self._length = 0
        self._pending: int | None = None

    def prefill(self, prompt: Prompt, between: Yield = go_on) -> int:
        if prompt.positions is not None:
            raise DecodingError(
                "positions of its own for a model run by transformers' forward",
                expected="a prompt without positions",
            )
        check_room(self._length, len(prompt), self.capacity)
        return self._run(prompt)

    def step(self, between: Yield = go_on) -> int:
        if self._pending is None:
            raise DecodingError("no token to go on from", mend="Prefill a prompt first.")
        check_room(self._length, 1, self.capacity)
        return self._run(Prompt.of([self._pending]))

    def verify(self, draft: Sequence[int], between: Yield = go_on) -> list[int]:
        check_room(self._length, 1 + len(draft), self.capacity)
        chosen = [self.step(between)]
        for guess in draft:
            if guess != chosen[-1]:
                break
            chosen.append(self.step(between))
        return chosen

    def rewind(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise DecodingError(
                "rewinding", expected=f"a length from 0 to {self._length}", got=length
            )
        if length < self._length:
            self._cache.crop(length - self._length)  # less than nothing: as many as are dropped
        self._length = length
        self._pending = None

    @torch.inference_mode()
    def _run(self, prompt: Prompt) -> int:
        inputs: dict[str, Tensor] = {"input_ids": prompt.token_ids[None].to(self._device)}
        if prompt.embeddings is not None:
            inputs = {"inputs_embeds": prompt.embeddings[None].to(self._device)}
        output = self._model(
            **inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._length += len(prompt)
        slots = torch.tensor([self._length - 1], device=self._device)
        self._pending = int(choose_tokens(output.logits[0, -1:], self.sampling, slots))
        return self._pending

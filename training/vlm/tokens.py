"""The small tokenizer: byte-level BPE over the texts of the rendered world.

Any text can be encoded (bytes are the last resort), common words are one token. Special tokens are
those that transformers' Idefics3 processor writes around a picture, and two that mark the turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edge_perception.world.captions import LOCATION_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAD, BOS, EDGE, GLOBAL, IMAGE, USER, ASSISTANT, END = (
    "<pad>",
    "<s>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<user>",
    "<assistant>",
    "<end_of_utterance>",
)
SPECIAL_TOKENS = (PAD, BOS, EDGE, GLOBAL, IMAGE, USER, ASSISTANT, END)
"""Their ids are their places."""

PAD_ID, BOS_ID, EDGE_ID, GLOBAL_ID, IMAGE_ID, USER_ID, ASSISTANT_ID, END_ID = range(8)

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' }}{% else %}"
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<user>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<end_of_utterance>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""The layout of a conversation, for transformers' processor."""


def train_tokenizer(texts: Iterable[str], size: int = 1024) -> Tokenizer:
    """A tokenizer with at most ``size`` tokens, locations included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(LOCATION_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in LOCATION_TOKENS])
    return tokenizer


def encode_turns(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """``<user>`` question ``<assistant>`` answer ``<end_of_utterance>`` of each pair, as ids."""
    texts = [f"{USER}{prompt}{ASSISTANT}{answer}{END}" for prompt, answer in pairs]
    batch = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [list(encoding.ids) for encoding in batch]


def prefix_ids(image_tokens: int) -> list[int]:
    """What stands before the first turn: the picture, as Idefics3's processor lays it out."""
    return [BOS_ID, EDGE_ID, GLOBAL_ID, *[IMAGE_ID] * image_tokens, EDGE_ID]

"""Calibration: text, and for vision-language models images with text, as forward calls.

Only data at hand is used: a text file, a folder of images. The tokenizer and the image processor
are the checkpoint's own, through transformers' classes, without code from the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from edge_perception.errors import QuantizationError
from edge_perception.quantization.evaluate import windows_of
from edge_perception.quantization.streaming import Batch
from edge_perception.vlm.assembly import open_weights

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PROMPT = "Describe this image in detail."


class Processor(Protocol):
    """What is needed of a transformers processor."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Mapping[str, Tensor]:
        """Turn a conversation with images into a forward call's tensors."""


def read_token_ids(text: Path, tokenizer: Path) -> Tensor:
    """A text file's token ids, int64 [T], without special tokens.

    ``tokenizer`` is a checkpoint folder or a ``tokenizer.json``. Raises ``QuantizationError``.
    """
    if not text.is_file():
        raise QuantizationError("no such text", expected="a text file (UTF-8)", got=str(text))
    try:
        if tokenizer.is_file():
            encode = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        else:
            encode = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        words = text.read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError) as error:
        raise QuantizationError(
            f"text or tokenizer cannot be read ({error})",
            expected="UTF-8 text and a folder with tokenizer.json",
            got=(str(text), str(tokenizer)),
            mend="Name a tokenizer with --tokenizer.",
        ) from error
    # A whole file is longer than any model's context: it is cut into windows afterwards.
    ids = encode(words, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def begin_token(model: Path) -> int:
    """The begin-of-text token that a checkpoint's configuration names."""
    with open_weights(model) as source:
        config = source.config
    found = config.get("text_config", config).get("bos_token_id")
    if not isinstance(found, int):
        raise QuantizationError(
            "the checkpoint names no begin-of-text token",
            expected="bos_token_id in config.json",
            got=found,
            mend="Leave --bos away.",
        )
    return found


def text_batches(
    token_ids: Tensor,
    *,
    window: int,
    tokens: int,
    batch_tokens: int,
    device: str,
    bos: int | None = None,
) -> list[Batch]:
    """Forward calls of whole windows, ``tokens`` in all (less if the text is shorter).

    ``bos``, where it is given, begins every window.
    """
    windows = windows_of(token_ids, window, max(1, tokens // window), bos=bos)
    size = max(1, batch_tokens // window)
    stacked = [torch.cat(windows[i : i + size]) for i in range(0, len(windows), size)]
    return [{"input_ids": batch.to(device)} for batch in stacked]


def image_files(folder: Path, count: int) -> list[Path]:
    """Up to ``count`` images of a folder, by name."""
    found = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise QuantizationError(
            "no images to calibrate with",
            expected=f"files ending in {' '.join(IMAGE_SUFFIXES)}",
            got=str(folder),
        )
    return found[:count]


def image_batches(
    images: Sequence[Path], processor: Processor, device: str, prompt: str = PROMPT
) -> list[Batch]:
    """One forward call an image: the image and ``prompt``, in the model's chat template."""
    return [
        {name: value.to(device) for name, value in _conversation(image, processor, prompt).items()}
        for image in images
    ]


def _conversation(image: Path, processor: Processor, prompt: str) -> Mapping[str, Tensor]:
    content = [{"type": "image", "path": str(image)}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def load_processor(folder: Path) -> Processor:
    """A checkpoint's processor; raises ``QuantizationError`` where it has none."""
    try:
        processor: Processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise QuantizationError(
            f"the checkpoint's image processor cannot be loaded ({error})",
            expected="preprocessor_config.json and a chat template",
            got=str(folder),
        ) from error
    return processor


def digest_of(batches: Sequence[Batch]) -> str:
    """A digest of all calibration tensors: a resumed run must see the same."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            value = batch[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

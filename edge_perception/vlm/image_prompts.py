"""How each family of transformers' vision-language models takes a picture into its prompt.

transformers' processors do this too, but they drag torchvision and video decoding along, and they
tokenise and resize in one call, while here a picture is encoded once and asked about many times. So
what a family does is said in a table: which resolutions make sense, what its image processor is
told for one of them, and which tokens stand around the picture's own.

Pictures are never cut into tiles (Idefics3, SmolVLM and InternVL can): the tiles multiply the time
to the first token by five or more, and a region asked for by the prompt serves the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_perception.errors import CheckpointError

Config = Mapping[str, Any]

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ message['content'][0]['text'] }} {% else %}USER: <image>\n"
    "{{ message['content'][1]['text'] }} ASSISTANT:{% endif %}{% endfor %}"
)
"""For checkpoints without a chat template: the convention of LLaVA 1.5."""


@dataclass(frozen=True)
class ImagePrompt:
    """What one family does.

    ``before`` and ``after`` are the tokens around a picture's. ``sides_px`` gives the resolutions
    by a ``config.json``, ``resizing`` what the image processor is told for one of them.
    """

    sides_px: Callable[[Config], tuple[int, ...]]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    resizing: Callable[[int], Mapping[str, Any]] = field(default=lambda _: {})


def _own_side(config: Config) -> tuple[int, ...]:
    """The one resolution that a vision tower with fixed positions was made for."""
    side = config.get("vision_config", {}).get("image_size")
    side = side[0] if isinstance(side, (list, tuple)) else side
    if not isinstance(side, int):
        raise CheckpointError("config.json: vision_config.image_size", expected="px", got=side)
    return (side,)


def _qwen_sides(config: Config) -> tuple[int, ...]:
    """Any multiple of a merged patch: a quarter of a megapixel down to a few hundred pixels."""
    vision = config.get("vision_config", {})
    step = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 2))
    return tuple(step * count for count in (8, 12, 16, 24))


def _qwen_resizing(side_px: int) -> Mapping[str, Any]:
    """Both bounds are numbers of pixels, whatever their names say."""
    return {"size": {"shortest_edge": 56 * 56, "longest_edge": side_px * side_px}}


_WHOLE = {"do_image_splitting": False}
_IDEFICS3 = ImagePrompt(
    _own_side,
    before=("<fake_token_around_image>", "<global-img>"),
    after=("<fake_token_around_image>",),
    resizing=lambda side_px: {
        **_WHOLE, "size": {"longest_edge": side_px}, "max_image_size": {"longest_edge": side_px},
    },
)  # fmt: skip
_QWEN = ImagePrompt(_qwen_sides, resizing=_qwen_resizing)
_FAMILIES: Mapping[str, ImagePrompt] = {
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "internvl": ImagePrompt(
        _own_side,
        before=("<img>",),
        after=("</img>",),
        resizing=lambda side_px: {
            "crop_to_patches": False, "size": {"height": side_px, "width": side_px},
        },
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}  # fmt: skip
_PLAIN = ImagePrompt(_own_side)


def image_prompt_of(config: Config) -> ImagePrompt:
    """The family's ways; of a family that is not in the table, those of LLaVA."""
    return _FAMILIES.get(str(config.get("model_type")), _PLAIN)


def image_token_of(config: Config) -> int:
    """The id of the token that stands where a picture's features go."""
    for name in ("image_token_id", "image_token_index"):
        token = config.get(name)
        if isinstance(token, int):
            return token
    raise CheckpointError(
        "config.json names no image token", expected="image_token_id of a vision-language model"
    )

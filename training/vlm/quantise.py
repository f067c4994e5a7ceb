"""Quantise the exported model to INT4 twice, by AWQ and by rounding alone, with our own toolkit.

    python -m training.vlm.quantise --model FOLDER-fp16 --data TRAIN --out FOLDER

Writes FOLDER-awq and FOLDER-rtn in AutoAWQ's layout, both towers in 4 bits, groups of 64. AWQ is
calibrated with pictures of the training set, each with a question and its answer behind it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.recipe import recipe_for
from edge_perception.vlm.assembly import stored_dtype
from edge_perception.vlm.loaders.checkpoint import read_json
from training.vlm.batch import normalised
from training.vlm.exam import Asked, read_questions
from training.vlm.prepare import read_square
from training.vlm.tokens import encode_turns, prefix_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

GROUP_SIZE = 64
_TURNS = 8


def calibration_batches(
    questions: Sequence[Asked],
    folder: Path,
    tokenizer: Tokenizer,
    side: int,
    image_tokens: int,
    pictures: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Mapping[str, Tensor]]:
    """Forward calls of a picture with a conversation of questions about it."""
    by_image: dict[str, list[Asked]] = {}
    for asked in questions:
        by_image.setdefault(asked.image, []).append(asked)
    batches: list[Mapping[str, Tensor]] = []
    for name, about in list(by_image.items())[:pictures]:
        turns = encode_turns(tokenizer, [(a.question, a.answer) for a in about[:_TURNS]])
        ids = [*prefix_ids(image_tokens), *np.concatenate(turns).tolist()]
        image = torch.from_numpy(read_square(folder / "images" / name, side))
        pixels = normalised(image.permute(2, 0, 1)[None, None].float() / 255)
        batches.append(
            {
                "input_ids": torch.tensor([ids], device=device),
                "attention_mask": torch.ones(1, len(ids), dtype=torch.int64, device=device),
                "pixel_values": pixels.to(device, dtype),
            }
        )
    return batches


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="quantise the embedded model")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a rendered data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=96, help="to calibrate AWQ with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16", help="what is not quantised, and computing")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    questions = read_questions(options.data)
    side, image_tokens = _picture_size(options.model)
    device, dtype = torch.device(options.device), stored_dtype({"dtype": options.dtype})
    batches = calibration_batches(
        questions, options.data, tokenizer, side, image_tokens, options.pictures, device, dtype
    )
    for method in ("awq", "rtn"):
        job = Job(
            model=options.model,
            out=options.out.with_name(f"{options.out.name}-{method}"),
            recipe=recipe_for(method, WeightFormat(4, GROUP_SIZE)),
            device=options.device,
            dtype=options.dtype,
            vision=True,
        )
        calibrated = batches if job.recipe.needs_calibration else ()
        notes = {"calibration": f"{len(batches)} rendered pictures with questions and answers"}
        outcome = run_job(job, calibrated, restart=True, notes=notes)
        print(f"{method}: {outcome.bytes / 1e6:.1f} MB in {outcome.seconds:.1f} s")


def _picture_size(model: Path) -> tuple[int, int]:
    """Side in pixels and number of tokens of a picture."""
    config = read_json(model / "config.json")
    vision = config["vision_config"]
    side = int(vision["image_size"])
    return side, (side // int(vision["patch_size"]) // int(config["scale_factor"])) ** 2


if __name__ == "__main__":
    main()

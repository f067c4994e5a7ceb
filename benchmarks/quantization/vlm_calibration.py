"""Do images help in calibrating a vision-language model? The language tower, quantised both ways.

    python -m benchmarks.quantization.vlm_calibration --model FP16_DIR --train DATA --exam DATA \
        --work DIR --out FILE.json

The embedded model's language tower is quantised from the same conversations once behind their
pictures and once without them, as tools do that calibrate on text alone; the vision tower stays in
float, so that nothing else differs. Both are judged on held-out scenes: exactly right answers, and
the divergence KL(float || quantised) of the answers' tokens, behind the pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from edge_perception.core.machine import describe_machine, utc_now
from edge_perception.quantization.encoding import ExportLayout
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.recipe import recipe_for
from edge_perception.vlm.assembly import load_model
from training.vlm.batch import answer_places
from training.vlm.exam import Asked, read_questions, right_answers
from training.vlm.model import ModelSize
from training.vlm.quantise import calibration_batches
from training.vlm.tokens import ASSISTANT_ID, IMAGE_ID, PAD_ID

RUNS = [(bits, method) for bits in (4, 3) for method in ("rtn", "awq", "awq+gptq")]


def without_pictures(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same conversations as text alone: no pictures, and none of their tokens."""
    texts = []
    for batch in batches:
        ids = batch["input_ids"]
        kept = ids[ids != IMAGE_ID].unsqueeze(0)
        texts.append({"input_ids": kept, "attention_mask": torch.ones_like(kept)})
    return texts


@torch.no_grad()
def answer_log_odds(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Log-probabilities [T, V] at the answers' tokens of each conversation."""
    found = []
    for batch in batches:
        places = answer_places(batch["input_ids"], ASSISTANT_ID, PAD_ID)[0]
        logits = model(**batch).logits[0][places]
        found.append(functional.log_softmax(logits.float(), dim=-1))
    return found


def divergence(reference: Sequence[Tensor], measured: Sequence[Tensor]) -> float:
    """Mean KL(reference || measured) over all tokens, nats."""
    sums = [(p.exp() * (p - q)).sum(-1) for p, q in zip(reference, measured, strict=True)]
    return float(torch.cat(sums).mean())


class Exam:
    """The held-out questions, and what the float model says to some of them."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.folder = arguments.exam
        self.device = device
        self.questions = read_questions(arguments.exam)[: arguments.most]
        self.tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
        self.batches = conversations(
            self.questions, arguments.exam, self.tokenizer, arguments.pictures, device
        )
        model = self.load(arguments.model)
        self.reference = answer_log_odds(model, self.batches)
        self.float_share = self.share_right(model)

    def load(self, checkpoint: Path) -> nn.Module:
        """A checkpoint in float32."""
        return load_model(checkpoint, device=self.device, dtype=torch.float32)

    def share_right(self, model: nn.Module) -> float:
        """The share of questions answered exactly right."""
        right = right_answers(
            model, self.questions, self.folder, self.tokenizer,
            device=self.device, side=ModelSize().image_px,
        )  # fmt: skip
        return sum(right) / len(right)

    def judge(self, checkpoint: Path) -> dict[str, float]:
        """A checkpoint's figures."""
        model = self.load(checkpoint)
        kl = divergence(self.reference, answer_log_odds(model, self.batches))
        return {"exact": self.share_right(model), "kl": kl}


def conversations(
    questions: Sequence[Asked], folder: Path, tokenizer: Tokenizer, pictures: int,
    device: torch.device,
) -> list[Mapping[str, Tensor]]:  # fmt: skip
    """Forward calls of a picture with questions about it, float32."""
    size = ModelSize()
    tokens = size.image_tokens(size.image_px)
    return calibration_batches(
        questions, folder, tokenizer, size.image_px, tokens, pictures, device, torch.float32
    )


def measure(arguments: argparse.Namespace) -> None:
    """Every method at 4 and 3 bits, calibrated both ways; written anew after each."""
    device = torch.device(arguments.device)
    exam = Exam(arguments, device)
    print(f"float {exam.float_share:.4f}", flush=True)
    seen = conversations(
        read_questions(arguments.train), arguments.train, exam.tokenizer, arguments.pictures, device
    )
    calibrations = {"images and text": seen, "text alone": without_pictures(seen)}
    rows: list[dict[str, Any]] = []
    report = {
        "schema": 1, "machine": describe_machine(), "date": utc_now(),
        "commit": arguments.commit, "float_exact": exam.float_share,
        "questions": len(exam.questions), "pictures_for_kl": len(exam.batches),
        "pictures_for_calibration": len(seen), "group_size": 64, "runs": rows,
    }  # fmt: skip
    for (bits, method), (name, batches) in product(RUNS, calibrations.items()):
        recipe = recipe_for(method, WeightFormat(bits, 64))
        if not recipe.needs_calibration:
            if name == "text alone":
                continue
            name, batches = "none", []
        out = arguments.work / f"{method}-{bits}-{name.replace(' ', '-')}"
        layout = ExportLayout.COMPRESSED_TENSORS
        job = Job(arguments.model, out, recipe, layout, arguments.device, "float32")
        run_job(job, batches, restart=True)
        rows.append({"bits": bits, "method": method, "calibration": name, **exam.judge(out)})
        print(rows[-1], flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--exam", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--most", type=int, help="look at so many questions only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="unknown")
    arguments = parser.parse_args()
    measure(arguments)


if __name__ == "__main__":
    main()

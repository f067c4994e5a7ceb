"""How often the embedded model answers exactly right: in FP16, by AWQ and by rounding, and blind.

    python -m benchmarks.vlm.accuracy --data EXAM --fp16 DIR --awq DIR --rtn DIR --out FILE.json

EXAM is a data set of held-out scenes, whose meshes, textures and lights training never saw. Every
checkpoint goes through the package's own loader. ``blank`` is the FP16 model shown a grey picture:
what can be answered from the questions alone. ``onnx_int4`` is the AWQ checkpoint on ONNX Runtime
on the CPU, writing its answers token by token as the node has it do. The interval is a bootstrap
over scenes, since questions about one scene fail together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from edge_perception.core.machine import describe_machine, utc_now
from edge_perception.core.sampling import GREEDY
from edge_perception.vlm.answering import Limits, Question, complete
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.onnx_model import OnnxVisionLanguageModel
from training.vlm.exam import read_questions, right_answers, shares_by_kind
from training.vlm.model import ModelSize, smaller_sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.vlm.exam import Asked

_RESAMPLES = 2000
_MOST_TOKENS = 16


def interval(right: NDArray[np.float64], scenes: Sequence[str]) -> list[float]:
    """The middle 95% of the mean of ``right`` (or of a difference) over resampled scenes."""
    names, owner = np.unique(np.array(scenes), return_inverse=True)
    sums = np.bincount(owner, right, len(names))
    counts = np.bincount(owner, minlength=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [round(float(edge), 4) for edge in np.percentile(means, [2.5, 97.5])]


def measure(
    checkpoint: Path, questions: Sequence[Asked], data: Path, device: torch.device, side: int,
    *, blank: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """1 for every question that the checkpoint answers exactly right, else 0."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = load_model(checkpoint, device=device, dtype=dtype)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    right = right_answers(model, questions, data, tokenizer, device=device, side=side, blank=blank)
    return np.array(right, np.float64)


def measure_onnx(
    checkpoint: Path,
    questions: Sequence[Asked],
    data: Path,
    side: int,
    *,
    vision_int8: bool = False,
) -> NDArray[np.float64]:
    """The same by the CPU runtime, each answer written greedily to its end."""
    model = OnnxVisionLanguageModel(
        checkpoint, name=checkpoint.name, image_sides_px=[side], vision_int8=vision_int8
    )
    right = np.zeros(len(questions))
    by_image: dict[str, list[int]] = {}
    for index, asked in enumerate(questions):
        by_image.setdefault(asked.image, []).append(index)
    for name, indices in by_image.items():
        with Image.open(data / "images" / name) as picture:
            features = model.encode_image(np.array(picture.convert("RGB")), side)
        for index in indices:
            source = model.begin(features, Question(questions[index].question), GREEDY)
            written = complete(model, source, Limits(_MOST_TOKENS))
            right[index] = written.reason == "end" and written.text == questions[index].answer
    model.close()
    return right


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="accuracy of the embedded VLM")
    parser.add_argument("--data", type=Path, required=True)
    for form in ("fp16", "awq", "rtn"):
        parser.add_argument(f"--{form}", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--most", type=int, help="look at so many questions only")
    parser.add_argument("--onnx-most", type=int, default=1000, help="for the CPU runtime")
    parser.add_argument("--add-onnx", action="store_true", help="only that, into --out's report")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    questions = read_questions(options.data)[: options.most]
    if options.add_onnx:
        add_onnx(options.out, options.awq, questions[: options.onnx_most], options.data, device)
        return
    scenes = [asked.image.split("_")[0] for asked in questions]
    side = ModelSize().image_px
    runs = {
        "fp16": (options.fp16, side, False),
        "awq_int4": (options.awq, side, False),
        "rtn_int4": (options.rtn, side, False),
        "blank": (options.fp16, side, True),
        **{f"fp16_{px}px": (options.fp16, px, False) for px in smaller_sides(ModelSize())},
    }
    right = {}
    for name, (checkpoint, px, blank) in runs.items():
        right[name] = measure(checkpoint, questions, options.data, device, px, blank=blank)
        print(name, shares_by_kind(questions, right[name].astype(bool).tolist()), flush=True)
    report = _report(right, questions, scenes)
    if options.onnx_most:
        some = questions[: options.onnx_most]
        written = measure_onnx(options.awq, some, options.data, side)
        report["onnx_int4"] = _onnx_report(written, right["awq_int4"][: len(some)])
    machine = {**describe_machine(), "torch": torch.__version__}
    report |= {"machine": machine, "date": utc_now(), "commit": options.commit}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def add_onnx(
    out: Path, awq: Path, questions: Sequence[Asked], data: Path, device: torch.device
) -> None:
    """Measure the CPU runtime, and torch on the same questions, into a report that is there."""
    side = ModelSize().image_px
    report = json.loads(out.read_text())
    expected = measure(awq, questions, data, device, side)
    found = _onnx_report(measure_onnx(awq, questions, data, side), expected)
    report["onnx_int4"] = {**found, "machine": describe_machine(), "date": utc_now()}
    out.write_text(json.dumps(report, indent=1) + "\n")


def _onnx_report(written: NDArray[np.float64], awq: NDArray[np.float64]) -> dict[str, Any]:
    """The CPU runtime's share, that of torch on the same questions, and how often both agree."""
    return {
        "exact": round(float(written.mean()), 4),
        "awq_int4_on_the_same": round(float(awq.mean()), 4),
        "same_verdict": round(float((written == awq).mean()), 4),
        "questions": len(written),
    }


def _report(
    right: dict[str, NDArray[np.float64]], questions: Sequence[Asked], scenes: Sequence[str]
) -> dict[str, Any]:
    shares = {name: shares_by_kind(questions, found.astype(bool).tolist())
              for name, found in right.items()}  # fmt: skip
    return {
        "schema": 1,
        **{name: share["all"] for name, share in shares.items()},
        "lost_by_awq": round(shares["fp16"]["all"] - shares["awq_int4"]["all"], 4),
        "interval_95": {name: interval(found, scenes) for name, found in right.items()},
        "interval_95_lost_by_awq": interval(right["fp16"] - right["awq_int4"], scenes),
        "by_type": shares,
        "questions": len(questions),
        "images": len({asked.image for asked in questions}),
        "scenes": len(set(scenes)),
    }


if __name__ == "__main__":
    main()

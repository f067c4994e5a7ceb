"""Gather what is known of a run into one JSON record: machine, date, seeds, recipe, accuracy.

    python -m training.detector.record --run FOLDER --exam exam.json --out metrics.json KEY=VALUE...

``KEY=VALUE`` pairs (seeds, frames, commit) go into ``provenance`` as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    """Processor, GPU and torch of this machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def gather(run: Path, exam: dict[str, Any], facts: dict[str, str]) -> dict[str, Any]:
    """Join the run's log and the exam's metrics; the exam was sat once, with the exported model."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    progress = [event for event in events if event["event"] == "progress"]
    return {
        "schema": 1,
        "machine": describe_machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "provenance": facts,
        "training": progress[-1],
        "validation": [event for event in events if event["event"] == "evaluated"],
        "accuracy": exam,
    }


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="write the record of a training run")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--exam", type=Path, required=True, help="metrics from evaluate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("facts", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    facts = dict(fact.split("=", 1) for fact in args.facts)
    record = gather(args.run, json.loads(args.exam.read_text()), facts)
    args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

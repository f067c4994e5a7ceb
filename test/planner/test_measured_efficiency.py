"""The shares measured on an H100 are those of the published file, and predict its times."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")  # benchmarks.decoder reads shapes beside it

from benchmarks.decoder.efficiency import reached
from benchmarks.decoder.results import BEST, CONTEXTS
from edge_perception.planner.devices import load_device, load_efficiency
from edge_perception.planner.latency import predict
from edge_perception.planner.memory import SCHEMES
from edge_perception.planner.models import load_planned_model

FILE = Path(__file__).parents[2] / "docs/benchmarks/decode_h100.json"
FIGURES = json.loads(FILE.read_text())
DEVICE = load_device("h100")


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_decode_share_of_the_h100_is_the_lowest_measured(precision: str) -> None:
    share, _ = reached(FIGURES, DEVICE)[precision]
    told = load_efficiency(DEVICE, precision).decode
    assert told.share == pytest.approx(share, abs=0.006)
    assert FILE.name in told.source


def test_prefill_share_of_the_h100_is_the_lowest_measured() -> None:
    share, _ = reached(FIGURES, DEVICE)["prefill"]
    told = load_efficiency(DEVICE, "int4").prefill
    assert told.share == pytest.approx(share, abs=0.006)
    assert FILE.name in told.source


@pytest.mark.parametrize("shape", sorted(FIGURES["shapes"]))
@pytest.mark.parametrize("context", CONTEXTS)
def test_prediction_promises_no_more_than_was_measured(shape: str, context: int) -> None:
    measured = FIGURES["shapes"][shape]["decode"][BEST]["ms"][str(context)]["p50"]
    scheme = SCHEMES["int4-g128"]
    predicted = predict(
        load_planned_model(shape).shape,
        DEVICE,
        load_efficiency(DEVICE, "int4"),
        weights=scheme,
        head=scheme,
        kv_format="fp16",
        context=context,
        prompt_tokens=context,
    ).decode_ms
    assert 0.98 * measured < predicted < 2 * measured

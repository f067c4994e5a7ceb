import numpy as np
import pytest

from benchmarks.quantization.verdict import interval, newest_rows, verdicts

WINDOWS = np.exp(np.random.default_rng(1).normal(3, 0.5, 16))
"""Perplexities of a text's windows: they differ far more than two quantisers do."""


def row(implementation: str, ppl: float, kl: float) -> dict:
    return {
        "method": "awq", "implementation": implementation, "bits": 4,
        "window_ppl": list(WINDOWS * ppl), "window_kl": list(0.1 + kl * np.ones(16)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ppl", "word", "reason"),
    [
        (0.99, "better", "every window is better by a hundredth, however they differ"),
        (1.01, "worse", "and the other way round"),
        (1.0, "level", "nothing differs"),
    ],
)
def test_windows_are_compared_in_pairs(ppl: float, word: str, reason: str) -> None:
    (found,) = verdicts([row("ours", ppl, 0.0), row("theirs", 1.0, 0.02)])
    assert found["ppl"] == word, reason
    assert found["ppl_quotient"] == pytest.approx([ppl] * 3)
    assert found["kl"] == "better"
    assert found["kl_difference"] == pytest.approx([-0.02] * 3)


def test_interval_is_as_wide_as_the_windows_disagree() -> None:
    noise = np.random.default_rng(2).normal(0, 1, 400)
    mean, low, high = interval(list(noise))
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_another_method_is_no_rival() -> None:
    theirs = row("theirs", 1.0, 0.0) | {"method": "gptq"}
    assert verdicts([row("ours", 1.0, 0.0), theirs]) == []


def test_rows_keep_their_own_origin_and_the_newer_one_stays() -> None:
    origin = {"machine": "a", "torch": "2", "commit": "c"}
    old = origin | {"date": "2026-01-01", "runs": [row("ours", 1.0, 0.0)]}
    elsewhere = row("ours", 2.0, 0.0) | {"machine": "b", "date": "2026-01-03"}
    new = origin | {"date": "2026-01-02", "runs": [elsewhere, row("theirs", 1.0, 0.0)]}
    ours, theirs = newest_rows([new, old])
    assert (ours["machine"], ours["window_ppl"][0]) == ("b", WINDOWS[0] * 2)
    assert (theirs["machine"], theirs["date"]) == ("a", "2026-01-02")

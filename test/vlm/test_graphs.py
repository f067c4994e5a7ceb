import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import pack_model, tiny_model

from edge_perception.errors import DecodingError
from edge_perception.vlm import graphs
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.tower import take_tower


def test_missing_gpu_is_told_before_anything_is_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DecodingError, match="no GPU"):
        graphs.open_gpu_decoder(tmp_path / "nothing", 0, capacity=8)


def test_missing_compiler_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DecodingError, match=r"cannot be compiled here.*requirements/gpu.txt"):
        graphs.gpu_operators()


class Captured:
    """A graph that knows whether it holds memory."""

    def __init__(self) -> None:
        self.holds = True

    def replay(self) -> None:
        assert self.holds

    def reset(self) -> None:
        self.holds = False


@pytest.mark.parametrize(
    "before",
    [
        2,  # the segment of a step that draws cannot be captured
        7,  # 3 graphs for each of 2 steps can (2 segments, the last also drawn), 1 of a prompt's 2
    ],
)
def test_graphs_captured_before_one_that_cannot_be_give_their_memory_back(
    monkeypatch, before: int
) -> None:
    made = []

    def captured(*_) -> Captured:
        if len(made) == before:
            raise DecodingError("cannot be captured")
        made.append(Captured())
        return made[-1]

    stream = SimpleNamespace(synchronize=lambda: None)
    for name, stub in (
        ("ExternalStream", lambda *_, **__: stream),
        ("Event", lambda **_: None),
        ("synchronize", lambda _: None),
        ("stream", lambda _: nullcontext()),
        ("graph_pool_handle", lambda: None),
    ):
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(graphs, "captured", captured)
    decoder = Decoder(take_tower(pack_model(tiny_model("Qwen3"))), capacity=64, segments=2)
    with pytest.raises(DecodingError, match="cannot be captured"):
        graphs.SegmentGraphs(decoder, 0, most_rows=2, prompt_rows=[32])
    assert len(made) == before
    assert not any(graph.holds for graph in made)
    assert decoder.prompts is None

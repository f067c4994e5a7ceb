import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edge_perception.errors import DecodingError
from edge_perception.vlm import graphs


def test_missing_gpu_is_told_before_anything_is_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DecodingError, match="no GPU"):
        graphs.open_gpu_decoder(tmp_path / "nothing", 0, capacity=8)


def test_missing_compiler_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DecodingError, match=r"cannot be compiled here.*requirements/gpu.txt"):
        graphs.gpu_operators()

"""What is exported is built for an RTX 3090 by NVIDIA's own parser, on a machine without one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
trt = pytest.importorskip("tensorrt_rtx_bindings")
from tiny_checkpoints import HEIGHT, MODELS, WIDTH, write_checkpoint

from edge_perception.backends.build import BuildOptions, build_plan
from edge_perception.backends.half import to_half
from edge_perception.export.from_transformers import TransformersRequest, export_transformers


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("opset", [16, 17])
def test_exported_graph_builds_in_half_precision(tmp_path: Path, kind: str, opset: int) -> None:
    write_checkpoint(tmp_path / kind, kind)
    request = TransformersRequest(tmp_path / kind, kind, "unknown", (HEIGHT, WIDTH), opset)
    export_transformers(request, tmp_path / "model.onnx")
    graph = to_half((tmp_path / "model.onnx").read_bytes())
    assert build_plan(trt, graph, BuildOptions("float16", target="8.6")).plan

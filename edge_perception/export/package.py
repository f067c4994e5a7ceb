"""An exported graph becomes a package: checked against its origin, and described by a manifest.

A graph is trusted only after ONNX Runtime, which is the oracle of every other backend, has given
what the original framework gave on the same input. The manifest's tensors are read from the graph
itself, and its head is held against them, so that a manifest which is written can be opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.store import sha256_of
from edge_perception.core.manifest import SCHEMA, Manifest, Preprocessing, parse_manifest
from edge_perception.detection.classifier import check_classifier
from edge_perception.detection.decoders import check_head
from edge_perception.errors import EngineError

# Of the largest value of the reference: float32 through some hundred layers in another order.
TOLERANCE = 1e-3
# Heads whose rows have no order of their own: two runtimes may sort near-equal scores either way.
_UNORDERED_HEADS = frozenset({"rtdetr", "detr", "yolo_end_to_end"})

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Export:
    """What is known of an exported model beside its graph."""

    name: str
    head: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    license: str
    source: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What the original framework makes of an input: the tensor, and its outputs in order."""

    images: Array
    outputs: Sequence[Array]


def write_package(graph: Path, export: Export, reference: Reference, out: Path) -> Manifest:
    """Check a graph, move it to ``out``, and write its manifest beside it as ``.yaml``.

    A graph that fails the check never gets there: what lay at ``out`` stays.

    Raises:
        EngineError: the graph cannot be run, or its outputs are not the reference's.
        ManifestError: the head does not fit the graph's outputs.
    """
    backend = OnnxRuntimeBackend(graph)
    try:
        outputs = backend.infer([reference.images])
        difference = largest_difference(export.head, outputs, reference.outputs)
    finally:
        backend.close()
    if not difference <= TOLERANCE:
        raise EngineError(
            f"the graph of {export.name!r} does not give what its origin gives",
            expected=f"a difference of at most {TOLERANCE:g} of the largest value",
            got=round(difference, 6),
            mend="Export with another opset, or report it with the model's configuration.",
        )
    mapping = {
        "schema": SCHEMA,
        "name": export.name,
        "model": out.name,
        "sha256": sha256_of(graph),
        "license": export.license,
        "source": export.source,
        "head": export.head,
        "class_names": list(distinct(export.class_names)),
        "inputs": [_tensor(spec) for spec in backend.inputs],
        "outputs": [_tensor(spec) for spec in backend.outputs],
        "preprocessing": _plain(asdict(export.preprocessing)),
        "precision": "float32",
        "provenance": {**export.provenance, "difference_from_origin": float(f"{difference:.3g}")},
    }
    manifest = parse_manifest(mapping)
    (check_classifier if manifest.head == "classifier" else check_head)(manifest)
    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    shutil.move(graph, out)
    out.with_suffix(".yaml").write_text(text, encoding="utf-8")
    return manifest


def largest_difference(head: str, outputs: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest difference of any output, as a share of its largest absolute value.

    Rows of an unordered head are compared with their nearest; what is no number counts as
    infinitely far, and so does another shape.
    """
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return float("inf")
    if head in _UNORDERED_HEADS:  # a row is a query: its logits and its box belong together
        outputs = [np.concatenate([_scaled(o, e) for o, e in zip(outputs, expected)], axis=-1)]
        expected = [np.concatenate([_scaled(e, e) for e in expected], axis=-1)]
        differences = [_nearest_rows(outputs[0][0], expected[0][0])]
    else:
        differences = [
            float(np.abs(_scaled(o, e) - _scaled(e, e)).max()) for o, e in zip(outputs, expected)
        ]
    largest = max(differences)
    return largest if np.isfinite(largest) else float("inf")


def _scaled(values: Array, expected: Array) -> Array:
    return values / max(float(np.abs(expected).max()), 1e-6)


def _nearest_rows(rows: Array, expected: Array) -> float:
    """Return how far the worst row of either side is from its nearest on the other."""
    distances = np.stack([np.abs(expected - row).max(axis=1) for row in rows])
    return float(max(distances.min(axis=0).max(), distances.min(axis=1).max()))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, with its index added to one that came before.

    COCO's 91 categories as DETR has them hold "N/A" eleven times.
    """
    seen: set[str] = set()
    told = []
    for index, name in enumerate(names):
        told.append(f"{name} {index}" if name in seen else name)
        seen.add(name)
    return tuple(told)


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tuples into lists, which YAML can say without tags."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

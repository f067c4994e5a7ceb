"""Models of random weights, carried as their seeds.

    seeded.py reseed MODEL.onnx OUT.onnx     every large layer's weights drawn anew
    seeded.py pack MODEL.onnx OUT.npz        a reseeded graph, quantised or not, without its weights
    seeded.py unpack IN.npz MODEL.onnx       the same bytes again; NumPy alone

YOLOv8m is 104 MB in float and as much again with Q/DQ, too much to carry to a machine without a
network. Its weights mean nothing but a speed, so that they may as well come from a generator:
a pack holds the bytes that do not, and which draw stands between them. A hash tells whether
another NumPy drew the same.

Weights of one scale would let a deep network's signal explode. So convolution after convolution is
measured on noise, and each of its channels scaled, by an eighth of an octave at the finest, and
shifted until its output has mean 0 and deviation 1. Matrices are a transformer's, whose layer norms
do that by themselves.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
SMALLEST = 4096  # weights; a smaller tensor stays as it is
STEPS_AN_OCTAVE = 8
MATRIX_STEP = -45  # deviation 0.02


class Draw(NamedTuple):
    """Normal values of a seed (channels, n), each channel times two to its step's power."""

    seed: int
    count: int
    steps: npt.NDArray[np.int16]

    def normal(self) -> FloatArray:
        chance = np.random.default_rng(self.seed)
        return chance.standard_normal(self.count, np.float32).reshape(len(self.steps), -1)

    def values(self) -> FloatArray:
        scales = np.exp2(self.steps[:, None] / STEPS_AN_OCTAVE).astype(np.float32)
        return self.normal() * scales


def reseed(source: Path, target: Path) -> None:
    """Write a model with the weights of its large layers replaced by draws, and settled."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        weights = tensors.get(node.input[1]) if node.op_type in ("Conv", "MatMul") else None
        if weights is None or not _is_drawn(weights):
            continue
        draw = Draw(_seed(weights.name), int(np.prod(weights.dims)), _steps(weights, MATRIX_STEP))
        weights.raw_data = draw.values().tobytes()
        if node.op_type == "MatMul":
            continue
        bias = model.graph.initializer.add()  # its own: exporters let layers share equal ones
        bias.CopyFrom(numpy_helper.from_array(np.zeros(weights.dims[0], np.float32), node.name))
        node.input[:] = [*node.input[:2], bias.name]
        output = _output_on_noise(model, node.output[0])
        more = np.rint(-STEPS_AN_OCTAVE * np.log2(output.std(axis=1) + 1e-9)).astype(np.int16)
        weights.raw_data = draw._replace(steps=draw.steps + more).values().tobytes()
        scales = np.exp2(more / STEPS_AN_OCTAVE).astype(np.float32)
        bias.raw_data = (-output.mean(axis=1) * scales).tobytes()
    onnx.save(model, target)


def _steps(weights: Any, step: int) -> npt.NDArray[np.int16]:
    return np.full(weights.dims[0], step, np.int16)


def _output_on_noise(model: Any, name: str) -> FloatArray:
    """What a tensor holds for a picture of noise: (channels, values)."""
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # not of the exporter's biases, which nothing uses now
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options)
    (image,) = session.get_inputs()
    noise = np.random.default_rng(0).random(image.shape, np.float32)
    output: FloatArray = session.run(None, {image.name: noise})[0][0]
    return output.reshape(len(output), -1)


def _is_drawn(tensor: Any) -> bool:
    return len(tensor.dims) in (2, 4) and int(np.prod(tensor.dims)) >= SMALLEST


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def pack(source: Path, target: Path) -> None:
    """Write a model's bytes, without those that a draw gives."""
    data = source.read_bytes()
    found = _find_draws(data)
    literals, end = [], 0
    for start, draw in found:
        literals.append(data[end:start])
        end = start + 4 * draw.count
    literals.append(data[end:])
    draws = [draw for _, draw in found]
    np.savez_compressed(
        target,
        literals=np.frombuffer(b"".join(literals), np.uint8),
        lengths=np.array([len(part) for part in literals]),
        draws=np.array([(draw.seed, draw.count, len(draw.steps)) for draw in draws]),
        steps=np.concatenate([draw.steps for draw in draws]),
        sha256=np.array(hashlib.sha256(data).hexdigest()),
    )


def _find_draws(data: bytes) -> list[tuple[int, Draw]]:
    """Where in a serialised model draws lie, by rising place."""
    import onnx
    from onnx import numpy_helper

    found = []
    for tensor in filter(_is_drawn, onnx.load_from_string(data).graph.initializer):
        values = numpy_helper.to_array(tensor)
        draw = Draw(_seed(tensor.name), values.size, _steps(tensor, 0))
        ratio = values.reshape(len(values), -1).std(axis=1) / draw.normal().std(axis=1)
        draw = draw._replace(steps=np.rint(STEPS_AN_OCTAVE * np.log2(ratio)).astype(np.int16))
        if (start := data.find(draw.values().tobytes())) >= 0:
            found.append((start, draw))
    return sorted(found, key=lambda pair: pair[0])


def unpack(source: Path, target: Path) -> None:
    """Write the model that :func:`pack` was given; raise ValueError where a byte differs."""
    with np.load(source) as file:
        literals, lengths, sha256 = file["literals"].tobytes(), file["lengths"], str(file["sha256"])
        ends = np.cumsum(file["draws"][:, 2])
        steps = np.split(file["steps"], ends[:-1])
        draws = [Draw(int(row[0]), int(row[1]), own) for row, own in zip(file["draws"], steps)]
    parts = [literals[: lengths[0]]]
    for start, length, draw in zip(np.cumsum(lengths), lengths[1:], draws):
        parts += [draw.values().tobytes(), literals[start : start + length]]
    data = b"".join(parts)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{source}: expected SHA-256 {sha256}, got {found}: another NumPy?")
    target.write_bytes(data)


if __name__ == "__main__":
    command, given, wanted = sys.argv[1:]
    {"reseed": reseed, "pack": pack, "unpack": unpack}[command](Path(given), Path(wanted))

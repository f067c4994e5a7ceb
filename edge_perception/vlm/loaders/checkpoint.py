"""A checkpoint directory: configuration, sharded safetensors by mmap, packed layers by name.

Files are read by the safetensors library, which checks the header (size, JSON, types, offsets that
leave no gap and do not overlap) before any tensor; this module adds what it cannot know: that an
index names files inside the directory only, that every tensor is where the index says, and that
the tensors of a quantised layer fit their layout and are finite.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.int_quantized import expect_input_scale, read_int_quantized
from edge_perception.vlm.loaders.layouts import (
    Codes,
    group_order,
    read_awq_fast,
    read_awq_gemm,
    read_awq_gemv,
    read_awq_marlin,
    read_compressed,
    read_gptq,
)
from edge_perception.vlm.loaders.scheme import Scheme, read_scheme
from edge_perception.vlm.packed_linear import PackedWeight

_MARKERS = ("qweight", "weight_packed")
_WHOLE_BYTES = "int-quantized"


class Checkpoint:
    """An open checkpoint directory; a context manager.

    Tensors are memory-mapped and copied on reading: nothing is held twice. Raises
    ``CheckpointError`` for what is missing, damaged or does not fit together. Not thread-safe.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_json(directory / "config.json")
        self.scheme = read_scheme(self.config, _optional_json(directory / "quant_config.json"))
        self._files: dict[str, Any] = {}
        self._resources = ExitStack()
        try:
            self._where = self._locate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files; reading afterwards raises."""
        self._files.clear()
        self._resources.close()

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, owned by the caller."""
        if name not in self._where:
            raise CheckpointError(f"tensor {name!r} is missing", got=str(self.directory))
        file = self._where[name]
        if file not in self._files:
            raise CheckpointError("checkpoint is closed", expected="an open one", got=file)
        try:
            value: Tensor = self._files[file].get_tensor(name)
        except (SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(f"tensor {name!r} of {file} cannot be read ({error})") from error
        return value.clone()

    def is_packed(self, layer: str) -> bool:
        """Whether the linear layer of this name is stored quantised."""
        return any(f"{layer}.{marker}" in self._where for marker in self._markers())

    def packed_layers(self) -> list[str]:
        """Names of all quantised linear layers."""
        suffixes = tuple(f".{marker}" for marker in self._markers())
        return [name.rpartition(".")[0] for name in self._where if name.endswith(suffixes)]

    def packed(self, layer: str) -> PackedWeight:
        """The quantised layer ``layer`` in the internal layout, whatever layout it came in."""
        try:
            codes = self.codes(layer)
            bias = self.tensor(f"{layer}.bias") if f"{layer}.bias" in self._where else None
            return PackedWeight.from_codes(
                codes.codes,
                codes.scales,
                codes.zeros,
                bits=self._scheme().bits_for(layer),
                bias=bias,
                input_order=codes.input_order,
            )
        except CheckpointError as error:
            raise CheckpointError(f"layer {layer!r}: {error}") from error

    def codes(self, layer: str) -> Codes:
        """The quantised layer's integers, scales and zeros, in natural order."""
        codes = self._read_codes(layer, self._scheme())
        if not bool(torch.isfinite(codes.scales).all()):
            raise CheckpointError(f"scales of {layer!r} are not finite", expected="finite scales")
        return codes

    def input_scale(self, layer: str) -> Tensor | None:
        """The static scale, float32 [1], of a W8A8 layer's inputs; None where they have none."""
        name = f"{layer}.input_scale"
        return expect_input_scale(self.tensor(name)) if name in self._where else None

    def _markers(self) -> tuple[str, ...]:
        """The suffixes of the tensors by which quantised layers are known."""
        whole_bytes = self.scheme is not None and self.scheme.layout == _WHOLE_BYTES
        return ("weight_scale",) if whole_bytes else _MARKERS

    def _scheme(self) -> Scheme:
        if self.scheme is None:
            raise CheckpointError(
                "the checkpoint's configuration names no quantisation",
                expected="quantization_config in config.json, or quant_config.json",
                got=str(self.directory),
            )
        return self.scheme

    def _read_codes(self, layer: str, scheme: Scheme) -> Codes:
        def get(name: str) -> Tensor:
            return self.tensor(f"{layer}.{name}")

        def maybe(name: str) -> Tensor | None:
            return get(name) if f"{layer}.{name}" in self._where else None

        if scheme.layout == "pack-quantized":
            return _sorted_by_group(
                read_compressed(
                    get("weight_packed"), get("weight_scale"), maybe("weight_zero_point"),
                    get("weight_shape"), bits=scheme.bits_for(layer),
                ),
                maybe("weight_g_idx"),
            )  # fmt: skip
        if scheme.layout == _WHOLE_BYTES:
            return read_int_quantized(
                get("weight"), get("weight_scale"), maybe("weight_zero_point")
            )
        if scheme.layout == "gptq":
            return read_gptq(
                get("qweight"), get("qzeros"), get("scales"), maybe("g_idx"),
                bits=scheme.bits, version=scheme.version,
            )  # fmt: skip
        if scheme.layout == "marlin":
            return read_awq_marlin(get("qweight"), get("scales"))
        if scheme.layout == "gemv":
            size = scheme.group_size_for(get("qweight").shape[-1] * 8)
            return read_awq_gemv(get("qweight"), get("qzeros"), get("scales"), size)
        if scheme.layout == "gemv_fast":
            zeros = maybe("scaled_zeros")
            zeros = get("qzeros") if zeros is None else zeros
            size = scheme.group_size_for(get("qweight").shape[-1])
            return read_awq_fast(get("qweight"), get("scales"), zeros, size)
        return read_awq_gemm(get("qweight"), get("qzeros"), get("scales"))

    def _locate(self) -> dict[str, str]:
        index_path = self.directory / "model.safetensors.index.json"
        if not index_path.exists():
            return dict.fromkeys(self._open("model.safetensors"), "model.safetensors")
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index_path.name} is malformed", expected="a weight_map")
        held = {file: self._open(file) for file in sorted(set(map(str, weight_map.values())))}
        for name, file in weight_map.items():
            if name not in held[str(file)]:
                raise CheckpointError(
                    f"{index_path.name} names a tensor its file lacks",
                    expected=f"{name!r} in {file}",
                )
        return {str(name): str(file) for name, file in weight_map.items()}

    def _open(self, file: str) -> set[str]:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                "the index points outside the checkpoint or at no safetensors file",
                expected="a file name *.safetensors", got=file,
            )  # fmt: skip
        path = self.directory / file
        if not path.is_file():
            raise CheckpointError("checkpoint file missing", expected=file, got=str(self.directory))
        try:
            opened = self._resources.enter_context(safe_open(path, framework="pt"))
            self._files[file] = opened
            return set(opened.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is no sound safetensors file ({error})") from error


def _sorted_by_group(codes: Codes, g_idx: Tensor | None) -> Codes:
    """Columns of a checkpoint with activation order, sorted into their groups."""
    if g_idx is None or bool((g_idx < 0).any()):  # -1 marks an index that was never filled
        return codes
    order = group_order(g_idx, codes.codes.shape[1], codes.scales.shape[1])
    if order is None:
        return codes
    return Codes(codes.codes[:, order].contiguous(), codes.scales, codes.zeros, order)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; raises ``CheckpointError`` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.name} is missing", expected="a checkpoint directory", got=str(path.parent)
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is malformed", expected="a JSON object")
    return value


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None

"""A quantised checkpoint written block by block, so that a killed run goes on where it stood.

Each block becomes one safetensors shard, written under another name and renamed when it is whole:
a shard that is there is finished. The weights outside the blocks are the last shard, and the index
and ``config.json`` come after that: a folder with an index is a finished checkpoint. What was
asked for is noted first; a folder with another request's shards is refused, not mixed up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_perception.errors import CheckpointError, QuantizationError
from edge_perception.quantization.encoding import (
    ExportLayout,
    decode_layer,
    encode_layer,
    marker_of,
)
from edge_perception.quantization.pipeline import BlockResult
from edge_perception.quantization.recipe import Activations, Recipe

REQUEST_FILE = "quantization_request.json"
INDEX_FILE = "model.safetensors.index.json"
_CARRIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*", "generation_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "image_processor_config.json", "processor_config.json",
)  # fmt: skip
_NEVER_CARRIED = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".py", ".gguf")


class CheckpointFolder:
    """The output folder of one request: its shards and what surrounds them."""

    def __init__(self, folder: Path, request: Mapping[str, Any], shards: int) -> None:
        self.folder = folder
        self._shards = shards
        self._request = json.dumps(request, indent=1, sort_keys=True)

    def begin(self, *, restart: bool = False) -> int:
        """Claim the folder; returns how many shards an earlier, killed run left.

        Raises ``QuantizationError`` for a folder that holds a finished checkpoint, another
        request's shards or anything else. ``restart`` drops earlier shards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = self.folder / REQUEST_FILE
        if restart and noted.exists():
            for path in [*self.folder.glob("model*.safetensors"), self.folder / INDEX_FILE]:
                path.unlink(missing_ok=True)
            write_atomically(noted, self._request.encode())
        present = [path.name for path in self.folder.iterdir() if not path.name.endswith(".tmp")]
        if not present:
            write_atomically(noted, self._request.encode())
        elif not noted.exists():
            raise QuantizationError(
                "the output folder holds other files", expected="an empty folder", got=present[:5]
            )
        elif noted.read_text(encoding="utf-8") != self._request:
            raise QuantizationError(
                "the output folder holds a run with other settings, model or calibration text",
                got=str(self.folder),
                mend="Choose another folder, or say --restart to drop that run.",
            )
        elif INDEX_FILE in present:
            raise QuantizationError(
                "the output folder holds the finished checkpoint already",
                got=str(self.folder),
                mend="Say --restart to make it anew.",
            )
        return sum(self.shard(i).exists() for i in range(self._shards))

    def shard(self, number: int) -> Path:
        """The path of shard ``number``, counted from 0."""
        return self.folder / f"model-{number + 1:05d}-of-{self._shards:05d}.safetensors"

    def write_shard(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard as a whole or not at all."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(self.shard(number)) as temporary:
            save_file(whole, temporary, _METADATA)

    def finish(self, config: Mapping[str, Any], card: str, carried_from: Path) -> int:
        """Write configuration, card and index; returns the bytes of all tensors."""
        weight_map: dict[str, str] = {}
        total = 0
        for number in range(self._shards):
            for name, size in _tensor_sizes(self.shard(number)):
                weight_map[name] = self.shard(number).name
                total += size
        for path in carried_files(carried_from):
            shutil.copyfile(path, self.folder / path.name)
        write_atomically(self.folder / "config.json", _json(config))
        write_atomically(self.folder / "README.md", card.encode())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        write_atomically(self.folder / INDEX_FILE, _json(index))
        return total


_METADATA = {"format": "pt"}


class ShardSink:
    """A ``BlockSink`` that keeps block i of the quantised towers as shard i.

    ``stored_names`` gives a parameter's name in the checkpoint for its name in the model.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        layout: ExportLayout,
        numbers: Mapping[str, int],
        stored_names: Mapping[str, str],
        recipe: Recipe,
    ) -> None:
        self._folder = folder
        self._layout = layout
        self._numbers = numbers
        self._stored = stored_names
        self._bits = recipe.form.bits
        self._static_inputs = recipe.activations is Activations.STATIC

    def store(self, path: str, block: nn.Module, result: BlockResult) -> None:
        """Write the block's shard: codes, and all that stays in float."""
        tensors: dict[str, Tensor] = {}
        for name, weight in result.items():
            layer = self._layer(path, name)
            encoded = encode_layer(weight, self._layout, static_inputs=self._static_inputs)
            tensors |= {f"{layer}.{suffix}": value for suffix, value in encoded.items()}
        for name, parameter in block.named_parameters():
            if name.removesuffix(".weight") not in result:
                tensors[self._stored[f"{path}.{name}"]] = parameter.data.cpu()
        self._folder.write_shard(self._numbers[path], tensors)

    @torch.no_grad()
    def restore(self, path: str, block: nn.Module) -> bool:
        """Put a finished shard's values into the block, as ``store`` was given them."""
        shard = self._folder.shard(self._numbers[path])
        if not shard.exists():
            return False
        tensors = read_shard(shard)
        for name, parameter in block.named_parameters():
            stored = self._stored[f"{path}.{name}"]
            layer = stored.removesuffix(".weight")
            if f"{layer}.{marker_of(self._layout)}" in tensors:
                prefix = f"{layer}."
                own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                parameter.copy_(decode_layer(own, self._layout, self._bits))
            else:
                parameter.copy_(tensors[stored])
        return True

    def _layer(self, path: str, name: str) -> str:
        return self._stored[f"{path}.{name}.weight"].removesuffix(".weight")


def read_shard(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file; raises ``CheckpointError`` for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error})", mend="Delete it; its block is made again."
        ) from error


def _tensor_sizes(path: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of a shard of ours, from its header alone."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, end - begin


def carried_files(folder: Path) -> list[Path]:
    """Tokenizer, processor and generation settings of a checkpoint folder; never weights or code.

    For a single file (a GGUF, a ``tokenizer.json``) those beside it.
    """
    place = folder if folder.is_dir() else folder.parent
    found = {path for pattern in _CARRIED for path in place.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix not in _NEVER_CARRIED)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there, even if the machine stops."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; what was written is on the disk before it gets the name ``path``."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield temporary
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity_of(path: Path) -> str:
    """A digest by which a changed model is told from the one that a run began with.

    Names, sizes and times of the weight files and the configuration's text: reading 140 GB of
    weights to know them again would take minutes.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    if path.is_dir() and (path / "config.json").exists():
        digest.update((path / "config.json").read_bytes())
    return digest.hexdigest()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()

import json
import struct
from pathlib import Path

import pytest

from edge_perception.errors import CheckpointError, ConfigError
from edge_perception.planner.models import load_planned_model, stored_tensors

CONFIG = {
    "model_type": "llava",
    "text_config": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
    },
}  # fmt: skip


def write_tensors(path: Path, sizes: dict[str, int]) -> None:
    header, offset = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


def test_folder_tells_the_shape_and_the_bytes_outside_the_language_tower(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_tensors(tmp_path / "model-1.safetensors", {
        "vision_tower.layers.0.weight": 300, "language_model.model.norm.weight": 64,
    })  # fmt: skip
    write_tensors(tmp_path / "model-2.safetensors", {"multi_modal_projector.linear_1.weight": 40})
    model = load_planned_model(str(tmp_path))
    assert (model.shape.layers, model.shape.kv_heads, model.vision_bytes) == (2, 4, 340)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", struct.pack("<Q", 2**40), struct.pack("<Q", 4) + b"[1]x",
     struct.pack("<Q", 9) + b'{"a": 12}', struct.pack("<Q", 2) + b"[]"],
)  # fmt: skip
def test_damaged_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        list(stored_tensors(path))


def test_file_of_tensors_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read"):
        list(stored_tensors(tmp_path / "gone.safetensors"))


def test_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_planned_model(str(tmp_path))


def test_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="llama-2-70b"):
        load_planned_model("llama-9-1t")

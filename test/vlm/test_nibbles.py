import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge_perception.errors import CheckpointError
from edge_perception.vlm.nibbles import NibbleCheckpoint, NibbleMatrix, stack

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 2}


def write(folder, tensors, quantization=AWQ):
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def one_word(*codes):
    """Eight codes in the order of AutoAWQ's gemm."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return sum(codes[channel] << 4 * place for place, channel in enumerate(order))


def layer(columns=4, groups=2):
    words = [
        [one_word(*[(row + 2 * column) % 16 for row in range(8)])] for column in range(columns)
    ]
    return {
        "l.qweight": np.array(words, np.uint32).view(np.int32),
        "l.qzeros": np.array([[one_word(*range(8))]] * groups, np.uint32).view(np.int32),
        "l.scales": np.arange(1, 8 * groups + 1).reshape(groups, 8).astype(np.float16),
        "l.bias": np.ones(8, np.float16),
    }


def test_layer_is_read_row_by_row(tmp_path):
    matrix = NibbleCheckpoint(write(tmp_path, layer())).matrix("l")
    assert matrix.codes[3].tolist() == [3, 5, 7, 9]
    assert matrix.zeros[3].tolist() == [3, 3]
    assert matrix.scales[3].tolist() == [4.0, 12.0]
    assert matrix.bias.tolist() == [1.0] * 8
    assert matrix.group_size == 2


def test_codes_are_packed_with_the_earlier_one_below():
    matrix = NibbleMatrix(
        np.array([[1, 2, 3, 4, 5, 6]], np.uint8),
        np.ones((1, 3), np.float32),
        np.array([[7, 8, 9]], np.uint8),
    )
    assert matrix.packed_codes().tolist() == [[[0x21], [0x43], [0x65]]]
    assert matrix.packed_zeros().tolist() == [0x87, 0x09]


def test_stacked_matrices_keep_their_order(tmp_path):
    matrix = NibbleCheckpoint(write(tmp_path, layer())).matrix("l")
    both = stack([matrix, matrix])
    assert both.codes.shape == (16, 4)
    assert both.codes[8:].tolist() == matrix.codes.tolist()
    assert both.bias.shape == (16,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"l.scales": np.ones((2, 4), np.float16)}, "do not fit each other"),
        ({"l.scales": np.full((2, 8), np.inf, np.float16)}, "senseless"),
        ({"l.qzeros": np.zeros((1, 1), np.int32)}, "do not fit each other"),
    ],
)
def test_layer_whose_tensors_do_not_fit_is_refused(tmp_path, change, match):
    checkpoint = NibbleCheckpoint(write(tmp_path, {**layer(), **change}))
    with pytest.raises(CheckpointError, match=match):
        checkpoint.matrix("l")


def test_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"'other\.qweight' is missing"):
        NibbleCheckpoint(write(tmp_path, layer())).matrix("other")


def test_other_layouts_are_refused_with_what_to_do(tmp_path):
    write(tmp_path, layer(), {"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="--layout awq"):
        NibbleCheckpoint(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    write(tmp_path, layer())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        NibbleCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        NibbleCheckpoint(tmp_path)

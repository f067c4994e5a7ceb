from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.gguf import GgufCheckpoint

HIDDEN, HEADS, WORDS = 64, 4, 8


def write_gguf(path: Path, tensors: dict[str, object], *, architecture: str = "llama") -> Path:
    """``tensors`` are float32 arrays, or (raw bytes, type) for quantised ones."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(128)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(16)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def embedding() -> np.ndarray:
    return noise(WORDS, HIDDEN, seed=9)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_blocks_become_what_their_formula_says(kind: str, tmp_path: Path) -> None:
    quantised = gguf.quants.quantize(noise(4, HIDDEN), gguf.GGMLQuantizationType[kind])
    raw = (quantised, gguf.GGMLQuantizationType[kind])
    path = write_gguf(
        tmp_path / "a.gguf", {"token_embd.weight": embedding(), "blk.0.ffn_up.weight": raw}
    )
    got = GgufCheckpoint(path).tensor("model.layers.0.mlp.up_proj.weight").numpy()
    # llama.cpp, ggml-common.h: blocks of 32; fp16 scale d (and minimum m), then codes.
    for row, data in enumerate(quantised):
        for block, raw_block in enumerate(data.reshape(HIDDEN // 32, -1)):
            d = raw_block[:2].view(np.float16)[0].astype(np.float32)
            if kind == "Q8_0":
                want = raw_block[2:].view(np.int8) * d
            else:
                start = 2 if kind == "Q4_0" else 4
                nibbles = np.concatenate([raw_block[start:] & 15, raw_block[start:] >> 4])
                if kind == "Q4_0":
                    want = (nibbles.astype(np.float32) - 8) * d
                else:
                    want = nibbles * d + raw_block[2:4].view(np.float16)[0].astype(np.float32)
            np.testing.assert_allclose(got[row, 32 * block : 32 * (block + 1)], want, rtol=1e-6)


def test_query_rows_are_put_back_in_transformers_order(tmp_path: Path) -> None:
    natural = noise(HIDDEN, HIDDEN)
    size = HIDDEN // HEADS
    # convert_hf_to_gguf.py permutes each head's rows from halves to pairs.
    permuted = natural.reshape(HEADS, 2, size // 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
    path = write_gguf(
        tmp_path / "a.gguf",
        {"token_embd.weight": embedding(), "blk.0.attn_q.weight": np.ascontiguousarray(permuted)},
    )
    got = GgufCheckpoint(path).tensor("model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(got.numpy(), natural)


def test_gemma_norms_lose_the_one_that_the_formula_adds(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf",
        {"token_embd.weight": embedding(), "blk.0.ffn_norm.weight": noise(HIDDEN)},
        architecture="gemma3",
    )
    got = GgufCheckpoint(path).tensor("model.layers.0.pre_feedforward_layernorm.weight")
    assert np.array_equal(got.numpy(), noise(HIDDEN) - 1.0)


def test_configuration_is_read_from_the_metadata(tmp_path: Path) -> None:
    config = GgufCheckpoint(write_gguf(tmp_path / "a.gguf", {"token_embd.weight": embedding()}))
    wanted = {
        "model_type": "llama", "hidden_size": HIDDEN, "num_key_value_heads": 2,
        "vocab_size": WORDS, "tie_word_embeddings": True, "head_dim": 16,
    }  # fmt: skip
    assert {key: config.config[key] for key in wanted} == wanted


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, architecture="mamba")
    with pytest.raises(CheckpointError, match=r"architecture.*got 'mamba'"):
        GgufCheckpoint(path)


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"blk.0.ssm_in.weight": noise(4, 4)})
    with pytest.raises(CheckpointError, match="does not know"):
        GgufCheckpoint(path)


def test_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    raw = gguf.quants.quantize(noise(2, HIDDEN), kind)
    raw[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
    path = write_gguf(
        tmp_path / "a.gguf",
        {"token_embd.weight": embedding(), "blk.0.ffn_up.weight": (raw, kind)},
    )
    with pytest.raises(CheckpointError, match="not finite"):
        GgufCheckpoint(path).tensor("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"NOPE" + bytes(60), b"GGUF" + b"\xff" * 60])
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.gguf cannot be read"):
        GgufCheckpoint(tmp_path / "a.gguf")


def test_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"token_embd.weight": embedding()})
    path.write_bytes(path.read_bytes()[:-256])
    with pytest.raises(CheckpointError, match="cannot be read"):
        GgufCheckpoint(path)

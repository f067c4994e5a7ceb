import numpy as np
import pytest

from edge_perception.vlm.patches import patch_positions, picture_patches


def test_patches_come_square_by_square_and_channel_by_channel():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = np.arange(64).reshape(8, 8)
    pixels[..., 2] = 255
    patches = picture_patches(pixels, 8, 2, 2)
    assert patches.shape == (1, 16, 12)
    reds = np.round((patches[0, :, :4] + 1) * 127.5).astype(int)
    assert reds[:5].tolist() == [
        [0, 1, 8, 9], [2, 3, 10, 11], [16, 17, 24, 25], [18, 19, 26, 27], [4, 5, 12, 13]
    ]  # fmt: skip
    assert (patches[0, :, 4:8] == -1).all()
    assert (patches[0, :, 8:] == 1).all()


def test_picture_of_any_shape_is_squeezed_to_the_square():
    pixels = np.full((48, 64, 3), 200, np.uint8)
    patches = picture_patches(pixels, 32, 16, 2)
    assert patches.shape == (1, 4, 768)
    assert np.allclose(patches, 200 / 127.5 - 1)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (64, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
        (32, [0, 2, 8, 10]),
    ],
)
def test_positions_of_a_smaller_picture_spread_over_the_learnt_table(side, expected):
    assert patch_positions(side, 16, 2, 4).tolist() == expected


@pytest.mark.parametrize("side", [192, 256, 320])
def test_positions_are_those_of_transformers(side):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Idefics3Config(
        vision_config={"hidden_size": 1, "image_size": 320, "patch_size": 16, "num_channels": 1}
    ).vision_config
    module = pytest.importorskip("transformers.models.idefics3.modeling_idefics3")
    embeddings = module.Idefics3VisionEmbeddings(config)
    torch.nn.init.zeros_(embeddings.patch_embedding.weight)
    torch.nn.init.zeros_(embeddings.patch_embedding.bias)
    embeddings.position_embedding.weight.data = torch.arange(400.0)[:, None]
    grid = side // 16
    whole = torch.ones(1, grid, grid, dtype=torch.bool)
    found = embeddings(torch.zeros(1, 1, side, side), whole)[0, :, 0].detach().numpy()
    assert sorted(patch_positions(side, 16, 2, 20)) == sorted(found.astype(int))
    assert patch_positions(side, 16, 1, 20).tolist() == found.astype(int).tolist()

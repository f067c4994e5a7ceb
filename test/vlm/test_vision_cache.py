import numpy as np
import pytest
from fake_vlm import FakeFeatures

from edge_perception.core.image import UInt8Array
from edge_perception.errors import RequestError
from edge_perception.vlm.vision_cache import Picture, VisionCache, difference, grey_cells

FEATURES = FakeFeatures(1, 224)
RANDOM = np.random.default_rng(0)


def view(height: int = 480, width: int = 640) -> UInt8Array:
    """A smooth picture with some edges."""
    across = np.linspace(40, 200, width)[None, :, None] * np.ones((height, 1, 3))
    across[100:200, 300:420] = (200, 60, 40)
    return across.astype(np.uint8)


def noisy(picture: UInt8Array, sigma: float) -> UInt8Array:
    noise = RANDOM.normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def cache_of(picture: UInt8Array, threshold: float = 8.0) -> VisionCache:
    cache = VisionCache(threshold)
    cache.keep(picture, 224, None, FEATURES)
    return cache


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (view(), "the same"),
        (noisy(view(), 12), "sensor noise"),
        (view() + np.uint8(6), "a little more light"),
        (noisy(view() + np.uint8(4), 8), "both"),
    ],
)
def test_unchanged_view_is_not_encoded_again(seen: UInt8Array, why: str) -> None:
    assert cache_of(view()).find(seen, 224, None) is FEATURES, why


def with_cup() -> UInt8Array:
    picture = view()
    picture[300:335, 200:228] = (30, 30, 30)
    return picture


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (with_cup(), "a cup of 28x35 px was put there"),
        (np.roll(view(), 12, axis=1), "the camera turned"),
        (np.zeros_like(view()), "the light went out"),
        (view()[:, ::-1].copy(), "another side"),
    ],
)
def test_changed_view_is_encoded(seen: UInt8Array, why: str) -> None:
    assert cache_of(view()).find(seen, 224, None) is None, why


def test_slow_changes_add_up() -> None:
    cache, picture = cache_of(view()), view().astype(np.float32)
    hits = 0
    for _ in range(30):
        picture[50:120, 50:120] += 1
        hits += cache.find(picture.astype(np.uint8), 224, None) is not None
    assert 5 < hits < 10


def test_hits_and_misses_are_counted() -> None:
    cache = cache_of(view())
    cache.find(view(), 224, None)
    cache.find(with_cup(), 224, None)
    assert (cache.hits, cache.misses) == (1, 1)


def test_resolutions_and_regions_are_apart() -> None:
    cache = cache_of(view())
    assert cache.find(view(), 112, None) is None
    assert cache.find(view(), 224, (0, 0, 640, 480)) is None
    assert cache.encoded_side(view(), (112, 224, 448), None) == 224
    assert cache.encoded_side(with_cup(), (112, 224, 448), None) is None


def test_threshold_of_zero_keeps_nothing() -> None:
    cache = cache_of(view(), threshold=0.0)
    assert cache.find(view(), 224, None) is None


def test_oldest_entry_makes_room() -> None:
    cache = cache_of(view())
    for side in (1, 2, 3, 4):
        cache.keep(view(), side, None, FEATURES)
    assert cache.find(view(), 224, None) is None
    assert cache.find(view(), 4, None) is FEATURES


def test_difference_needs_no_equal_sizes() -> None:
    assert difference(grey_cells(view()), grey_cells(view()[::2, ::2])) < 8


def test_region_is_cut_at_the_edges() -> None:
    picture = Picture(view(), 0, "", 0)
    assert picture.crop((600, 400, 900, 900)).shape == (80, 40, 3)
    with pytest.raises(RequestError, match="outside the image"):
        picture.crop((640, 0, 700, 10))

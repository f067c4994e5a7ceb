import pytest

from edge_perception.vlm.scene import SceneGate, SeenObject, Views, describe_change, mentioned


def seen(name: str, left: float, size: float = 40) -> SeenObject:
    return SeenObject(name, 0.9, (left, 0, left + size, size))


CUP, CHAIR = seen("cup", 0), seen("chair", 200)


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ((), (), ""),
        ((CUP,), (CUP,), ""),
        ((CUP, CHAIR), (CHAIR, CUP), ""),  # the order means nothing
        ((CUP,), (CUP, CHAIR), "new class chair"),
        ((CUP,), (CUP, seen("cup", 300)), "1 cup became 2"),
        ((CUP, CHAIR), (CHAIR,), "1 cup became 0"),
        ((CUP,), (seen("cup", 10),), ""),  # a little to the side
        ((CUP,), (seen("cup", 60),), "cup moved"),
        ((CUP, seen("cup", 300)), (seen("cup", 300), CUP), ""),
    ],
)
def test_change_is_described(
    before: tuple[SeenObject, ...], now: tuple[SeenObject, ...], change: str
) -> None:
    assert describe_change(before, now, far=0.5) == change


def test_gate_opens_first_and_when_something_changed_for_a_while() -> None:
    gate = SceneGate(far=0.5, patience=3)
    assert gate.is_open
    gate.see([CUP])
    gate.close()
    for objects in ([CUP], [], [CUP], [], [], [CUP]):  # a flickering detector
        gate.see(objects)
        assert not gate.is_open
    for _ in range(3):
        gate.see([CUP, CHAIR])
    assert gate.why == "new class chair"
    gate.close()
    assert not gate.is_open


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("Two cups beside a chair.", (0, 1, 2)),
        ("A CHAIR.", (2,)),
        ("The tow truck is left.", (3,)),
        ("Tow trucks and berries.", (3, 4)),
        ("A truck.", ()),  # only part of the name
        ("Armchairs and cupboards.", ()),  # part of other words
        ("A dish, some dishes", (5,)),
        ("Three people.", (6,)),
        ("", ()),
    ],
)
def test_detections_spoken_of_are_found(text: str, indices: tuple[int, ...]) -> None:
    names = ("cup", "cup", "chair", "tow_truck", "berry", "dish", "person")
    assert mentioned(text, names) == indices


def test_detections_of_the_same_frame_are_preferred_to_near_ones() -> None:
    views = Views()
    views.add("front", 1_000_000_000, (CUP,))
    views.add("front", 1_100_000_000, (CHAIR,))
    views.add("rear", 1_000_000_000, ())
    assert views.near("front", 1_000_000_000) == (1_000_000_000, (CUP,))
    assert views.near("front", 1_090_000_000) == (1_100_000_000, (CHAIR,))
    assert views.near("front", 1_700_000_000) == (None, ())
    assert views.near("left", 1_000_000_000) == (None, ())


def test_only_the_newest_detections_are_kept() -> None:
    views = Views()
    for stamp in range(100):
        views.add("front", stamp * 10**9, ())
    assert views.near("front", 10**9) == (None, ())
    assert views.near("front", 99 * 10**9) == (99 * 10**9, ())

from edge_perception.core.contention import ContentionSplit, SplitFrame


def frames(split: ContentionSplit, *ways: tuple[int, int]) -> None:
    for stamp, arrival in ways:
        split.add_frame(stamp, arrival)


def test_frames_are_told_apart_by_the_work_that_touches_their_way() -> None:
    split = ContentionSplit()
    frames(split, (0, 10), (20, 30), (40, 50), (60, 70))
    assert list(split.add_work(25, 45)) == [
        SplitFrame(10, beside_work=False),  # arrived before it began
        SplitFrame(10, beside_work=True),  # it began on its way
        SplitFrame(10, beside_work=True),  # it ended on its way
    ]
    assert list(split.add_work(65, 66)) == [SplitFrame(10, beside_work=True)]


def test_frame_after_the_work_waits_for_the_next() -> None:
    split = ContentionSplit()
    frames(split, (50, 60))
    assert list(split.add_work(0, 40)) == []
    assert list(split.add_work(100, 110)) == [SplitFrame(10, beside_work=False)]


def test_work_told_before_the_frame_arrived_counts_as_well() -> None:
    split = ContentionSplit()
    list(split.add_work(5, 10))
    frames(split, (8, 20), (12, 22))
    assert list(split.add_work(30, 40)) == [
        SplitFrame(12, beside_work=True),  # it ended on its way
        SplitFrame(10, beside_work=False),
    ]


def test_frame_is_told_once() -> None:
    split = ContentionSplit()
    frames(split, (0, 10))
    assert len(list(split.add_work(5, 6))) == 1
    assert list(split.add_work(5, 7)) == list(split.finish()) == []


def test_frames_without_a_model_are_not_told_apart() -> None:
    split = ContentionSplit()
    frames(split, (0, 10))
    assert list(split.finish()) == []


def test_frames_of_long_ago_were_beside_nothing() -> None:
    split = ContentionSplit()
    list(split.add_work(0, 1))
    frames(split, (10, 20), (10**12, 10**12 + 5))
    assert list(split.expire(10**12)) == [SplitFrame(10, beside_work=False)]


def test_waiting_frames_are_bounded() -> None:
    split = ContentionSplit()
    frames(split, *((n, n + 1) for n in range(10_000)))
    assert len(list(split.add_work(0, 20_000))) < 5000

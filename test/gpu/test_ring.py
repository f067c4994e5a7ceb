"""The ring within one process, the same over every transport."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import FrameError, ImageError
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import choose_transport, transport_named

SMALL = ImageFormat("bgr8", 48, 64, 200)
LARGE = ImageFormat.packed("rgb8", 120, 160)

TRANSPORTS = [
    pytest.param("in_process", id="in_process"),
    pytest.param("shared_memory", id="shared_memory"),
    pytest.param("cuda_in_process", id="cuda_in_process", marks=pytest.mark.gpu),
    pytest.param("cuda_ipc", id="cuda_ipc", marks=pytest.mark.gpu),
    pytest.param("cuda_mapped", id="cuda_mapped", marks=pytest.mark.gpu),
]
MakeRing = Callable[..., FrameRing]
_of_thread = threading.local()


def info(sequence: int, image_format: ImageFormat = SMALL) -> FrameInfo:
    now_ns = time.monotonic_ns()
    return FrameInfo(sequence, sequence * 10, "camera_optical", image_format, now_ns, 5, now_ns)


def pixels(sequence: int, image_format: ImageFormat = SMALL) -> NDArray[np.uint8]:
    return np.random.default_rng(sequence).integers(0, 256, image_format.size_bytes, np.uint8)


def read_bytes(lease: FrameLease) -> NDArray[np.uint8]:
    """The frame's bytes, wherever they are."""
    try:
        return lease.pixels.copy()
    except FrameError:
        from cuda.bindings import driver

        from edge_perception.gpu.cuda import Stream, checked, get_device

        if not hasattr(_of_thread, "stream"):
            _of_thread.stream = Stream(get_device())  # it must outlive every lease read on it
        image = lease.on_device(_of_thread.stream.handle)
        _of_thread.stream.synchronize()
        host = np.empty(lease.info.format.size_bytes, np.uint8)
        checked(driver.cuMemcpyDtoH(host.ctypes.data, image.pointer, host.size), "reading back")
        return host


def write(ring: FrameRing, sequence: int, image_format: ImageFormat = SMALL) -> int | None:
    written = ring.write(pixels(sequence, image_format), info(sequence, image_format))
    wait_for_upload(ring)
    return written


def wait_for_upload(ring: FrameRing) -> None:
    """Slots whose upload is under way count as in use, which is not what these tests are about."""
    if ring.transport.device_memory:
        from edge_perception.gpu.cuda import get_device

        get_device().synchronize()


def acquire(ring: FrameRing, after: int = 0) -> FrameLease:
    lease = ring.acquire_newest(after)
    assert lease is not None
    return lease


@pytest.fixture(params=TRANSPORTS)
def make_ring(request: pytest.FixtureRequest) -> Iterator[MakeRing]:
    rings: list[FrameRing] = []

    def make(**changes: object) -> FrameRing:
        values = {"name": "test", "slots": 4, "slot_bytes": SMALL.size_bytes, **changes}
        spec = RingSpec(**values)  # type: ignore[arg-type]
        rings.append(FrameRing.create(spec, transport_named(request.param)))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


def test_newest_frame_arrives_whole_with_its_facts(make_ring: MakeRing) -> None:
    ring = make_ring()
    for sequence in range(1, 12):
        described = info(sequence)
        assert ring.write(pixels(sequence), described) == sequence
        with acquire(ring, after=sequence - 1) as lease:
            assert lease.info == described
            assert (read_bytes(lease) == pixels(sequence)).all()
    assert ring.counters.written == 11
    assert ring.counters.leases_held == 0


def test_nothing_newer_gives_no_lease(make_ring: MakeRing) -> None:
    ring = make_ring()
    assert ring.acquire_newest() is None
    write(ring, 1)
    assert ring.acquire_newest(after=1) is None


def test_leased_frame_is_not_overwritten_while_others_come(make_ring: MakeRing) -> None:
    ring = make_ring()
    write(ring, 1)
    with acquire(ring) as held:
        for sequence in range(2, 30):
            assert write(ring, sequence) == sequence
        assert (read_bytes(held) == pixels(1)).all()
    assert ring.counters.dropped_all_slots_leased == 0


def test_frame_is_dropped_and_counted_when_every_slot_is_read(make_ring: MakeRing) -> None:
    ring = make_ring()
    leases = []
    for sequence in range(1, 5):
        write(ring, sequence)
        leases.append(acquire(ring, after=sequence - 1))
    assert write(ring, 5) is None
    assert ring.counters.dropped_all_slots_leased == 1
    leases[0].release()
    assert write(ring, 6) == 6
    for lease, sequence in zip(leases[1:], (2, 3, 4), strict=True):
        assert (read_bytes(lease) == pixels(sequence)).all()
        lease.release()


def test_larger_image_makes_a_new_ring_and_leaves_the_old_one_to_its_readers(
    make_ring: MakeRing,
) -> None:
    ring = make_ring()
    write(ring, 1)
    with acquire(ring) as held:
        assert write(ring, 2, LARGE) == 2
        with acquire(ring, after=1) as newer:
            assert (read_bytes(newer) == pixels(2, LARGE)).all()
        assert (read_bytes(held) == pixels(1)).all()
    assert write(ring, 3, SMALL) == 3
    counters = ring.counters
    assert (counters.remade_larger, counters.epoch, counters.leases_held) == (1, 2, 0)


def test_overdue_leases_are_quarantined_and_the_ring_is_remade(make_ring: MakeRing) -> None:
    ring = make_ring(lease_overdue_s=0.02)
    held = []
    for sequence in (1, 2, 3):
        write(ring, sequence)
        held.append(acquire(ring, after=sequence - 1))
    time.sleep(0.03)
    assert write(ring, 4) == 4
    counters = ring.counters
    assert (counters.quarantined, counters.remade_quarantined, counters.epoch) == (3, 1, 2)
    assert {grant.info.sequence for grant in ring.overdue} == {1, 2, 3}
    for lease, sequence in zip(held, (1, 2, 3), strict=True):
        assert (read_bytes(lease) == pixels(sequence)).all()
        lease.release()
    assert ring.counters.leases_held == 0
    assert ring.overdue == []


def test_ring_stays_with_its_few_slots_where_memory_for_more_is_lacking(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise FrameError("No memory for a ring")

    ring = make_ring(lease_overdue_s=0.02)
    write(ring, 1)
    held = [acquire(ring, after=0)]
    write(ring, 2)
    held.append(acquire(ring, after=1))
    write(ring, 3)
    held.append(acquire(ring, after=2))
    time.sleep(0.03)
    monkeypatch.setattr(ring, "_allocate", exhausted)
    assert write(ring, 4) == 4
    assert (ring.counters.remade, ring.counters.epoch) == (0, 1)
    assert "stays with few free slots" in caplog.text
    with pytest.raises(FrameError, match="No memory for a ring"):
        write(ring, 5, LARGE)
    assert (read_bytes(held[0]) == pixels(1)).all()
    for lease in held:
        lease.release()


def test_access_after_release_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring()
    write(ring, 1)
    lease = acquire(ring)
    lease.release()
    lease.release()
    with pytest.raises(FrameError, match="already released"):
        lease.pixels  # noqa: B018
    with pytest.raises(FrameError, match="already released"):
        lease.on_device(0)
    assert ring.counters.stale_releases == 0


def test_closed_ring_refuses_and_keeps_what_is_held_until_its_release(make_ring: MakeRing) -> None:
    ring = make_ring()
    write(ring, 1)
    lease = acquire(ring)
    ring.close()
    ring.close()
    assert (read_bytes(lease) == pixels(1)).all()
    lease.release()
    with pytest.raises(FrameError, match="is closed"):
        write(ring, 2)
    with pytest.raises(FrameError, match="is closed"):
        ring.acquire_newest()


def test_subscriber_hears_each_write_and_cannot_hurt_the_writer(make_ring: MakeRing) -> None:
    ring = make_ring()
    heard: list[int] = []

    def fail(sequence: int) -> None:
        raise RuntimeError("a node's mistake")

    ring.subscribe(fail)
    ring.subscribe(heard.append)
    write(ring, 1)
    write(ring, 2)
    ring.unsubscribe(fail)
    write(ring, 3)
    assert heard == [1, 2, 3]
    assert ring.counters.subscriber_errors == 2


def test_size_is_learnt_from_the_first_frame(make_ring: MakeRing) -> None:
    ring = make_ring(slot_bytes=0)
    assert write(ring, 1) == 1
    assert ring.counters.remade == 0
    with acquire(ring) as lease:
        assert (read_bytes(lease) == pixels(1)).all()


def test_bad_frames_are_refused_and_the_ring_lives_on(make_ring: MakeRing) -> None:
    ring = make_ring(max_slot_bytes=20_000)
    write(ring, 5)
    with pytest.raises(FrameError, match="does not increase"):
        write(ring, 5)
    with pytest.raises(ImageError, match="wrong number of bytes"):
        ring.write(pixels(6)[:-300], info(6))
    with pytest.raises(FrameError, match="too large"):
        write(ring, 7, LARGE)
    assert write(ring, 8) == 8


def write_by(ring: FrameRing, sequence: int) -> FrameInfo | None:
    """Write as a decoder does, straight into the slot."""

    def fill(target: NDArray[np.uint8]) -> FrameInfo:
        target[:] = pixels(sequence)
        return info(sequence)

    told = ring.write_by(SMALL, fill)
    wait_for_upload(ring)
    return told


def test_decoder_fills_the_slot_itself(make_ring: MakeRing) -> None:
    ring = make_ring()
    for sequence in range(1, 12):
        told = write_by(ring, sequence)
        assert told is not None
        with acquire(ring, after=sequence - 1) as lease:
            assert lease.info == told
            assert (read_bytes(lease) == pixels(sequence)).all()
    assert (ring.counters.written, ring.counters.leases_held) == (11, 0)


def test_frame_whose_decoding_fails_midway_is_never_seen(make_ring: MakeRing) -> None:
    ring = make_ring()
    write(ring, 1)

    def fail(target: NDArray[np.uint8]) -> FrameInfo:
        target[: target.size // 2] = 99
        raise ImageError("JPEG cannot be decoded")

    for _ in range(10):  # laps of the ring: every slot is given back
        with pytest.raises(ImageError, match="cannot be decoded"):
            ring.write_by(SMALL, fail)
        with acquire(ring) as newest:
            assert newest.sequence == 1
            assert (read_bytes(newest) == pixels(1)).all()
    assert ring.counters.written == 1
    write_by(ring, 2)
    with acquire(ring) as lease:
        assert (read_bytes(lease) == pixels(2)).all()


def test_frame_for_which_there_is_no_slot_is_not_even_decoded(make_ring: MakeRing) -> None:
    ring = make_ring()
    leases = []
    for sequence in range(1, 5):
        write(ring, sequence)
        leases.append(acquire(ring, after=sequence - 1))
    assert ring.write_by(SMALL, lambda _: pytest.fail("decoded for nobody")) is None
    assert ring.counters.dropped_all_slots_leased == 1
    for lease in leases:
        lease.release()


def test_decoder_that_tells_an_old_sequence_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring()
    write(ring, 5)
    with pytest.raises(FrameError, match="does not increase"):
        write_by(ring, 5)
    assert write_by(ring, 6) is not None


@pytest.mark.parametrize("transport", ["in_process", "shared_memory"])
def test_host_memory_is_not_filled_by_a_gpu(transport: str) -> None:
    spec = RingSpec("test", slot_bytes=SMALL.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:
        with pytest.raises(FrameError, match="lies in host memory"):
            ring.write_on_device(SMALL, lambda *_: info(1))
        assert write(ring, 1) == 1


def test_frames_stay_whole_under_readers_in_threads(make_ring: MakeRing) -> None:
    """Three threads read and check every byte while the writer runs at full speed."""
    ring = make_ring(slots=6, max_leases=3)
    frames = {sequence: pixels(sequence) for sequence in range(400)}
    torn: list[int] = []
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        after = 0
        while not done.is_set():
            lease = ring.acquire_newest(after)
            if lease is None:
                time.sleep(0)
                continue
            with lease:
                if not (read_bytes(lease) == frames[lease.sequence]).all():
                    torn.append(lease.sequence)
                after = lease.sequence
                seen.append(after)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for sequence in range(1, 400):
        ring.write(frames[sequence], info(sequence))
        time.sleep(0.0005)
    done.set()
    for reader in readers:
        reader.join()
    counters = ring.counters
    assert torn == []
    assert len(seen) > 10
    assert counters.written + counters.dropped_all_slots_leased == 399
    assert counters.leases_held == 0


@pytest.mark.parametrize("transport", ["in_process", "shared_memory"])
def test_host_views_are_read_only_and_shaped(transport: str) -> None:
    spec = RingSpec("test", slot_bytes=SMALL.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:
        write(ring, 1)
        with acquire(ring) as lease:
            assert lease.image.shape == (48, 64, 3)
            assert lease.image.strides == (200, 3, 1)
            with pytest.raises(ValueError, match="read-only"):
                lease.pixels[0] = 1


@pytest.mark.parametrize("transport", ["in_process", "shared_memory"])
def test_dlpack_tensor_holds_the_lease_until_its_end(transport: str) -> None:
    spec = RingSpec("test", slot_bytes=SMALL.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:
        write(ring, 1)
        tensor = np.from_dlpack(acquire(ring))
        expected = pixels(1).reshape(48, 200)[:, :192].reshape(48, 64, 3)
        for sequence in range(2, 20):
            write(ring, sequence)
        assert (tensor == expected).all()
        assert ring.counters.leases_held == 1
        part = tensor[3:]
        del tensor
        gc.collect()
        assert ring.counters.leases_held == 1
        del part
        gc.collect()
        assert ring.counters.leases_held == 0


def test_dlpack_capsule_that_nobody_takes_releases_its_lease() -> None:
    with FrameRing.create(RingSpec("test", slot_bytes=SMALL.size_bytes)) as ring:
        write(ring, 1)
        capsule = acquire(ring).__dlpack__()
        assert ring.counters.leases_held == 1
        del capsule
        gc.collect()
        assert ring.counters.leases_held == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"slots": 3, "max_leases": 2}, "too few slots: expected at least 4"),
        ({"slots": 4, "max_leases": 0}, "too few slots"),
        ({"slot_bytes": 1 << 40}, "slot_bytes"),
        ({"slot_bytes": -1}, "slot_bytes"),
        ({"lease_overdue_s": 0.0}, "lease_overdue_s"),
    ],
)
def test_impossible_spec_is_refused(changes: dict[str, float], match: str) -> None:
    with pytest.raises(FrameError, match=match):
        RingSpec(**{"name": "test", **changes})  # type: ignore[arg-type]


def test_choice_of_transport_says_why() -> None:
    for across in (False, True):
        choice = choose_transport(across_processes=across, gpu_readers=False)
        assert choice.transport.crosses_processes == across
        assert choice.why == "readers work on the CPU"


def test_unknown_transport_is_refused() -> None:
    with pytest.raises(FrameError, match="unknown frame transport"):
        transport_named("pigeon")

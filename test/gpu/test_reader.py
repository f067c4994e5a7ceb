"""Readers in other, real processes: what they see, and what their deaths do."""

from __future__ import annotations

import fcntl
import gc
import json
import mmap
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import FrameError, FrameWriterGone
from edge_perception.gpu import lease_protocol as protocol
from edge_perception.gpu.descriptor import FrameDescriptor, ring_address
from edge_perception.gpu.host_memory import SharedMemoryTransport
from edge_perception.gpu.reader import FrameReader
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingCounters, RingSpec
from edge_perception.gpu.transports import transport_named

DATA = Path(__file__).parent.parent / "data"
ROOT = DATA.parent.parent
SMALL = ImageFormat.packed("bgr8", 48, 64)
LARGE = ImageFormat.packed("bgr8", 96, 128)
TRANSPORTS = [
    pytest.param("shared_memory", id="shared_memory"),
    pytest.param("cuda_ipc", id="cuda_ipc", marks=pytest.mark.gpu),
    pytest.param("cuda_mapped", id="cuda_mapped", marks=pytest.mark.gpu),
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a script of test/data; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, str(DATA / script), *arguments]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """Let this process have a descriptor of 1024 and more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def make_ring(transport: str = "shared_memory", **changes: object) -> FrameRing:
    values = {"name": "test", "slots": 4, "slot_bytes": SMALL.size_bytes, **changes}
    return FrameRing.create(RingSpec(**values), transport_named(transport))  # type: ignore[arg-type]


def write(ring: FrameRing, sequence: int, image_format: ImageFormat = SMALL) -> int | None:
    noise = np.random.default_rng(sequence).integers(0, 256, image_format.size_bytes, np.uint8)
    now_ns = time.monotonic_ns()
    return ring.write(noise, FrameInfo(sequence, 7, "camera", image_format, now_ns, 0, now_ns))


def say(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def wait_for(ring: FrameRing, condition: Callable[[RingCounters], bool]) -> RingCounters:
    """Poll for up to 10 s; the death of a process takes the time it takes."""
    deadline = time.monotonic() + 10
    while not condition(ring.counters) and time.monotonic() < deadline:
        time.sleep(0.005)
    return ring.counters


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames_arrive_whole_in_another_process(start: Start, transport: str) -> None:
    with make_ring(transport) as ring:
        child = start("frame_reader.py", ring.descriptor(0).hex(), "read", "40")
        sequence = 0
        while child.poll() is None:
            sequence += 1
            image_format = SMALL if sequence < 300 else LARGE
            write(ring, sequence, image_format)
            time.sleep(0.002)
        report = json.loads(say(child))
        assert report["torn"] == 0
        assert report["transport"] == transport
        assert len(report["seen"]) == 40
        assert report["seen"] == sorted(set(report["seen"]))
        assert wait_for(ring, lambda c: c.readers == 0).leases_held == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_lease_of_a_killed_process_is_freed_and_nothing_leaks(start: Start, transport: str) -> None:
    with make_ring(transport) as ring:
        write(ring, 1)
        before = open_descriptors()
        for _ in range(3):
            child = start("frame_reader.py", ring.descriptor(1).hex(), "hold")
            assert say(child) == "holds 1"
            assert ring.counters.leases_held == 1
            child.send_signal(signal.SIGKILL)
            wait_for(ring, lambda c: c.leases_held == 0 and c.readers == 0)
        counters = ring.counters
        assert (counters.freed_by_death, counters.leases_held, counters.readers) == (3, 0, 0)
        children = 3  # each child's stdout pipe stays open in this test
        assert open_descriptors() == before + children


def test_hang_up_alone_does_not_free_a_lease(start: Start) -> None:
    with make_ring() as ring:
        write(ring, 1)
        child = start("frame_reader.py", ring.descriptor(1).hex(), "hang_up")
        assert say(child) == "holds 1"
        for sequence in range(2, 40):
            write(ring, sequence)
            time.sleep(0.001)
        assert ring.counters.leases_held == 1
        child.send_signal(signal.SIGKILL)
        assert wait_for(ring, lambda c: c.leases_held == 0).freed_by_death == 1


def test_overdue_lease_of_a_living_process_is_reported_with_its_pid(start: Start) -> None:
    with make_ring(lease_overdue_s=0.05) as ring:
        write(ring, 1)
        child = start("frame_reader.py", ring.descriptor(1).hex(), "hold")
        assert say(child) == "holds 1"
        time.sleep(0.1)
        write(ring, 2)
        (overdue,) = ring.overdue
        assert (overdue.reader, overdue.info.sequence) == (f"pid {child.pid}", 1)
        assert ring.counters.usable_slots == 3
        child.kill()
        wait_for(ring, lambda c: c.leases_held == 0)
        assert ring.overdue == []
        assert ring.counters.usable_slots == 4


def test_death_of_the_writer_is_seen_and_its_successor_is_read(start: Start) -> None:
    writer = start("frame_writer.py")
    with FrameReader.attach(bytes.fromhex(say(writer))) as reader:
        lease = reader.acquire_newest(timeout_s=5)
        assert lease is not None
        writer.kill()
        writer.wait()
        with pytest.raises(FrameWriterGone, match="has ended"):
            reader.acquire_newest(10**9, timeout_s=5)
        noise = np.random.default_rng(lease.sequence).integers(0, 256, SMALL.size_bytes, np.uint8)
        assert (lease.pixels == noise).all()  # the memory lives as long as its readers
        lease.release()
        successor = bytes.fromhex(say(start("frame_writer.py")))
        assert not reader.matches(successor)
    with FrameReader.attach(successor) as reader:
        assert reader.matches(successor)
        lease = reader.acquire_newest(timeout_s=5)
        assert lease is not None
        lease.release()


def test_attaching_to_a_ring_that_is_gone_says_so() -> None:
    with make_ring() as ring:
        descriptor = ring.descriptor(0)
    with pytest.raises(FrameWriterGone, match="cannot be reached"):
        FrameReader.attach(descriptor)


def test_reader_is_turned_away_while_no_descriptor_is_free_and_the_next_is_served() -> None:
    with make_ring() as ring, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
        asker.settimeout(5)
        free = os.dup(asker.fileno())
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            asker.connect(ring_address(ring.ring_id))
            assert asker.recv(1) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        with FrameReader.attach(ring.descriptor(0)):
            assert ring.counters.refused == 1, "asked once, refused once"


def test_reader_waits_for_a_frame_and_gives_up_in_time() -> None:
    with make_ring() as ring, FrameReader.attach(ring.descriptor(0)) as reader:
        assert reader.acquire_newest() is None
        assert reader.acquire_newest(timeout_s=0.02) is None
        timer = threading.Timer(0.05, write, (ring, 1))
        timer.start()
        lease = reader.acquire_newest(timeout_s=5)
        assert lease is not None
        assert lease.sequence == 1
        lease.release()
        timer.join()
        assert reader.acquire_newest(after=1, timeout_s=0.01) is None
        assert wait_for(ring, lambda c: c.leases_held == 0).granted == 1


def test_reader_follows_into_a_larger_ring_and_lets_the_old_one_go() -> None:
    with make_ring() as ring, FrameReader.attach(ring.descriptor(0)) as reader:
        write(ring, 1)
        old = reader.acquire_newest()
        assert old is not None
        write(ring, 2, LARGE)
        new = reader.acquire_newest(after=1)
        assert new is not None
        assert (new.info.format, old.info.format) == (LARGE, SMALL)
        assert old.pixels[0] == np.random.default_rng(1).integers(0, 256, 1, np.uint8)[0]
        old.release()
        new.release()
        write(ring, 3, LARGE)
        third = reader.acquire_newest(after=2)
        assert third is not None
        assert list(reader._memories) == [2]
        third.release()


def test_dlpack_tensor_in_another_mapping_outlives_its_reader() -> None:
    with make_ring() as ring:
        write(ring, 1)
        with FrameReader.attach(ring.descriptor(0)) as reader:
            lease = reader.acquire_newest()
            assert lease is not None
            tensor = np.from_dlpack(lease)
        for sequence in range(2, 20):
            write(ring, sequence)
        noise = np.random.default_rng(1).integers(0, 256, SMALL.size_bytes, np.uint8)
        assert (tensor.ravel() == noise).all()
        assert ring.counters.leases_held == 1
        del tensor
        gc.collect()
        assert wait_for(ring, lambda c: c.readers == 0).leases_held == 0


def test_reader_cannot_write_the_writers_memory() -> None:
    memory = SharedMemoryTransport().allocate(2, 5000)
    (memory_file,) = memory.export().file_descriptors
    with pytest.raises(PermissionError):
        mmap.mmap(memory_file, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.truncate(memory_file, 0)
    memory.close()


def connect(ring: FrameRing) -> tuple[socket.socket, int]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    connection.connect(ring_address(ring.ring_id))
    return connection, json.loads(connection.recv(4096))["nonce"]


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"op":"acquire","after":0}',
        b'{"op":"acquire","after":0,"nonce":1}',
        b'{"op":"acquire","after":-1,"nonce":NONCE}',
        b'{"op":"acquire","after":"x","nonce":NONCE}',
        b'{"op":"acquire","nonce":NONCE}',
        b'{"op":"release","epoch":1,"serial":1,"nonce":NONCE}',
        b'{"op":"release","epoch":1,"serial":true,"nonce":NONCE}',
        b'{"op":"shutdown","nonce":NONCE}',
        b"[" * 30000,
    ],
)
def test_packet_out_of_order_is_refused_and_others_are_served(packet: bytes) -> None:
    with make_ring() as ring:
        write(ring, 1)
        connection, nonce = connect(ring)
        with connection:
            connection.send(packet.replace(b"NONCE", str(nonce).encode()))
            assert json.loads(connection.recv(4096))["op"] == "refused"
            assert connection.recv(4096) == b""
        with FrameReader.attach(ring.descriptor(1)) as reader:
            lease = reader.acquire_newest()
            assert lease is not None
            lease.release()
        assert wait_for(ring, lambda c: c.readers == 0).refused == 1


def test_random_packets_never_end_the_lease_server() -> None:
    rng = random.Random(9)
    with make_ring() as ring:
        write(ring, 1)
        for _ in range(300):
            connection, nonce = connect(ring)
            request = protocol.encode({"op": "acquire", "after": 0, "nonce": nonce})
            raw = bytearray(request)
            for _ in range(rng.randint(1, 6)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            with connection:
                connection.send(bytes(raw))
        with FrameReader.attach(ring.descriptor(1)) as reader:
            lease = reader.acquire_newest()
            assert lease is not None
            lease.release()


def test_reader_that_never_reads_its_answers_is_hung_up_on() -> None:
    with make_ring() as ring:
        write(ring, 1)
        connection, nonce = connect(ring)
        request = protocol.encode({"op": "acquire", "after": 10**6, "nonce": nonce})
        with connection:
            with suppress(OSError):  # once the server has hung up
                for _ in range(100_000):
                    connection.send(request)
            assert wait_for(ring, lambda c: c.readers == 0).readers == 0
        assert write(ring, 2) == 2


def test_descriptor_with_an_unknown_ring_attaches_to_nothing() -> None:
    stray = FrameDescriptor.here(os.urandom(16), 1, 1).pack()
    with pytest.raises(FrameWriterGone, match="cannot be reached"):
        FrameReader.attach(stray)


def test_closed_reader_refuses_and_its_leases_are_back() -> None:
    with make_ring() as ring:
        write(ring, 1)
        reader = FrameReader.attach(ring.descriptor(1))
        assert reader.acquire_newest() is not None
        reader.close()
        reader.close()
        assert wait_for(ring, lambda c: c.readers == 0).leases_held == 0
        with pytest.raises(FrameError, match="is closed"):
            reader.acquire_newest()


def test_frame_is_awaited_on_any_descriptor(many_open_files: None) -> None:
    with make_ring() as ring, FrameReader.attach(ring.descriptor(1)) as reader:
        low = reader._connection
        high = fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        reader._connection = socket.socket(fileno=high)
        reader._connection.settimeout(low.gettimeout())
        low.close()
        assert reader.acquire_newest(timeout_s=0.01) is None
        write(ring, 1)
        lease = reader.acquire_newest(timeout_s=5)
        assert lease is not None
        lease.release()

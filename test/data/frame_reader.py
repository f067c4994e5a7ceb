"""A reader process for the tests: attaches to a ring and does what it is told.

    python frame_reader.py DESCRIPTOR_HEX read COUNT   # checks every byte, prints what it saw
    python frame_reader.py DESCRIPTOR_HEX hold         # leases a frame and never lets go
    python frame_reader.py DESCRIPTOR_HEX hang_up      # leases a frame, closes the socket, lives on

A frame's bytes are the noise that its sequence seeds.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.reader import FrameReader


def is_whole(lease: FrameLease) -> bool:
    size = lease.info.format.size_bytes
    expected = np.random.default_rng(lease.sequence).integers(0, 256, size, np.uint8)
    return bool((read_bytes(lease) == expected).all())


def read_bytes(lease: FrameLease) -> np.ndarray:
    if lease.__dlpack_device__()[0] == 1:
        return lease.pixels
    from cuda.bindings import driver

    from edge_perception.gpu.cuda import Stream, checked, get_device

    stream = Stream(get_device())
    host = np.empty(lease.info.format.size_bytes, np.uint8)
    pointer = lease.on_device(stream.handle).pointer
    result = driver.cuMemcpyDtoHAsync(host.ctypes.data, pointer, host.size, stream.handle)
    checked(result, "reading back")
    stream.synchronize()
    return host


def read(reader: FrameReader, count: int) -> None:
    seen, torn = [], 0
    while len(seen) < count:
        lease = reader.acquire_newest(seen[-1] if seen else 0, timeout_s=5.0)
        if lease is None:
            break
        with lease:
            torn += not is_whole(lease)
            seen.append(lease.sequence)
    print(json.dumps({"seen": seen, "torn": torn, "transport": reader.transport}), flush=True)


def hold(reader: FrameReader) -> None:
    lease = reader.acquire_newest(timeout_s=5.0)
    assert lease is not None
    print(f"holds {lease.sequence}", flush=True)
    time.sleep(60)


def hang_up(reader: FrameReader) -> None:
    lease = reader.acquire_newest(timeout_s=5.0)
    assert lease is not None
    reader._connection.close()
    print(f"holds {lease.sequence}", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    attached = FrameReader.attach(bytes.fromhex(sys.argv[1]))
    if sys.argv[2] == "read":
        read(attached, int(sys.argv[3]))
    else:
        {"hold": hold, "hang_up": hang_up}[sys.argv[2]](attached)

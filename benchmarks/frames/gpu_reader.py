"""A reader in another process, for the latency between ``write`` and a frame on its stream.

    python -m benchmarks.frames.gpu_reader DESCRIPTOR_HEX FRAMES

Prints one JSON object: latencies in ms, and how many of the first frames were not whole.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from cuda.bindings import driver

from benchmarks.frames.frame_source import is_whole
from edge_perception.gpu.cuda import Stream, checked, get_device
from edge_perception.gpu.reader import FrameReader

CHECKED = 40


def main() -> None:
    """Read until enough frames were seen or the writer has ended."""
    descriptor, frames = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
    device = get_device()
    device.make_current()
    stream = Stream(device)
    latencies_ms: list[float] = []
    torn = 0
    with FrameReader.attach(descriptor) as reader:
        print("attached", flush=True)
        after = 0
        while len(latencies_ms) < frames:
            lease = reader.acquire_newest(after, timeout_s=5.0)
            if lease is None:
                break
            with lease:
                image = lease.on_device(stream.handle)
                stream.synchronize()
                latencies_ms.append((time.monotonic_ns() - lease.info.receive_ns) / 1e6)
                if len(latencies_ms) <= CHECKED:
                    host = np.empty(lease.info.format.size_bytes, np.uint8)
                    checked(
                        driver.cuMemcpyDtoH(host.ctypes.data, image.pointer, host.size),
                        "copying a frame back",
                    )
                    torn += not is_whole(host, lease.sequence)
                after = lease.sequence
    print(json.dumps({"latencies_ms": latencies_ms, "torn": torn}))


if __name__ == "__main__":
    main()

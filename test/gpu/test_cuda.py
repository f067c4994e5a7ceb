"""What only a GPU can show: other libraries' tensors, exhausted memory, a lost context."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import FrameError
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import choose_transport, transport_named

pytestmark = pytest.mark.gpu
DATA = Path(__file__).parent.parent / "data"
PADDED = ImageFormat("rgb8", 48, 64, 200)
ON_DEVICE = ["cuda_in_process", "cuda_ipc", "cuda_mapped"]


def write(ring: FrameRing, sequence: int) -> np.ndarray:
    """Write noise; returns the image that readers should see."""
    noise = np.random.default_rng(sequence).integers(0, 256, PADDED.size_bytes, np.uint8)
    ring.write(noise, FrameInfo(sequence, 0, "camera", PADDED, time.monotonic_ns(), 0, 0))
    return noise.reshape(48, 200)[:, :192].reshape(48, 64, 3)


@pytest.mark.parametrize("transport", ON_DEVICE)
def test_torch_reads_a_slot_by_dlpack_and_holds_its_lease(transport: str) -> None:
    torch = pytest.importorskip("torch")
    spec = RingSpec("test", slot_bytes=PADDED.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:
        expected = write(ring, 1)
        tensor = torch.from_dlpack(ring.acquire_newest())
        for sequence in range(2, 20):
            write(ring, sequence)
        assert tensor.is_cuda
        assert (tensor.cpu().numpy() == expected).all()
        assert ring.counters.leases_held == 1
        del tensor
        gc.collect()
        assert ring.counters.leases_held == 0


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_slot_is_read_by_the_cuda_array_interface(library: str) -> None:
    module = pytest.importorskip(library)
    spec = RingSpec("test", slot_bytes=PADDED.size_bytes)
    with FrameRing.create(spec, transport_named("cuda_in_process")) as ring:
        expected = write(ring, 1)
        lease = ring.acquire_newest()
        assert lease is not None
        with lease:
            image = lease.on_device(0)
            if library == "torch":
                got = module.as_tensor(image, device="cuda").cpu().numpy()
            else:
                got = module.asnumpy(module.asarray(image))
        assert (got == expected).all()


@pytest.mark.parametrize("transport", ["cuda_in_process", "cuda_ipc"])
def test_exhausted_device_memory_is_refused_with_the_sizes(transport: str) -> None:
    spec = RingSpec("test", slot_bytes=1 << 40, max_slot_bytes=1 << 41)
    with pytest.raises(FrameError, match=r"not enough memory for 4 slots of 1099511627776 bytes"):
        FrameRing.create(spec, transport_named(transport))
    small = RingSpec("test", slot_bytes=PADDED.size_bytes)
    with FrameRing.create(small, transport_named(transport)) as ring:
        write(ring, 1)
        assert ring.counters.written == 1


def test_ring_that_lost_its_gpu_says_so_and_hands_nothing_out() -> None:
    environment = {**os.environ, "PYTHONPATH": str(DATA.parent.parent)}
    environment["PYTHONPATH"] += f":{os.environ.get('PYTHONPATH', '')}"
    run = subprocess.run(
        [sys.executable, str(DATA / "sticky_error.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert lines[0].startswith("sticky True: CUDA failed while")
    assert lines[1].startswith("ring 'test' has lost its GPU")
    assert lines[2].startswith("ring 'test' has lost its GPU")
    assert lines[3] == "failure True"


def test_probe_chooses_a_cuda_transport_and_says_why() -> None:
    for across in (False, True):
        choice = choose_transport(across_processes=across, gpu_readers=True)
        assert choice.transport.name.startswith("cuda_")
        assert choice.transport.crosses_processes or not across
        assert choice.why

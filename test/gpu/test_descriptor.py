"""The wire form of a frame handle: what is refused, and that nothing else gets through."""

from __future__ import annotations

import dataclasses
import random
import struct
import zlib
from collections.abc import Callable

import pytest

from edge_perception.errors import FrameError
from edge_perception.gpu import descriptor
from edge_perception.gpu.descriptor import SIZE_BYTES, VERSION, FrameDescriptor

RING = bytes(range(16))
FUZZ_ROUNDS = 100_000


def packed(**changes: object) -> bytes:
    return dataclasses.replace(FrameDescriptor.here(RING, 3, 41), **changes).pack()


def resealed(raw: bytes) -> bytes:
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4]))


def test_descriptor_survives_the_wire() -> None:
    parsed = FrameDescriptor.unpack(packed())
    parsed.check_origin()
    assert (parsed.ring_id, parsed.epoch, parsed.sequence) == (RING, 3, 41)
    assert len(packed()) == SIZE_BYTES


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda raw: raw[:0], "not a frame descriptor"),
        (lambda raw: raw[:-1], "not a frame descriptor"),
        (lambda raw: raw + b"\0", "not a frame descriptor"),
        (lambda raw: resealed(b"JPEG" + raw[4:]), "not a frame descriptor"),
        (lambda raw: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:], "damaged"),
        (lambda raw: resealed(raw[:4] + struct.pack("<H", VERSION + 1) + raw[6:]), "version"),
    ],
)
def test_malformed_descriptor_is_refused(damage: Callable[[bytes], bytes], match: str) -> None:
    with pytest.raises(FrameError, match=match):
        FrameDescriptor.unpack(damage(packed()))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"uid": 4242}, "another user"),
        ({"boot_id": bytes(16)}, "an earlier boot"),
        ({"boot_id": bytes(16), "host": b"orin-2".ljust(16, b"\0")}, "another host, 'orin-2'"),
    ],
)
def test_descriptor_from_elsewhere_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(FrameError, match=match):
        FrameDescriptor.unpack(packed(**changes)).check_origin()


def test_no_mutation_of_a_descriptor_is_accepted_or_crashes() -> None:
    """Flips, cuts, insertions and splices; only an unchanged descriptor may parse."""
    rng = random.Random(4)
    original = packed()
    accepted = 0
    for _ in range(FUZZ_ROUNDS):
        raw = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            kind = rng.randrange(4)
            at = rng.randrange(len(raw)) if raw else 0
            if kind == 0 and raw:
                raw[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del raw[at : at + rng.randint(1, 8)]
            elif kind == 2:
                raw[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                raw[at : at + 4] = rng.randbytes(4)
        try:
            parsed = FrameDescriptor.unpack(raw)
        except FrameError:
            continue
        accepted += bytes(raw) != original
        parsed.check_origin()
    assert accepted == 0


def test_ring_address_is_abstract_and_short_enough() -> None:
    address = descriptor.ring_address(RING)
    assert address.startswith("\0")
    assert len(address) < 108

"""The frame handle on the wire: what the ``data`` of an ``~/frames`` message holds.

80 bytes, little-endian: magic, version, uid, hostname's first 16 bytes, the kernel's boot id, the
ring's random id, epoch, the frame's sequence, and a CRC-32 of all that. It names a ring and a
frame; the pixels, and whether they may be read, are asked for over the lease connection.

The boot id is what tells hosts apart (two running kernels never share one, containers of one
kernel do); the hostname only makes the refusal readable.
"""

from __future__ import annotations

import os
import socket
import struct
import uuid
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edge_perception.errors import FrameError

VERSION = 1
ENCODING = "edge_perception/frame"
"""``encoding`` of the ``sensor_msgs/Image`` that carries a descriptor in its ``data``."""

_MAGIC = b"EPFD"
_BODY = struct.Struct("<4sHxxI16s16s16sQQ")
_CRC = struct.Struct("<I")
SIZE_BYTES = _BODY.size + _CRC.size
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class FrameDescriptor:
    """One frame of one ring. ``ring_id`` and ``boot_id`` are 16 bytes each."""

    uid: int
    host: bytes
    boot_id: bytes
    ring_id: bytes
    epoch: int
    sequence: int

    @classmethod
    def here(cls, ring_id: bytes, epoch: int, sequence: int) -> FrameDescriptor:
        """Describe a frame of a ring that this process writes."""
        return cls(os.getuid(), _host(), _boot_id(), ring_id, epoch, sequence)

    def pack(self) -> bytes:
        """Return the wire form, ``SIZE_BYTES`` long."""
        body = _BODY.pack(
            _MAGIC,
            VERSION,
            self.uid,
            self.host,
            self.boot_id,
            self.ring_id,
            self.epoch,
            self.sequence,
        )
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> FrameDescriptor:
        """Parse the wire form.

        Raises:
            FrameError: wrong length, magic, version or checksum.
        """
        raw = bytes(data)
        if len(raw) != SIZE_BYTES or raw[:4] != _MAGIC:
            raise FrameError(
                "not a frame descriptor",
                expected=f"{SIZE_BYTES} bytes that begin with {_MAGIC!r}",
                got=(len(raw), raw[:4]),
            )
        if zlib.crc32(raw[: _BODY.size]) != _CRC.unpack_from(raw, _BODY.size)[0]:
            raise FrameError("frame descriptor was damaged on its way", expected="a matching CRC")
        _, version, *fields = _BODY.unpack_from(raw)
        if version != VERSION:
            raise FrameError(
                "frame descriptor of another version",
                expected=f"version {VERSION}",
                got=version,
                mend="Run the same release of edge_perception on both sides.",
            )
        return cls(*fields)

    def check_origin(self) -> None:
        """Raise ``FrameError`` unless the ring is on this boot of this host, of this user."""
        if self.boot_id != _boot_id():
            there = self.host.rstrip(b"\0").decode("utf-8", "replace")
            problem = "an earlier boot" if self.host == _host() else f"another host, {there!r}"
            raise FrameError(
                f"frame descriptor comes from {problem}",
                expected="a ring of this boot of this host",
                mend="Frames do not cross hosts: subscribe to the image topic instead.",
            )
        if self.uid != os.getuid():
            raise FrameError(
                "frame descriptor comes from another user",
                expected=f"uid {os.getuid()}",
                got=self.uid,
                mend="Run writer and readers as one user.",
            )


def ring_address(ring_id: bytes) -> str:
    """Name of the lease server's socket; abstract, so that no file is left behind."""
    return f"\0edge_perception/{ring_id.hex()}"


@lru_cache(maxsize=1)
def _boot_id() -> bytes:
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes


def _host() -> bytes:
    return socket.gethostname().encode()[:16].ljust(16, b"\0")

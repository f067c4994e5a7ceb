"""The words between a ring's lease server and its readers.

One JSON object a packet over a ``SOCK_SEQPACKET`` Unix socket, memory files beside it as ancillary
data. Reader: ``acquire`` (optionally waiting), ``cancel`` (of a waiting one), ``release``. Server:
``welcome``, ``grant``, ``none``, ``refused``. Each ``acquire`` gets one answer; ``cancel`` and
``release`` get none.
"""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import EdgePerceptionError, FrameError
from edge_perception.gpu.ledger import Grant
from edge_perception.gpu.memory import ExportedMemory

MAX_PACKET_BYTES = 32768
MAX_FILES = 8
Packet = dict[str, Any]


def send(connection: socket.socket, packet: Mapping[str, Any], files: Sequence[int] = ()) -> None:
    """Send a packet and duplicates of open files. ``OSError`` as the socket raises it.

    Not ``socket.send_fds``, which drops its flags up to Python 3.12.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else []
    connection.sendmsg([encode(packet)], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    """Receive a packet's bytes (empty at the end) and the files beside it, now the caller's."""
    files = array("i")
    room = socket.CMSG_SPACE(MAX_FILES * files.itemsize)
    data, rights, _, _ = connection.recvmsg(MAX_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, raw in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(raw[: len(raw) - len(raw) % files.itemsize])
    return data, tuple(files)


def encode(packet: Mapping[str, Any]) -> bytes:
    """Return a packet's bytes."""
    return json.dumps(packet, separators=(",", ":")).encode()


def decode(data: bytes) -> Packet:
    """Parse a packet's bytes; ``FrameError`` if they are no JSON object with an ``op``."""
    try:
        packet = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError("lease packet is not JSON", got=data[:64]) from error
    if not isinstance(packet, dict) or not isinstance(packet.get("op"), str):
        raise FrameError("lease packet has no op", got=data[:64])
    return packet


def integer(packet: Mapping[str, Any], key: str) -> int:
    """Return a non-negative integer field, or raise ``FrameError``."""
    value = packet.get(key)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise FrameError(f"lease packet field {key!r}", expected="an integer from 0", got=value)
    return value


def grant_fields(grant: Grant) -> Packet:
    """Flatten a grant for a packet."""
    # By hand: dataclasses.asdict copies deeply, which costs as much as all the rest of a grant.
    info = grant.info
    return {**vars(grant), "info": {**vars(info), "format": vars(info.format)}}


def parse_grant(fields: object) -> Grant:
    """Rebuild a grant, or raise ``FrameError``."""
    try:
        values = dict(fields)  # type: ignore[call-overload]
        info = dict(values.pop("info"))
        image_format = ImageFormat(**info.pop("format"))
        return Grant(info=FrameInfo(format=image_format, **info), **values)
    except (TypeError, ValueError, KeyError, EdgePerceptionError) as error:
        raise FrameError(f"lease packet holds a malformed grant: {error}") from error


def memory_fields(exported: ExportedMemory) -> Packet:
    """Flatten a memory's description; its files travel beside the packet."""
    return {
        "slots": exported.slots,
        "slot_bytes": exported.slot_bytes,
        "facts": dict(exported.facts),
    }


def parse_memory(fields: Mapping[str, Any], files: tuple[int, ...]) -> ExportedMemory:
    """Rebuild a memory's description, or raise ``FrameError``."""
    facts = fields.get("facts")
    if not isinstance(facts, dict) or not all(isinstance(fact, str) for fact in facts.values()):
        raise FrameError("lease packet holds malformed memory facts", got=facts)
    return ExportedMemory(integer(fields, "slots"), integer(fields, "slot_bytes"), facts, files)

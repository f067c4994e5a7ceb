"""The words between a ring's lease server and its readers.

One JSON object a packet over a ``SOCK_SEQPACKET`` Unix socket, memory files beside it as ancillary
data. Reader: ``acquire`` (optionally waiting), ``cancel`` (of a waiting one), ``release``. Server:
``welcome``, ``grant``, ``none``, ``refused``. Each ``acquire`` gets one answer; ``cancel`` and
``release`` get none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import EdgePerceptionError, FrameError
from edge_perception.gpu.ledger import Grant
from edge_perception.gpu.memory import ExportedMemory

MAX_PACKET_BYTES = 32768
MAX_FILES = 8
Packet = dict[str, Any]


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
    return asdict(grant)


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

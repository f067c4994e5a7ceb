"""Grants leases to other processes, and learns of their deaths.

One daemon thread in the writer's process. It only ever sends without blocking: a reader that does
not read its answers is hung up on. What ends a lease is its release, or the death of its process,
which the kernel tells through a pidfd. A hang-up alone does not: the process may have closed its
socket and still be reading the memory, so its leases stay until it releases nothing more, that
is, until it dies.

A pid can be recycled between ``connect`` and ``pidfd_open``. Each session therefore has a nonce,
sent after the pidfd was opened; only requests that repeat it count, and whoever repeats it was
alive when the pidfd was taken.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from edge_perception.errors import EdgePerceptionError, FrameError
from edge_perception.gpu import lease_protocol as protocol
from edge_perception.gpu.descriptor import ring_address
from edge_perception.gpu.ledger import Grant
from edge_perception.gpu.memory import FrameMemory

_LOG = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("iII")
MAX_SESSIONS = 256


class LeaseDesk(Protocol):
    """What the server asks of the ring. All methods are thread-safe and do not block."""

    def grant_newest(self, after: int, reader: str) -> tuple[Grant, FrameMemory] | None:
        """Lease the newest frame above a sequence; ``FrameError`` when none will ever come."""
        ...

    def give_back(self, grant: Grant, read_done: str) -> None:
        """Take a released lease back; ``read_done`` as the reader's transport exported it."""
        ...

    def take_from_dead(self, grant: Grant) -> None:
        """Take a lease back whose process has died."""
        ...


@dataclass(eq=False)
class _Session:
    connection: socket.socket
    pid: int
    pidfd: int
    nonce: int
    grants: dict[tuple[int, int], Grant] = field(default_factory=dict)
    epochs_sent: set[int] = field(default_factory=set)
    connected: bool = True


class LeaseServer:
    """Listens at ``ring_address(ring_id)`` until closed."""

    def __init__(self, ring_id: bytes, transport: str, desk: LeaseDesk) -> None:
        self._ring_id = ring_id
        self._transport = transport
        self._desk = desk
        self._sessions: set[_Session] = set()
        self._refused = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(ring_address(ring_id))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._spare = os.eventfd(0, os.EFD_CLOEXEC)  # given up where no descriptor is free
        self._closing = False
        self._waiting: dict[_Session, int] = {}  # and the sequence above which it wants a frame
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._serve_waiting)
        self._thread = threading.Thread(target=self._run, name="frame-leases", daemon=True)
        self._thread.start()

    @property
    def readers(self) -> int:
        """Processes connected, or dead or gone with leases not yet taken back."""
        return len(self._sessions)

    @property
    def refused(self) -> int:
        """Connections and requests that were refused."""
        return self._refused

    def notify(self) -> None:
        """Say that a frame was published. Never blocks.

        Wakes the thread only for a reader that waits: one that begins to wait at this moment has
        said so before it asked the desk, and has then either been seen here or found the frame.
        """
        if self._waiting and not self._closing:
            os.eventfd_write(self._wake, 1)

    def close(self) -> list[Grant]:
        """Hang up on every reader and end the thread; returns the leases they still hold."""
        if self._closing:
            return []
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        held = [grant for session in self._sessions for grant in session.grants.values()]
        for session in self._sessions:
            session.connection.close()
            os.close(session.pidfd)
        self._sessions.clear()
        self._selector.close()
        self._listener.close()
        for descriptor in (self._wake, self._spare):
            if descriptor >= 0:
                os.close(descriptor)
        return held

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                serve: Callable[[], None] = key.data
                serve()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
            connection.setblocking(False)
        except OSError as error:  # the peer left again, or no descriptor is free
            self._refused += 1
            _LOG.warning("a frame reader could not be accepted: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        problem = self._why_refused(pid, uid)
        if problem:
            self._refused += 1
            _send(connection, {"op": "refused", "problem": problem})
            connection.close()
            return
        self._open_session(connection, pid)

    def _turn_away(self) -> None:
        """Hang up on who asks while no descriptor is free: waiting, it would keep this loop busy.

        Where another thread has taken the spare's place, it waits for the next refusal's.
        """
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.eventfd(0, os.EFD_CLOEXEC)

    def _why_refused(self, pid: int, uid: int) -> str:
        if uid != os.getuid():
            return f"the ring belongs to uid {os.getuid()}, the reader to uid {uid}"
        if pid == 0:
            return "the reader's process is in another PID namespace: share it (--pid=host)"
        if len(self._sessions) >= MAX_SESSIONS:
            return f"the ring has {MAX_SESSIONS} readers already"
        return ""

    def _open_session(self, connection: socket.socket, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it died already, or no descriptor is free
            self._refused += 1
            connection.close()
            return
        session = _Session(connection, pid, pidfd, secrets.randbits(48))
        self._sessions.add(session)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(session))
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._bury(session))
        welcome = {
            "op": "welcome",
            "nonce": session.nonce,
            "ring": self._ring_id.hex(),
            "transport": self._transport,
        }
        self._answer(session, welcome)

    def _receive(self, session: _Session) -> None:
        if not session.connected:
            return
        try:
            data = session.connection.recv(protocol.MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._refuse_on_error(session, lambda: self._obey(session, protocol.decode(data)))
        else:
            self._hang_up(session)

    def _refuse_on_error(self, session: _Session, action: Callable[[], None]) -> None:
        """Nothing that a reader sends, and no failing GPU, may end this thread."""
        try:
            action()
        except (EdgePerceptionError, ValueError) as error:
            self._refused += 1
            self._answer(session, {"op": "refused", "problem": str(error)})
            self._hang_up(session)

    def _obey(self, session: _Session, packet: protocol.Packet) -> None:
        if packet.get("nonce") != session.nonce:
            raise FrameError("lease request of another session", got=packet.get("nonce"))
        if packet["op"] == "acquire":
            self._waiting[session] = protocol.integer(packet, "after")
            self._serve(session, answer_none=not packet.get("wait"))
        elif packet["op"] == "cancel":
            if self._waiting.pop(session, None) is not None:
                self._answer(session, {"op": "none"})
        elif packet["op"] == "release":
            self._release(session, packet)
        else:
            raise FrameError("unknown lease request", got=packet["op"])

    def _release(self, session: _Session, packet: protocol.Packet) -> None:
        key = (protocol.integer(packet, "epoch"), protocol.integer(packet, "serial"))
        grant = session.grants.get(key)
        if grant is None:
            raise FrameError("release of a lease that the reader does not hold", got=key)
        self._desk.give_back(grant, str(packet.get("read_done", "")))
        del session.grants[key]

    def _serve_waiting(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        for session in tuple(self._waiting):
            serve = partial(self._serve, session, answer_none=False)
            self._refuse_on_error(session, serve)

    def _serve(self, session: _Session, *, answer_none: bool) -> None:
        granted = self._desk.grant_newest(self._waiting[session], f"pid {session.pid}")
        if granted is not None:
            del self._waiting[session]
            self._send_grant(session, *granted)
        elif answer_none:
            del self._waiting[session]
            self._answer(session, {"op": "none"})

    def _send_grant(self, session: _Session, grant: Grant, memory: FrameMemory) -> None:
        session.grants[grant.epoch, grant.serial] = grant
        packet: protocol.Packet = {"op": "grant", "grant": protocol.grant_fields(grant)}
        files: tuple[int, ...] = ()
        if grant.epoch not in session.epochs_sent:
            exported = memory.export()
            packet["memory"] = protocol.memory_fields(exported)
            files = exported.file_descriptors
            session.epochs_sent.add(grant.epoch)
        self._answer(session, packet, files)

    def _answer(
        self, session: _Session, packet: protocol.Packet, files: tuple[int, ...] = ()
    ) -> None:
        if session.connected and not _send(session.connection, packet, files):
            self._hang_up(session)

    def _hang_up(self, session: _Session) -> None:
        """End the connection; leases stay until the process dies."""
        if session.connected:
            session.connected = False
            self._waiting.pop(session, None)
            self._selector.unregister(session.connection)
            session.connection.close()
        if not session.grants:
            self._forget(session)

    def _bury(self, session: _Session) -> None:
        """Take back what a dead process held."""
        if session not in self._sessions:
            return
        grants, session.grants = tuple(session.grants.values()), {}
        for grant in grants:
            self._desk.take_from_dead(grant)
        self._hang_up(session)

    def _forget(self, session: _Session) -> None:
        if session in self._sessions:
            self._sessions.discard(session)
            self._selector.unregister(session.pidfd)
            os.close(session.pidfd)


def _send(connection: socket.socket, packet: protocol.Packet, files: tuple[int, ...] = ()) -> bool:
    """Send without blocking; False when the peer is gone or does not read."""
    try:
        protocol.send(connection, packet, files)
    except OSError:
        return False
    return True

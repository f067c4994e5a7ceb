"""A ring's frames in another process.

The reader holds one connection to the writer's lease server and maps each epoch's memory once. It
never sees the ring's bookkeeping, so nothing it does, dying included, can damage it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from edge_perception.errors import FrameError, FrameWriterGone
from edge_perception.gpu import lease_protocol as protocol
from edge_perception.gpu.descriptor import FrameDescriptor, ring_address
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.ledger import Grant, ReadDone
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.memory import FrameMemory, Transport
from edge_perception.gpu.transports import transport_named

ANSWER_TIMEOUT_S = 5.0
_T = TypeVar("_T")


class FrameReader:
    """Attached to one ring until closed, or until its writer ends.

    ``acquire_newest`` may be called from several threads; they take turns. A reader does not
    outlive a fork.
    """

    def __init__(self, descriptor: FrameDescriptor, connection: socket.socket) -> None:
        self._ring_id = descriptor.ring_id
        self._connection = connection
        self._turn = threading.Lock()
        self._memories: dict[int, FrameMemory] = {}
        self._held: dict[tuple[int, int], FrameLease] = {}
        self._closed = False
        packet, _ = self._read_answer()
        if packet["op"] != "welcome" or packet.get("ring") != self._ring_id.hex():
            raise FrameError("the ring refused this reader", got=packet.get("problem", packet))
        self._nonce = protocol.integer(packet, "nonce")
        self._transport: Transport = transport_named(str(packet.get("transport")))

    @classmethod
    def attach(cls, descriptor: bytes | bytearray | memoryview) -> FrameReader:
        """Connect to the ring a descriptor names.

        Raises:
            FrameError: damaged, or from another host, boot, user or version.
            FrameWriterGone: the ring's writer has ended.
        """
        parsed = FrameDescriptor.unpack(descriptor)
        parsed.check_origin()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(ring_address(parsed.ring_id))
            return cls(parsed, connection)
        except OSError as error:
            connection.close()
            raise FrameWriterGone(
                "the ring's writer cannot be reached",
                expected="a running writer in the same network namespace",
                got=str(error),
                mend="Attach to the next descriptor that arrives.",
            ) from error
        except BaseException:
            connection.close()
            raise

    def matches(self, descriptor: bytes | bytearray | memoryview) -> bool:
        """Tell whether a descriptor names this ring; if not, close and attach anew.

        Raises:
            FrameError: the descriptor is damaged or foreign.
        """
        parsed = FrameDescriptor.unpack(descriptor)
        parsed.check_origin()
        return parsed.ring_id == self._ring_id

    @property
    def transport(self) -> str:
        """Name of the transport in use, for diagnostics."""
        return self._transport.name

    def acquire_newest(self, after: int = 0, timeout_s: float = 0.0) -> FrameLease | None:
        """Lease the newest frame whose sequence is above ``after``.

        Waits up to ``timeout_s`` for one; returns None if there is none.

        Raises:
            FrameWriterGone: the writer has ended; attach to its successor.
            FrameError, CudaError: the frame's memory cannot be opened here.
        """
        with self._turn:
            if self._closed:
                raise FrameError("the frame reader is closed")
            request = {"op": "acquire", "after": after, "wait": timeout_s > 0}
            self._send(request)
            if timeout_s > 0 and not self._await_answer(timeout_s):
                self._send({"op": "cancel"})
            packet, files = self._read_answer()
            try:
                return self._to_lease(packet, files)
            finally:
                for received in files:
                    os.close(received)

    def close(self) -> None:
        """Release every lease, hang up and unmap; idempotent.

        DLPack tensors keep their leases, and with them the connection, until their end.
        """
        self._closed = True
        for lease in tuple(self._held.values()):
            lease.release()
        if not self._held:
            self._detach()

    def _detach(self) -> None:
        self._connection.close()
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _to_lease(self, packet: protocol.Packet, files: tuple[int, ...]) -> FrameLease | None:
        if packet["op"] == "none":
            return None
        if packet["op"] != "grant":
            raise FrameError("the ring refused a lease", got=packet.get("problem", packet["op"]))
        grant = protocol.parse_grant(packet.get("grant"))
        if "memory" in packet:
            exported = protocol.parse_memory(packet["memory"], files)
            try:
                self._memories[grant.epoch] = self._transport.open(exported)
            except BaseException:
                self._say_released(grant, "")
                raise
        lease = FrameLease(grant, self._memories[grant.epoch], self._give_back)
        self._held[grant.epoch, grant.serial] = lease
        self._drop_old_epochs(grant.epoch)
        return lease

    def _drop_old_epochs(self, current: int) -> None:
        read = {epoch for epoch, _ in tuple(self._held)} | {current}
        for epoch in [epoch for epoch in self._memories if epoch not in read]:
            self._memories.pop(epoch).close()

    def _give_back(self, grant: Grant, read_done: ReadDone | None) -> None:
        """Tell the writer; takes no lock, because a finaliser may call it anywhere."""
        mark = ""
        if read_done is not None:
            with giving_back(f"the mark behind frame {grant.info.sequence}"):
                mark = self._memories[grant.epoch].export_read_done(read_done)
        self._say_released(grant, mark)
        del self._held[grant.epoch, grant.serial]
        if self._closed and not self._held:
            self._detach()

    def _say_released(self, grant: Grant, mark: str) -> None:
        packet = {"op": "release", "epoch": grant.epoch, "serial": grant.serial, "read_done": mark}
        with suppress(FrameWriterGone):  # then nobody is left to reuse the slot
            self._send(packet)

    def _send(self, packet: protocol.Packet) -> None:
        said = {**packet, "nonce": self._nonce}
        self._speak(lambda: protocol.send(self._connection, said))

    def _await_answer(self, timeout_s: float) -> bool:
        waiting = select.poll()  # select() itself knows no descriptor from 1024 on
        waiting.register(self._connection, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1e3))

    def _read_answer(self) -> tuple[protocol.Packet, tuple[int, ...]]:
        data, files = self._speak(lambda: protocol.receive(self._connection))
        if not data:
            raise FrameWriterGone("the ring's writer has ended", mend="Attach to its successor.")
        return protocol.decode(data), files

    def _speak(self, say: Callable[[], _T]) -> _T:
        try:
            return say()
        except OSError as error:
            self._connection.close()
            raise FrameWriterGone(
                "the ring's writer has ended or does not answer",
                got=str(error),
                mend="Attach to its successor.",
            ) from error

"""Reads knocks from an NFQUEUE and gives each its verdict.

Fail closed: whatever happens to a packet in here, its verdict is not "accept". Without a reader, or with a full queue,
the kernel drops.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import warnings
from typing import Any

from nfknock import netlink
from nfknock.core.packet import Packet, parse
from nfknock.core.plan import REJECT_MARK, Answer
from nfknock.errors import MissingDependencyError, ReaderError
from nfknock.readers import PACKETS_AT_ONCE, QUEUE_LENGTH, ReaderCounters, owners

# Headers are all that is wanted; the longest chain of extension headers that is parsed fits in here with room.
_BYTES_COPIED = 512
_SOCKET_BUFFER = 8 << 20
# linux/netlink.h, linux/netfilter.h
_HEADER = struct.Struct("=IHHII")
_REQUEST, _DROP = 1, 0
# linux/netfilter/nfnetlink_queue.h; one verdict for many packets is as old as Linux 3.1.
_VERDICT_OF_ALL, _VERDICT = 3 << 8 | 3, 2


class NfqueueReader:
    """One NFQUEUE, for both families."""

    lag = 0.0

    def __init__(self, queue: int, answer: Answer = "drop") -> None:
        self.counters = ReaderCounters()
        self.answer: Answer = answer
        self._number = queue
        self._queue: Any = None
        self._socket: _BoundedSocket | None = None
        self._packets: list[Packet] = []
        self._undecided: int | None = None
        """The id of the last packet that waits for the verdict of all before it."""

    def open(self) -> None:
        try:
            from netfilterqueue import NetfilterQueue
        except ImportError:
            raise MissingDependencyError("NetfilterQueue") from None
        try:
            queue = NetfilterQueue()
        except OSError as exc:
            raise ReaderError(f"opening NFQUEUE {self._number}: {_reason(exc)}") from exc
        try:
            with warnings.catch_warnings():
                # It warns when the socket buffer came out smaller; then losses are counted sooner, that is all.
                warnings.simplefilter("ignore", RuntimeWarning)
                queue.bind(self._number, self._take, max_len=QUEUE_LENGTH, range=_BYTES_COPIED, sock_len=_SOCKET_BUFFER)
        except OSError as exc:
            raise ReaderError(owners.why_not_bound("nfqueue", self._number)) from exc
        self._queue = queue
        self._socket = _BoundedSocket(queue.get_fd(), self.counters)

    @property
    def port(self) -> int:
        assert self._socket is not None  # opened
        return self._socket.port

    @property
    def is_drained(self) -> bool:
        return self._socket is not None and self._socket.is_drained

    def fileno(self) -> int:
        return int(self._queue.get_fd())

    def read(self, most: int = PACKETS_AT_ONCE) -> list[Packet]:
        assert self._socket is not None  # opened
        self._socket.left, self._socket.is_drained = most, False
        try:
            try:
                self._queue.run_socket(self._socket)
            finally:
                # Even if the above raised: a packet without a verdict stays in the queue for ever.
                if self._undecided is not None:
                    self._socket.drop(self._number, self._undecided)
                    self._undecided = None
        except OSError as exc:
            raise ReaderError(f"reading NFQUEUE {self._number}: {(exc.strerror or str(exc)).lower()}") from exc
        packets, self._packets = self._packets, []
        return packets

    def count_lost(self) -> int:
        # The kernel's own counts are for root's eyes; without them there is what the socket reported.
        with contextlib.suppress(OSError):
            if row := owners.row("nfqueue", self._number):
                return int(row[5]) + int(row[6])
        return self.counters.lost

    def close(self) -> None:
        if self._queue is not None:
            self._queue.unbind()
        if self._socket is not None:
            self._socket.close()
        self._queue = self._socket = None

    def _take(self, packet: Any) -> None:
        try:
            parsed = parse(packet.get_payload())
            if parsed is None:
                self.counters.unreadable += 1
            else:
                self._packets.append(parsed)
        finally:
            # A marked packet has been here already: the rule that rejects it is gone, and it would go round for ever.
            if self.answer == "reject" and packet.get_mark() != REJECT_MARK:
                packet.set_mark(REJECT_MARK)
                packet.repeat()
            else:
                self._undecided = packet.id


class _BoundedSocket:
    """The queue's socket as NetfilterQueue reads it, but for a limited number of messages.

    Left alone it reads until there is nothing left, which under a flood is never.
    """

    def __init__(self, descriptor: int, counters: ReaderCounters) -> None:
        self.left = 0
        self.is_drained = False
        """Whether it was read until nothing was left."""
        self._counters = counters
        self._socket = socket.fromfd(descriptor, socket.AF_NETLINK, socket.SOCK_RAW)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[0])

    def recv(self, size: int) -> bytes:
        if self.left <= 0:
            raise BlockingIOError(errno.EAGAIN, "enough for now")
        self.left -= 1
        try:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.is_drained = True
            raise
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                self._counters.lost += 1
            raise

    def drop(self, queue: int, last: int) -> None:
        """Drop every packet of a queue that still waits, up to the one of that id: one message for all of them."""
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, queue)
        body += netlink.attribute(_VERDICT, struct.pack("!II", _DROP, last))
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _VERDICT_OF_ALL, _REQUEST, 0, 0) + body)

    def close(self) -> None:
        self._socket.close()


def _reason(exc: OSError) -> str:
    if exc.errno in (errno.EPERM, errno.EACCES) or "root" in str(exc):
        return "permission denied; run this as root"
    if exc.errno in (errno.EPROTONOSUPPORT, errno.ENOENT):
        return "this kernel has no NFQUEUE (CONFIG_NETFILTER_NETLINK_QUEUE)"
    return (exc.strerror or str(exc)).lower()

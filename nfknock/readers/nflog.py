"""Reads copies of knocks from an NFLOG group. The packets themselves go on: the rules behind drop or answer them.

Fail closed: nothing in here has a say in what becomes of a packet. Without a reader, or with a full buffer, a knock is
dropped unseen.

The kernel asks for CAP_NET_ADMIN when the group is bound and never again: a process that has dropped every capability
since goes on reading. `readers.apart` has this socket read by one; here the daemon reads it itself. Why the socket is
set as it is: docs/design/0012-nflog.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from nfknock import netlink
from nfknock.apart import logged
from nfknock.apart.copies import Copies
from nfknock.core.packet import Packet
from nfknock.core.plan import Answer
from nfknock.errors import ReaderError
from nfknock.readers import PACKETS_AT_ONCE, ReaderCounters, owners

# Headers are all that is wanted; the longest chain of extension headers that is parsed fits in here with room.
_BYTES_COPIED = 512
# Of knocks that come so fast that no rule asks for them at once. They fill a page before they are so many.
_PACKETS_A_DATAGRAM = 32
# In hundredths of a second, from the first packet of a datagram: 0 is the kernel's next tick.
_FLUSH_TIMEOUT = 0
# Half a second's worth of small packets under a flood, which is as late as an honest knock may come.
_SOCKET_BUFFER = 4 << 20
_LONGEST_ANSWER = 1 << 17

# linux/netlink.h, asm-generic/socket.h; Python's socket module has neither.
_SOL_NETLINK, _NO_ENOBUFS, _SO_RCVBUFFORCE = 270, 5, 33
_HEADER = struct.Struct("=IHHII")
_ERROR, _REQUEST, _ACKNOWLEDGE = 2, 1, 4
# linux/netfilter/nfnetlink_log.h
_CONFIGURE = logged.SUBSYSTEM << 8 | 1
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD, _FLAGS = 1, 2, 4, 5, 6
_BIND, _COPY_PACKET, _WITH_NUMBERS = 1, 2, 1


class NflogReader:
    """One NFLOG group, for both families."""

    # Of what comes too fast to be asked for one by one: two of the kernel's ticks where those are longest.
    lag = 0.02

    def __init__(self, group: int, answer: Answer = "drop", *, key: str = "`queue` under [reader]") -> None:
        """`key` is where the group is configured."""
        self.counters = ReaderCounters()
        self.answer: Answer = answer
        self._group = group
        self._key = key
        self._socket: socket.socket | None = None
        self._copies: Copies | None = None

    def open(self) -> None:
        try:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, netlink.NETFILTER)
        except OSError as exc:
            raise ReaderError(f"opening NFLOG group {self._group}: {_reason(exc)}") from exc
        try:
            opened.bind((0, 0))
            _widen(opened)
            _bind(opened, self._group)
        except OSError as exc:
            opened.close()
            if exc.errno in (errno.EPERM, errno.EBUSY):
                raise ReaderError(owners.why_not_bound("nflog", self._group, self._key)) from exc
            raise ReaderError(f"binding NFLOG group {self._group}: {_reason(exc)}") from exc
        self._socket, self._copies = opened, Copies(opened)

    @property
    def port(self) -> int:
        assert self._socket is not None  # opened
        return int(self._socket.getsockname()[0])

    @property
    def is_drained(self) -> bool:
        return self._copies is not None and self._copies.is_drained

    def fileno(self) -> int:
        assert self._socket is not None  # opened
        return self._socket.fileno()

    def read(self, most: int = PACKETS_AT_ONCE) -> list[Packet]:
        assert self._copies is not None  # opened
        try:
            packets, unreadable, lost = self._copies.take(most)
        except OSError as exc:
            raise ReaderError(f"reading NFLOG group {self._group}: {_reason(exc)}") from exc
        self.counters.unreadable += unreadable
        self.counters.lost += lost
        return packets

    def count_lost(self) -> int:
        return self.counters.lost

    def close(self) -> None:
        # The kernel unbinds a group whose socket is gone.
        if self._socket is not None:
            self._socket.close()
        self._socket = self._copies = None


def _widen(opened: socket.socket) -> None:
    """Have a socket buffer that a flood does not fill at once, and go on when it is full."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
    with contextlib.suppress(PermissionError):
        # Beyond net.core.rmem_max; in a user namespace that is all there is.
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
    # Otherwise a socket that was full once gets nothing at all until it has been read empty.
    opened.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)


def _bind(opened: socket.socket, group: int) -> None:
    """Ask the kernel for a group's packets. Raises OSError."""
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + b"".join(
        (
            netlink.attribute(_COMMAND, struct.pack("!B", _BIND)),
            netlink.attribute(_MODE, struct.pack("!IBx", _BYTES_COPIED, _COPY_PACKET)),
            netlink.attribute(_TIMEOUT, struct.pack("!I", _FLUSH_TIMEOUT)),
            netlink.attribute(_THRESHOLD, struct.pack("!I", _PACKETS_A_DATAGRAM)),
            netlink.attribute(_FLAGS, struct.pack("!H", _WITH_NUMBERS)),
        )
    )
    opened.send(_HEADER.pack(_HEADER.size + len(body), _CONFIGURE, _REQUEST | _ACKNOWLEDGE, 1, 0) + body)
    while True:
        # The answer is there when `send` returns; packets may be in front of it, and they count as lost.
        answer = opened.recv(_LONGEST_ANSWER)
        if _HEADER.unpack_from(answer)[1] == _ERROR:
            code = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
            if code:
                raise OSError(code, os.strerror(code))
            return


def _reason(exc: OSError) -> str:
    if exc.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
        return "this kernel has no NFLOG (CONFIG_NETFILTER_NETLINK_LOG)"
    return (exc.strerror or str(exc)).lower()

"""Takes the copies of packets that the kernel hands over for an NFLOG group, from a socket that somebody has bound.

It needs no right for that: the kernel asks when a group is bound, and never again.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from nfknock.apart import logged
from nfknock.core.packet import Packet, parse

_LONGEST_DATAGRAM = 1 << 17
_ALL_NUMBERS = 1 << 32
_KERNEL = 0


class Taken(NamedTuple):
    """Packets, and how many could not be read, or were lost before them."""

    packets: list[Packet]
    unreadable: int
    lost: int


class Copies:
    """What comes for one group by its socket, which does not block."""

    def __init__(self, source: socket.socket) -> None:
        self.next_number = 0
        """Which number the next packet has if none is lost. The kernel counts from 0 when the group is bound."""
        self.is_drained = False
        """Whether `take` stopped because nothing more was there."""
        self._socket = source
        self._buffer = memoryview(bytearray(_LONGEST_DATAGRAM))
        self._unreadable = self._lost = 0

    def take(self, most: int) -> Taken:
        """Take what is there, about so many packets at once. Raises OSError when the socket fails."""
        self._unreadable = self._lost = 0
        packets: list[Packet] = []
        left = most
        self.is_drained = False
        while left > 0:
            datagram = self._receive()
            if datagram is None:
                self.is_drained = True
                break
            for each in logged.read(datagram):
                left -= 1
                packet = self._read(each) if each else None
                if packet is None:
                    self._unreadable += 1
                else:
                    packets.append(packet)
        return Taken(packets, self._unreadable, self._lost)

    def _receive(self) -> bytes | None:
        """Return the next datagram of the kernel's, None if there is none for now."""
        while True:
            try:
                # With MSG_TRUNC the size is that of the datagram, not of what there was room for.
                size, (sender, _groups) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno == errno.ENOBUFS:
                    continue  # the numbers will tell how many
                raise
            if sender == _KERNEL and size <= _LONGEST_DATAGRAM:
                return bytes(self._buffer[:size])
            self._unreadable += 1

    def _read(self, each: logged.Logged) -> Packet | None:
        # What was lost before the first packet counts too.
        self._lost += (each.number - self.next_number) % _ALL_NUMBERS
        self.next_number = (each.number + 1) % _ALL_NUMBERS
        return parse(each.payload)

"""What the kernel says of packets that a rule logged: datagrams of nfnetlink to packets and their numbers.

A datagram holds one message or several, a message one packet in the attributes of linux/netfilter/nfnetlink_log.h.
What does not fit together is not read any further: the gap that it leaves in the numbers is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

SUBSYSTEM = 4

# linux/netlink.h; behind it stand family, version and group (linux/netfilter/nfnetlink.h).
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTES_AT = _HEADER.size + 4
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("!I")
_PACKET, _DONE = SUBSYSTEM << 8, 3
# The upper two bits say how an attribute is written.
_KIND_MASK = 0x3FFF
_PAYLOAD, _SEQUENCE_NUMBER = 9, 12


class Logged(NamedTuple):
    """A packet from its IP header on, as much of it as was asked for. Each has the number after the last one's."""

    number: int
    payload: bytes


def read(datagram: bytes) -> Iterator[Logged | None]:
    """Yield each packet of a datagram in turn, and None for what should be one and cannot be read."""
    at, end = 0, len(datagram)
    while at + _HEADER.size <= end:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= end - at:
            break
        if kind == _PACKET:
            yield _packet(datagram, at + _ATTRIBUTES_AT, at + length)
        elif kind != _DONE:
            yield None
        at += _padded(length)
    if at < end:
        yield None


def _packet(datagram: bytes, at: int, end: int) -> Logged | None:
    number: int | None = None
    payload = b""
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(datagram, at)
        if not _ATTRIBUTE.size <= length <= end - at:
            return None
        kind &= _KIND_MASK
        if kind == _PAYLOAD:
            payload = datagram[at + _ATTRIBUTE.size : at + length]
        elif kind == _SEQUENCE_NUMBER and length == _ATTRIBUTE.size + _NUMBER.size:
            number = _NUMBER.unpack_from(datagram, at + _ATTRIBUTE.size)[0]
        at += _padded(length)
    return None if number is None else Logged(number, payload)


def _padded(length: int) -> int:
    return (length + 3) & ~3

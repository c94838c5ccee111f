"""What the daemon and the process that reads for it say to each other: numbers of fixed size, a datagram each.

A request says about how many packets are wanted, and the number of the next one. An answer has a head and one record a
packet. Both ends are on one host and of one version, so the byte order is the host's own.

Who reads for the daemon may have fallen to a stranger. So what it says is believed as far as it could be true, and not
a byte further: what does not fit raises NonsenseError.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nfknock.apart.copies import Taken
from nfknock.core.packet import TCP, UDP, Packet

MOST_AT_ONCE = 512
"""Packets are never asked for in greater number: so answers are short."""
LONGEST_ANSWER = 1 << 16
"""In bytes: so many packets, and what one datagram of the kernel's may hold beyond."""

REQUEST = struct.Struct("=II")
# An error's number or 0; how many were unreadable, how many lost; the number of the next packet.
_HEAD = struct.Struct("=IIII")
# IP version; source, target; protocol; ports; TCP's sequence number and flags.
_PACKET = struct.Struct("=B16s16sBHHIB")
_REST_OF_IPV4 = bytes(12)
# linux/err.h: MAX_ERRNO
_MOST_ERRNO = 4095
# In the place of an error's number: this is the last that will be said, and a text says why.
_LAST_WORDS = 0xFFFFFFFF
_LONGEST_TEXT = 120


class NonsenseError(ValueError):
    """Something was answered that no answer can be."""


class LastWordsError(Exception):
    """The process that was asked ends, for the reason that it gives: printable ASCII, one short line."""


class Answer(NamedTuple):
    """What was taken, and the number of the packet after it."""

    taken: Taken
    next_number: int


def pack(taken: Taken, next_number: int) -> bytes:
    """Return an answer."""
    records = [_HEAD.pack(0, taken.unreadable, taken.lost, next_number)]
    for each in taken.packets:
        version = 4 if len(each.source) == 4 else 6
        records.append(_PACKET.pack(version, *each))
    return b"".join(records)


def pack_error(number: int) -> bytes:
    """Return the answer that a socket fails, or that a right cannot be given up, with this errno."""
    return _HEAD.pack(number, 0, 0, 0)


def pack_last_words(text: str) -> bytes:
    """Return the answer of a process that ends."""
    return _HEAD.pack(_LAST_WORDS, 0, 0, 0) + text.encode("ascii", "replace")[:_LONGEST_TEXT]


def unpack(answer: bytes | memoryview) -> Answer:
    """Read an answer. Raises NonsenseError, LastWordsError, and OSError where the answer is one."""
    if len(answer) < _HEAD.size:
        raise NonsenseError
    error, unreadable, lost, next_number = _HEAD.unpack_from(answer)
    records = answer[_HEAD.size :]
    if error:
        _raise(error, bytes(records))
    if len(records) % _PACKET.size:
        raise NonsenseError
    packets = [_packet(*fields) for fields in _PACKET.iter_unpack(records)]
    return Answer(Taken(packets, unreadable, lost), next_number)


def _raise(error: int, rest: bytes) -> None:
    if error == _LAST_WORDS and rest and len(rest) <= _LONGEST_TEXT and all(0x20 <= byte < 0x7F for byte in rest):
        raise LastWordsError(rest.decode("ascii"))
    if error > _MOST_ERRNO or rest:
        raise NonsenseError
    raise OSError(error, "")


def _packet(  # noqa: PLR0913, PLR0917  (a record's fields)
    version: int, source: bytes, target: bytes, protocol: int, source_port: int, port: int, number: int, flags: int
) -> Packet:
    if version == 4:
        if source[4:] != _REST_OF_IPV4 or target[4:] != _REST_OF_IPV4:
            raise NonsenseError
        source, target = source[:4], target[:4]
    elif version != 6:
        raise NonsenseError
    if protocol != TCP and (protocol != UDP or number or flags):
        raise NonsenseError
    return Packet(source, target, protocol, source_port, port, number, flags)

"""One entry of a set, as bytes: cut out of the kernel's answers, and put into what it is told.

pyroute2 gives every attribute an object of its own: ten thousand holes would take it seconds. The numbers are those of
linux/netfilter/ipset/ip_set.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address

from nfknock.core.model import PROTOCOL_NUMBERS, IPAddress, Opening, Port, Protocol
from nfknock.netlink import attribute, attributes, number, text

ADT = 8
_DATA = 7
_IP, _PORT, _TIMEOUT, _PROTOCOL = 1, 4, 6, 7
_NAME, _IP2, _BYTES, _PACKETS, _COMMENT = 18, 20, 24, 25, 26
_ADDRESSES = {4: 1, 6: 2}
NESTED, _IN_NETWORK_ORDER = 0x8000, 0x4000
_ATTRIBUTE = struct.Struct("=HH")
# An entry begins with its source: the heads of the entry, of the address, and of what kind of address it is.
_SOURCE_AT = 12
_PROTOCOL_NAMES: dict[int, Protocol] = {value: name for name, value in PROTOCOL_NUMBERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Who is let in to what. `timeout` is in seconds from now on; 0: for ever."""

    source: IPAddress
    opening: Opening
    comment: str
    timeout: int
    packets: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        to = f",{self.opening.to}" if self.opening.to else ""
        return f"{self.source},{self.opening.port.protocol}:{self.opening.port.number}{to}"


def read_entries(answer: bytes, sources: Collection[bytes] | None = None) -> Iterator[Entry | None]:
    """Yield the entries of one answer to a question for a set, those of some packed sources alone if they are given.

    None stands for one that is no hole's, as in sets of other types: it lacks a port, or is of another protocol.
    """
    for listed in _lists(answer):
        at = 0
        while at + _SOURCE_AT < len(listed):
            size = _ATTRIBUTE.unpack_from(listed, at)[0]
            if sources is None or _source(listed, at) in sources:
                yield _entry(listed[at + 4 : at + size])
            at += (size + 3) & ~3


@cache
def _opening(protocol: Protocol, port: bytes, behind: bytes) -> Opening:
    """Return what is opened; there are few of these, and thousands of entries."""
    return Opening(Port(number(port), protocol), ip_address(behind[4:]) if behind else None)


def write_entry(entry: Entry) -> bytes:
    """Return an entry as it stands in a list of what is to be added, or deleted."""
    port = entry.opening.port
    parts = [
        _address(_IP, entry.source),
        _number(_PORT, port.number, 2),
        attribute(_PROTOCOL, bytes([PROTOCOL_NUMBERS[port.protocol]])),
        _number(_TIMEOUT, entry.timeout, 4),
        _number(_BYTES, entry.bytes, 8),
        _number(_PACKETS, entry.packets, 8),
        attribute(_COMMENT, entry.comment.encode() + b"\0"),
    ]
    if entry.opening.to is not None:
        parts.append(_address(_IP2, entry.opening.to))
    return attribute(_DATA | NESTED, b"".join(parts))


def _address(kind: int, address: IPAddress) -> bytes:
    inner = attribute(_ADDRESSES[address.version] | _IN_NETWORK_ORDER, address.packed)
    return attribute(kind | NESTED, inner)


def _number(kind: int, value: int, size: int) -> bytes:
    return attribute(kind | _IN_NETWORK_ORDER, value.to_bytes(size))


def read_members(answer: bytes) -> Iterator[str]:
    """Yield the names of the sets that a list of sets has, from one answer to a question for it."""
    for listed in _lists(answer):
        for _kind, content in attributes(listed):
            if name := dict(attributes(content)).get(_NAME):
                yield text(name)


def _lists(answer: bytes) -> Iterator[bytes]:
    # In front of the attributes stand four bytes of nfnetlink's own.
    return (content for kind, content in attributes(answer, 4) if kind == ADT)


def _source(listed: bytes, at: int) -> bytes:
    size = 16 if _ATTRIBUTE.unpack_from(listed, at + 8)[0] == 20 else 4
    return listed[at + _SOURCE_AT : at + _SOURCE_AT + size]


def _entry(raw: bytes) -> Entry | None:
    found = dict(attributes(raw))
    protocol = _PROTOCOL_NAMES.get(number(found.get(_PROTOCOL, b"")))
    if protocol is None or _IP not in found or _PORT not in found:
        return None
    return Entry(
        source=ip_address(found[_IP][4:]),
        opening=_opening(protocol, found[_PORT], found.get(_IP2, b"")),
        comment=text(found.get(_COMMENT, b"")),
        timeout=number(found.get(_TIMEOUT, b"")),
        packets=number(found.get(_PACKETS, b"")),
        bytes=number(found.get(_BYTES, b"")),
    )

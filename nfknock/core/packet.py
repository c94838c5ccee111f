"""Bytes of an IP packet to the few fields that a knock has.

Whatever a stranger sends is data: what has no TCP or UDP header where one should be parses to None, and nothing here
raises. The kernel has reassembled fragments before a packet comes here wherever connection tracking is on (it is,
with nfknock's own rules); a fragment that comes alone all the same is None unless it carries the whole header.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

TCP = 6
UDP = 17

_FRAGMENT = 44
# RFC 8200 allows more in principle; no honest host sends a SYN behind this many.
_MOST_EXTENSIONS = 8

# RFC 9293 section 3.1, as far as the flags; RFC 768.
_TCP_HEADER = struct.Struct("!HHI5xB")
_PORTS = struct.Struct("!HH")
_UDP_HEADER_SIZE = 8


class Packet(NamedTuple):
    """One TCP or UDP packet. Addresses are packed, in network order: 4 or 16 bytes.

    `sequence_number` and `flags` are 0 for UDP.
    """

    source: bytes
    target: bytes
    protocol: int
    source_port: int
    port: int
    sequence_number: int = 0
    flags: int = 0

    @property
    def code(self) -> int:
        """Protocol and destination port in one integer, as `Port.code` has it."""
        return self.protocol << 16 | self.port

    @property
    def echo(self) -> int:
        """What it has in common with its retransmissions and duplicates alone: a number of 72 bits."""
        return self.sequence_number << 40 | self.source_port << 24 | self.protocol << 16 | self.port


def code_of(echo: int) -> int:
    """Return the code of the packets that have this echo."""
    return echo & 0xFFFFFF


def parse(payload: bytes) -> Packet | None:
    """Read an IPv4 or IPv6 packet that begins with its IP header; None if it is no TCP or UDP packet with ports."""
    if not payload:
        return None
    version = payload[0] >> 4
    if version == 4:
        return _parse_ipv4(payload)
    if version == 6:
        return _parse_ipv6(payload)
    return None


def _parse_ipv4(payload: bytes) -> Packet | None:
    if len(payload) < 20:
        return None
    header = (payload[0] & 0x0F) * 4
    total = payload[2] << 8 | payload[3]
    if header < 20 or total < header:
        return None
    if (payload[6] & 0x1F) << 8 | payload[7]:
        return None  # a later fragment has no ports
    # Bytes behind the length that the header states are link padding, not packet.
    end = min(len(payload), total)
    return _transport((payload[12:16], payload[16:20]), payload[9], payload, header, end)


def _parse_ipv6(payload: bytes) -> Packet | None:
    if len(payload) < 40:
        return None
    end = min(len(payload), 40 + (payload[4] << 8 | payload[5]))
    following, offset = payload[6], 40
    for _ in range(_MOST_EXTENSIONS + 1):
        if following in (TCP, UDP):
            return _transport((payload[8:24], payload[24:40]), following, payload, offset, end)
        if offset + 8 > end or not _may_pass(following, payload, offset):
            return None
        size = 8 if following == _FRAGMENT else payload[offset + 1] * 8 + 8
        following, offset = payload[offset], offset + size
    return None


def _may_pass(extension: int, payload: bytes, offset: int) -> bool:
    """Whether the kernel would hand on what stands behind this extension header, as it stands.

    Not what is sealed (AH, ESP: what was unsealed comes without its header), nor what goes on to another host, nor
    hop-by-hop options behind anything else (RFC 8200 section 4.1).
    """
    match extension:
        case 0:  # hop-by-hop options
            return offset == 40
        case 43:  # routing; behind it: kind, addresses left
            return payload[offset + 3] == 0
        case 44:  # fragment; of a packet in several, the first
            return not (payload[offset + 2] << 8 | payload[offset + 3]) & 0xFFF8
        case 60:  # options for the destination
            return True
    return False


def _transport(addresses: tuple[bytes, bytes], protocol: int, payload: bytes, offset: int, end: int) -> Packet | None:
    if protocol == TCP and end - offset >= _TCP_HEADER.size:
        source_port, port, number, flags = _TCP_HEADER.unpack_from(payload, offset)
        return Packet(*addresses, TCP, source_port, port, number, flags)
    if protocol == UDP and end - offset >= _UDP_HEADER_SIZE:
        return Packet(*addresses, UDP, *_PORTS.unpack_from(payload, offset))
    return None

"""Frames on the cable, byte by byte: what no socket would send, from addresses that nobody has."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import count
from typing import Self

from nfknock.core.model import Port
from tests.lab import Lab

SYN = 2
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_FRAGMENT6 = 44
_FRESH = count(20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    """One IP packet to a port. `extensions` are IPv6's: of each its number and what stands behind its first byte."""

    source: str
    target: str
    port: Port
    flags: int = SYN
    data: bytes = b""
    checksum_error: int = 0
    source_port: int = field(default_factory=lambda: next(_FRESH))
    extensions: tuple[tuple[int, bytes], ...] = ()

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.source

    def segment(self) -> bytes:
        """Return the transport header and the data, with a checksum that is off by `checksum_error`."""
        ports = struct.pack("!HH", self.source_port, self.port.number)
        if self.port.protocol == "udp":
            head, at = ports + struct.pack("!HH", 8 + len(self.data), 0), 6
        else:
            head, at = ports + struct.pack("!IIBBHHH", self.source_port, 0, 5 << 4, self.flags, 1024, 0, 0), 16
        raw = head + self.data
        pseudo = ip_address(self.source).packed + ip_address(self.target).packed
        pseudo += struct.pack("!II", len(raw), self.port.code >> 16)
        value = _sum(pseudo + raw) ^ self.checksum_error or 0xFFFF
        return raw[:at] + struct.pack("!H", value) + raw[at + 2 :]

    def packet(self) -> bytes:
        """Return it whole."""
        return self._headed(self.segment())

    def fragments(self, *cuts: int, wanted: tuple[int, ...] = ()) -> list[bytes]:
        """Return it in pieces that end at these bytes of the segment, multiples of 8; only those `wanted`, if any."""
        raw = self.segment()
        ends = [*cuts, len(raw)]
        pieces = [
            self._fragment(raw[start:end], start, is_last=end == len(raw))
            for start, end in zip([0, *cuts], ends, strict=True)
        ]
        return [pieces[index] for index in wanted] if wanted else pieces

    def _fragment(self, piece: bytes, start: int, *, is_last: bool) -> bytes:
        if not self.is_ipv6:
            return self._headed(piece, start // 8 | (0 if is_last else 0x2000))
        head = struct.pack("!BHI", 0, start | (not is_last), self.source_port)
        return replace(self, extensions=(*self.extensions, (_FRAGMENT6, head)))._headed(piece)

    def _headed(self, payload: bytes, fragment: int = 0) -> bytes:
        source, target = ip_address(self.source).packed, ip_address(self.target).packed
        protocol = self.port.code >> 16
        if self.is_ipv6:
            numbers = [*(number for number, _rest in self.extensions), protocol]
            chain = b"".join(
                bytes([following]) + rest
                for following, (_number, rest) in zip(numbers[1:], self.extensions, strict=True)
            )
            return (
                struct.pack("!IHBB", 6 << 28, len(chain + payload), numbers[0], 64) + source + target + chain + payload
            )
        # The identification tells fragments of one packet from those of another.
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), self.source_port, fragment, 64, protocol, 0)
        head += source + target
        return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + payload


class Wire:
    """The client's end of the cable, without the client's kernel in between."""

    def __init__(self, lab: Lab) -> None:
        [device] = json.loads(lab.bastion.run("ip", "-json", "link", "show", "b0").stdout)
        with lab.client.here():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind(("c0", 0))
        self._head = bytes.fromhex(device["address"].replace(":", "")) + b"\x02\0\0\0\0\x01"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def send(self, *packets: bytes) -> None:
        """Send IP packets to the bastion's interface, whatever addresses they bear."""
        for packet in packets:
            self._socket.send(self._head + struct.pack("!H", _ETHERTYPES[packet[0] >> 4]) + packet)


def _sum(raw: bytes) -> int:
    """The checksum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(raw) + 1) // 2}H", raw + bytes(len(raw) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

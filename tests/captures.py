"""Writes captures byte by byte: packets, link layers, pcap and pcapng."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import ip_address

from nfknock.core.model import Port

SYN = 2
ETHERNET, RAW, COOKED, COOKED2, BSD, BSD_LOOP = 1, 101, 113, 276, 0, 108


def packet(
    port: str, *, source: str = "192.0.2.2", target: str = "192.0.2.1", flags: int = SYN, source_port: int = 40_000
) -> bytes:
    """Return an IP packet to a port."""
    at, here, there = Port.parse(port), ip_address(source), ip_address(target)
    if at.protocol == "udp":
        segment = struct.pack("!HHHH", source_port, at.number, 9, 0) + b"\0"
    else:
        segment = struct.pack("!HHIIBBHHH", source_port, at.number, source_port, 0, 5 << 4, flags, 1024, 0, 0)
    protocol = at.code >> 16
    if here.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64) + here.packed + there.packed + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0)
    return header + here.packed + there.packed + segment


def frame(link_type: int, content: bytes, *, tags: tuple[int, ...] = (), kind: int = 0) -> bytes:
    """Put a link layer in front; `tags` are the ethertypes of VLAN tags, `kind` is Linux's (4: sent by the host)."""
    ethertype = 0x0800 if content[0] >> 4 == 4 else 0x86DD
    types = [*tags, ethertype]
    behind = b"".join(struct.pack("!HH", 7, following) for following in types[1:])
    match link_type:
        case 1:
            return bytes(12) + struct.pack("!H", types[0]) + behind + content
        case 113:
            return struct.pack("!HHH8sH", kind, 1, 6, bytes(8), types[0]) + behind + content
        case 276:
            return struct.pack("!HHIHBB8s", types[0], 0, 1, 1, kind, 6, bytes(8)) + behind + content
        case 0:
            return struct.pack("<I", 2 if ethertype == 0x0800 else 30) + content
        case 108:
            return struct.pack(">I", 2 if ethertype == 0x0800 else 24) + content
    return content


Frames = Iterable[tuple[float, bytes]]


def pcap(frames: Frames, *, link_type: int = RAW, order: str = "<", nano: bool = False) -> bytes:
    """Return a pcap file."""
    magic, fraction = (0xA1B23C4D, 1e9) if nano else (0xA1B2C3D4, 1e6)
    records = [struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 65535, link_type)]
    for at, content in frames:
        seconds = int(at)
        size = len(content)
        records += [struct.pack(f"{order}IIII", seconds, round((at - seconds) * fraction), size, size), content]
    return b"".join(records)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """Return a block of pcapng."""
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link_type: int, order: str = "<", resolution: int | None = None) -> bytes:
    """Return an interface's block; `resolution` is the power of ten of its clock, or of two with bit 7 set."""
    option = b"" if resolution is None else struct.pack(f"{order}HHBxxxHH", 9, 1, resolution, 0, 0)
    return block(1, struct.pack(f"{order}HHI", link_type, 0, 0) + option, order)


def enhanced(
    at: float, content: bytes, *, interface: int = 0, order: str = "<", per_second: float = 1e6, outbound: bool = False
) -> bytes:
    """Return the block of a packet."""
    ticks = round(at * per_second)
    head = struct.pack(f"{order}IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(content), len(content))
    option = struct.pack(f"{order}HHIHH", 2, 4, 2, 0, 0) if outbound else b""
    return block(6, head + content + bytes(-len(content) % 4) + option, order)


def simple(content: bytes, order: str = "<") -> bytes:
    """Return the block of a packet that does not say when."""
    return block(3, struct.pack(f"{order}I", len(content)) + content, order)

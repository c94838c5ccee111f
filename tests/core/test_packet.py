"""What strangers send: parsed or passed over, never an exception."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.core.packet import TCP, UDP, Packet, parse

TCP_HEADER = struct.pack("!HHIIBBHHH", 40000, 7000, 0x01020304, 0, 5 << 4, 0x02, 64240, 0, 0)
UDP_HEADER = struct.pack("!HHHH", 40000, 7000, 9, 0) + b"x"
A4, B4 = ip_address("192.0.2.2").packed, ip_address("192.0.2.1").packed
A6, B6 = ip_address("2001:db8::2").packed, ip_address("2001:db8::1").packed


def ipv4(segment: bytes, protocol: int = TCP, *, options: bytes = b"", fragment: int = 0) -> bytes:
    length = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s", 4 << 4 | length // 4, 0, length + len(segment), 1, fragment, 64, protocol, 0, A4, B4
    )
    return header + options + segment


def ipv6(segment: bytes, following: int = TCP, extensions: bytes = b"") -> bytes:
    payload = extensions + segment
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), following, 64, A6, B6) + payload


def options6(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


def test_a_syn() -> None:
    assert parse(ipv4(TCP_HEADER)) == Packet(A4, B4, TCP, 40000, 7000, 0x01020304, 0x02)


def test_a_datagram() -> None:
    assert parse(ipv4(UDP_HEADER, UDP)) == Packet(A4, B4, UDP, 40000, 7000)


def test_ipv6_is_its_equal() -> None:
    assert parse(ipv6(TCP_HEADER)) == Packet(A6, B6, TCP, 40000, 7000, 0x01020304, 0x02)
    assert parse(ipv6(UDP_HEADER, UDP)) == Packet(A6, B6, UDP, 40000, 7000)


def test_ip_options_are_stepped_over() -> None:
    packet = parse(ipv4(TCP_HEADER, options=bytes(40)))
    assert packet is not None
    assert packet.port == 7000


def test_link_padding_is_no_packet() -> None:
    assert parse(ipv4(UDP_HEADER[:4], UDP) + bytes(30)) is None


@pytest.mark.parametrize(
    ("first", "chain"),
    [
        (0, options6(TCP)),
        (60, options6(TCP, 3)),
        (43, options6(60) + options6(TCP)),
        (0, options6(43) + options6(44) + bytes([TCP, 0, 0, 1, 0, 0, 0, 7])),
    ],
)
def test_ipv6_extension_headers_are_stepped_over(first: int, chain: bytes) -> None:
    packet = parse(ipv6(TCP_HEADER, first, chain))
    assert packet is not None
    assert (packet.protocol, packet.port) == (TCP, 7000)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\x45",
        b"\x00" * 64,
        b"\xff" * 64,
        ipv4(TCP_HEADER)[:33],
        ipv4(TCP_HEADER)[:19],
        ipv4(UDP_HEADER, UDP)[:27],
        ipv4(TCP_HEADER, protocol=1),
        ipv4(TCP_HEADER, fragment=185),
        ipv4(TCP_HEADER)[:2] + b"\x00\x10" + ipv4(TCP_HEADER)[4:],
        b"\x44" + ipv4(TCP_HEADER)[1:],
        ipv6(TCP_HEADER)[:39],
        ipv6(TCP_HEADER)[:53],
        ipv6(TCP_HEADER, 59),
        ipv6(TCP_HEADER, 50, options6(TCP)),
        ipv6(TCP_HEADER, 44, bytes([TCP, 0, 0x05, 0xC8, 0, 0, 0, 7])),
        ipv6(TCP_HEADER, 60, options6(60) * 20 + options6(TCP)),
        ipv6(TCP_HEADER, 60, bytes([TCP, 255]) + bytes(6)),
        ipv6(TCP_HEADER, 60, options6(0) + options6(TCP)),
        ipv6(TCP_HEADER, 43, bytes([TCP, 0, 0, 1]) + bytes(4)),
        ipv6(TCP_HEADER, 51, bytes([TCP, 4]) + bytes(22)),
        ipv6(TCP_HEADER, 135, options6(TCP)),
    ],
)
def test_rubbish_is_none(rubbish: bytes) -> None:
    assert parse(rubbish) is None


@given(st.binary(max_size=200))
def test_the_parser_never_raises(payload: bytes) -> None:
    parse(payload)


@given(st.sampled_from([4, 6]), st.binary(min_size=1, max_size=120), st.integers(0, 119))
def test_the_parser_never_raises_on_what_begins_well(version: int, payload: bytes, cut: int) -> None:
    good = ipv4(TCP_HEADER + payload) if version == 4 else ipv6(payload, payload[0], options6(payload[0]))
    parse(good[:cut] + payload)
    parse(good[:cut])

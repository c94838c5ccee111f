"""What netlink brings: packets and their numbers, or nothing; never an exception."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.apart.logged import Logged, read

PAYLOAD, NUMBER, PREFIX = 9, 12, 10
PACKET, NOOP, ERROR, DONE, OVERRUN = 0x400, 1, 2, 3, 4


def attribute(kind: int, content: bytes, length: int | None = None) -> bytes:
    size = 4 + len(content) if length is None else length
    return struct.pack("=HH", size, kind) + content.ljust((len(content) + 3) & ~3, b"\0")


def message(*attributes: bytes, kind: int = PACKET, length: int | None = None) -> bytes:
    body = struct.pack("!BBH", 2, 0, 5) + b"".join(attributes)
    size = 16 + len(body) if length is None else length
    return struct.pack("=IHHII", size, kind, 0, 0, 0) + body


def packet(number: int, payload: bytes) -> bytes:
    return message(attribute(PREFIX, b"\0"), attribute(NUMBER, struct.pack("!I", number)), attribute(PAYLOAD, payload))


DONE_MESSAGE = struct.pack("=IHHII", 20, DONE, 0, 0, 0) + bytes(4)
A, B = Logged(7, b"abcde"), Logged(8, b"fg")


@pytest.mark.parametrize(
    ("datagram", "packets"),
    [
        (b"", []),
        (packet(7, b"abcde"), [A]),
        (packet(7, b"abcde") + packet(8, b"fg") + DONE_MESSAGE, [A, B]),
        (packet(0xFFFFFFFF, b""), [Logged(0xFFFFFFFF, b"")]),
        # As the kernel flags attributes that hold others, or are in network order.
        (message(attribute(NUMBER | 0x4000, struct.pack("!I", 7)), attribute(PAYLOAD | 0x8000, b"abcde")), [A]),
        (message(attribute(99, b"new"), attribute(NUMBER, struct.pack("!I", 8)), attribute(PAYLOAD, b"fg")), [B]),
        (message(attribute(NUMBER, struct.pack("!I", 7))), [Logged(7, b"")]),
    ],
)
def test_packets(datagram: bytes, packets: list[Logged]) -> None:
    assert list(read(datagram)) == packets


@pytest.mark.parametrize(
    "bad",
    [
        message(),
        message(attribute(PAYLOAD, b"no number")),
        message(attribute(NUMBER, b"\0\0\7")),
        message(attribute(NUMBER, b"\0\0\0\0\7")),
        message(attribute(NUMBER, b"\0\0\0\7", length=0), attribute(PAYLOAD, b"x")),
        message(attribute(NUMBER, b"\0\0\0\7", length=3), attribute(PAYLOAD, b"x")),
        message(attribute(NUMBER, b"\0\0\0\7"), attribute(PAYLOAD, b"x", length=9)),
        message(attribute(NUMBER, b"\0\0\0\7"), attribute(PAYLOAD, b"x", length=0xFFFF)),
        message(attribute(PAYLOAD, attribute(NUMBER, b"\0\0\0\7"))),
        message(kind=NOOP),
        message(kind=ERROR),
        message(kind=OVERRUN),
        message(kind=0x500),
    ],
)
def test_what_is_no_packet_is_passed_over(bad: bytes) -> None:
    assert list(read(bad + packet(8, b"fg"))) == [None, B]


@pytest.mark.parametrize("length", [0, 15, 4096, 0xFFFFFFFF])
def test_a_length_that_cannot_be_ends_the_datagram(length: int) -> None:
    assert list(read(packet(7, b"abcde") + message(length=length) + packet(8, b"fg"))) == [A, None]


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_datagram_that_is_cut_off(cut: int) -> None:
    whole = packet(7, b"abcde") + packet(8, b"fgh.")
    assert list(read(whole[:-cut])) == ([A] if len(whole) - cut == len(packet(7, b"abcde")) else [A, None])


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=600)), max_size=40))
def test_whatever_was_logged_comes_back(logged: list[tuple[int, bytes]]) -> None:
    datagram = b"".join(packet(number, payload) for number, payload in logged)
    assert list(read(datagram)) == [Logged(number, payload) for number, payload in logged]


@given(st.binary(max_size=2000))
def test_anything(datagram: bytes) -> None:
    for each in read(datagram):
        assert each is None or (0 <= each.number < 2**32 and each.payload in datagram)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Real messages, attributes within attributes, with some bytes changed, taken out or put in."""
    inner = st.binary(max_size=40)
    nested = st.recursive(inner, lambda part: st.builds(attribute, st.integers(0, 0xFFFF), part), max_leaves=4)
    kinds, lengths = st.sampled_from([PAYLOAD, NUMBER, 0xFFFF]), st.none() | st.integers(0, 0xFFFF)
    attributes = st.lists(st.builds(attribute, kinds, nested, lengths), max_size=5)
    lengths = st.none() | st.integers(0, 2**32 - 1)
    messages = st.lists(st.builds(lambda a, n: message(*a, length=n), attributes, lengths), min_size=1, max_size=4)
    datagram = bytearray(b"".join(draw(messages)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(datagram) - 1), st.integers(0, 255)), max_size=4)):
        datagram[at] = value
    start = draw(st.integers(0, len(datagram)))
    datagram[start : start + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(datagram)


@given(damaged())
def test_anything_that_looks_like_it(datagram: bytes) -> None:
    for each in read(datagram):
        assert each is None or (0 <= each.number < 2**32 and each.payload in datagram)

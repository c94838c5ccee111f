"""What the process that takes packets apart may say: packets come out as they went in, and nonsense is not believed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.apart import records
from nfknock.apart.copies import Taken
from nfknock.core.packet import TCP, UDP, Packet

PORTS, NUMBERS = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
HEAD = struct.pack("=IIII", 0, 0, 0, 0)
FOUR, SIXTEEN = bytes([192, 0, 2, 2]), bytes(range(16))


def record(version: int = 4, source: bytes = FOUR, protocol: int = UDP, number: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=B16s16sBHHIB", version, source, FOUR, protocol, 4000, 8203, number, flags)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    size, protocol = draw(st.sampled_from([4, 16])), draw(st.sampled_from([TCP, UDP]))
    addresses = [draw(st.binary(min_size=size, max_size=size)) for _ in range(2)]
    tcp = (draw(NUMBERS), draw(st.integers(0, 255))) if protocol == TCP else (0, 0)
    return Packet(addresses[0], addresses[1], protocol, draw(PORTS), draw(PORTS), *tcp)


@given(st.lists(packets(), max_size=20), NUMBERS, NUMBERS, NUMBERS)
def test_packets_come_out_as_they_went_in(found: list[Packet], unreadable: int, lost: int, next_number: int) -> None:
    taken = Taken(found, unreadable, lost)
    assert records.unpack(memoryview(records.pack(taken, next_number))) == (taken, next_number)


def test_the_longest_answer_has_room_for_all_that_may_be_asked_for() -> None:
    """And for twice what fits into a page, the most that the kernel gathers in a datagram."""
    many = [Packet(SIXTEEN, SIXTEEN, TCP, 1, 2, 3, 4)] * (records.MOST_AT_ONCE + 2 * 8192 // 28)
    assert len(records.pack(Taken(many, 0, 0), 0)) <= records.LONGEST_ANSWER


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        HEAD[:-1],
        HEAD + b"x",
        HEAD + record() + record()[:-1],
        HEAD + record(version=5),
        HEAD + record(version=0),
        HEAD + record(source=SIXTEEN),
        HEAD + record(protocol=1),
        HEAD + record(number=1),
        HEAD + record(flags=2),
        records.pack_error(5) + record(),
        records.pack_error(4096),
        records.pack_last_words(""),
        records.pack_last_words("two\nlines"),
        records.pack_last_words("\x1b[31m"),
        records.pack_last_words("long") + b"x" * 120,
    ],
)
def test_nonsense_is_not_believed(answer: bytes) -> None:
    with pytest.raises(records.NonsenseError):
        records.unpack(answer)


def test_errors_and_last_words_are_told() -> None:
    with pytest.raises(OSError, match="5") as told:
        records.unpack(records.pack_error(5))
    assert told.value.errno == 5
    with pytest.raises(records.LastWordsError, match=r"^IndexError at packet\.py:7$"):
        records.unpack(records.pack_last_words("IndexError at packet.py:7"))

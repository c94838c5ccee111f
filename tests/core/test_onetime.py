"""The file of one-time sequences, and doors that have one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.core import onetime
from nfknock.core.model import Door, OneTimeSequences, Opening, Port
from tests.core.story import ALICE, BOB, Story

ONE, TWO, THREE = (onetime.parse_sequence(text) for text in ("1001,2001,3001", "1002,2002,3002", "1001,2003,3003"))


def one_time_door(*window: tuple[Port, ...], seq_timeout: float = 5) -> Door:
    one_time = OneTimeSequences(path="file", window=window, left=len(window))
    return Door(name="ssh", opens=(Opening(Port(22)),), one_time=one_time, seq_timeout=seq_timeout)


@pytest.mark.parametrize(
    ("raw", "numbers"),
    [
        (b" 1,2,3\n 4,5:udp,6/TCP\n", [1, 2]),
        (b"#1,2,3\n\n   \n  # x\n1,2\n", [5]),
        (b" 1,2,3", [1]),
        (b"\xef\xbb\xbf1,2\r\n\t4 , 5\r\n", [2]),
        (b"a,b\n1,,2\n70000\n0\n-1\n1,2:sctp\n" + b"1," * 32 + b"1\n 7\n", [8]),
        (b"\xff\xfe\n 7\x00\n", []),
        (b"", []),
    ],
)
def test_lines_that_are_no_sequence_are_passed_over(raw: bytes, numbers: list[int]) -> None:
    assert [line.number for line in onetime.unused(raw)] == numbers


def test_a_line_that_ends_as_the_closing_sequence_does_is_passed_over() -> None:
    closing = onetime.parse_sequence("9,3")
    assert [line.number for line in onetime.unused(b"1,2,3\n1,9,3\n3\n", closing=closing)] == [1]


def test_the_mark_is_as_knockd_puts_it() -> None:
    assert onetime.mark(b" 1,2,3\n4,5,6\n\t7,8,9\r\nx", [1, 2, 3]) == b"#1,2,3\n#4,5,6\n#7,8,9\r\nx"


@given(st.binary())
def test_rubbish_is_read_and_marked_without_an_error(raw: bytes) -> None:
    lines = onetime.unused(raw)
    marked = onetime.mark(raw, [line.number for line in lines])
    assert onetime.unused(marked) == []
    assert marked.count(b"\n") == raw.count(b"\n")


def test_what_is_rendered_is_read_again() -> None:
    assert [line.sequence for line in onetime.unused(onetime.render([ONE, TWO]).encode())] == [ONE, TWO]


def test_every_sequence_in_sight_opens_and_says_which() -> None:
    story = Story(one_time_door(ONE, TWO))
    story.knock("1002", "2002", "3002").knock("1001", "2001", "3001")
    assert story.opened == [(ALICE, "ssh"), (ALICE, "ssh")]
    assert story.sequences == [TWO, ONE]


def test_sequences_that_begin_alike_are_one_stage() -> None:
    story = Story(one_time_door(ONE, THREE)).knock("1001")
    assert story.stages == [("ssh", 1)]
    assert story.at(9).tick().timeouts == [1]


def test_knocks_of_two_sequences_do_not_add_up() -> None:
    assert Story(one_time_door(ONE, TWO)).knock("1001", "2002", "3001").opened == []


def test_an_attempt_goes_on_when_another_sequence_was_used() -> None:
    story = Story(one_time_door(ONE, TWO)).knock("1002", "2002", source=BOB)
    story.tracker.replace_doors([one_time_door(TWO, THREE)])
    assert story.knock("3002", source=BOB).opened == [(BOB, "ssh")]


def test_a_used_sequence_is_forgotten_with_its_attempts() -> None:
    story = Story(one_time_door(ONE, TWO)).knock("1001", "2001")
    story.tracker.replace_doors([one_time_door(TWO)])
    assert story.knock("3001").opened == []


def test_a_door_without_sequences_stays_shut() -> None:
    empty = one_time_door()
    assert Story(empty).knock("1001", "2001", "3001").opened == []
    assert empty.knock_ports == frozenset()


@pytest.mark.parametrize("sequence", [(), (Port(1),)])
def test_a_door_has_one_or_the_other(sequence: tuple[Port, ...]) -> None:
    one_time = OneTimeSequences(path="file", window=(ONE,)) if sequence else None
    with pytest.raises(ValueError, match="a sequence, or a file of one-time sequences, and not both"):
        Door(name="ssh", sequence=sequence, opens=(Opening(Port(22)),), one_time=one_time)


def test_a_window_may_not_end_as_the_closing_sequence_does() -> None:
    with pytest.raises(ValueError, match="end alike"):
        replace(one_time_door(ONE), close_sequence=ONE[-1:])

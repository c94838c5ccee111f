"""First knocks when there are very many: who is remembered, who is pushed out, and who cannot be."""

from __future__ import annotations

import random
from math import inf

import pytest

from nfknock.core.newcomers import FirstKnock, Newcomers
from tests.core.story import ACK, ALICE, BOB, Story, door

ONE = b"\xc0\x00\x02\x02"
ECHO = 0xFFFF_FFFF_FFFF_06_1BBD


def source(number: int) -> bytes:
    return number.to_bytes(4, "big")


def crowd(size: int, start: int = 0) -> list[str]:
    return [f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}" for number in range(start, start + size)]


def test_what_was_put_in_comes_out_once() -> None:
    table = Newcomers(64)
    assert table.add(ONE, ECHO, 5.0) == -inf
    assert table.take(source(1)) == []
    assert table.take(ONE) == [FirstKnock(ECHO, 5.0)]
    assert table.take(ONE) == []


def test_an_echo_is_not_remembered_twice_and_another_knock_is() -> None:
    table = Newcomers(64)
    for at in (1.0, 2.0, 3.0):
        table.add(ONE, ECHO, at)
    table.add(ONE, ECHO - 1, 0.5)
    assert table.take(ONE) == [FirstKnock(ECHO - 1, 0.5), FirstKnock(ECHO, 1.0)]


def test_the_oldest_of_a_row_goes() -> None:
    table = Newcomers(4)
    for number in range(6):
        gone = table.add(source(number), ECHO, float(number))
        assert gone == (number - 4 if number >= 4 else -inf)
    assert [bool(table.take(source(number))) for number in range(6)] == [False] * 2 + [True] * 4


def test_after_a_second_of_a_flood_nearly_everybody_is_still_there() -> None:
    """1,600 strangers in 16,384 places, as 100,000 in the table that the daemon has."""
    table, chance = Newcomers(1 << 14), random.Random(1)
    honest = [chance.randbytes(4) for _ in range(500)]
    for each in honest:
        table.add(each, ECHO, 0.0)
    for _ in range(1600):
        table.add(chance.randbytes(16), ECHO, 0.5)
    assert sum(bool(table.take(each)) for each in honest) >= 490


def test_nobody_can_aim_at_the_row_of_somebody_else() -> None:
    """Two tables put the same sources in other rows."""
    rows = []
    for table in (Newcomers(1 << 10), Newcomers(1 << 10)):
        for number in range(100):
            table.add(source(number), ECHO, 1.0 + number)
        rows.append(list(table._times))
    assert rows[0] != rows[1]


def flooded(size: int = 100) -> Story:
    """A story in which there is no room left but for newcomers."""
    story = Story(door(), most_sources=10, most_newcomers=1024)
    for each in crowd(size):
        story.knock("7000", source=each)
    return story


def test_a_newcomer_in_a_flood_gets_in() -> None:
    story = flooded().knock("7000")
    for each in crowd(100, start=1000):
        story.knock("7000", source=each)
    assert story.at(4.9).knock("8000", "9000").opened == [(ALICE, "ssh")]
    assert len(story.tracker) == 10


def test_a_newcomer_who_is_late_does_not() -> None:
    story = flooded().knock("7000")
    story.at(5.1).knock("8000", "9000")
    assert story.opened == []
    assert story.timeouts[-1] == 1


def test_two_people_behind_one_address_both_get_in_through_a_flood() -> None:
    story = flooded().knock("7000", "7000", "8000", "8000", "9000", "9000")
    assert story.opened == [(ALICE, "ssh")] * 2


def test_an_echo_in_a_flood_is_nothing() -> None:
    story = Story(door("ssh", "1111", "1111", "2222"), most_sources=1, most_newcomers=64).knock("1111", source=BOB)
    for _ in range(3):
        story.knock("1111", source_port=5, sequence_number=5)
    story.knock("2222")
    assert story.opened == []


def test_a_stray_ends_what_a_newcomer_began() -> None:
    story = flooded().knock("7000").stray("1234").at(1).knock("8000", "9000")
    assert story.opened == []


def test_what_a_door_does_not_hear_ends_nothing_in_a_flood_either() -> None:
    assert flooded().knock("7000").knock("8000", flags=ACK).knock("8000", "9000").opened == [(ALICE, "ssh")]


def test_a_stray_that_is_read_too_early_counts_in_a_flood_too() -> None:
    story = flooded().stray("1234").knock("7000").at(1).settle().knock("8000", "9000")
    assert story.opened == []


def test_who_began_before_the_flood_gets_in_too() -> None:
    """Its place is given to somebody who is further on, and its first knock is not forgotten."""
    story = Story(door(), most_sources=10, most_newcomers=1024).knock("7000")
    for each in crowd(50):
        story.knock("7000", source=each)
    for each in crowd(30):
        story.knock("8000", source=each)
    assert story.knock("8000", "9000").opened == [(ALICE, "ssh")]


@pytest.mark.parametrize("close", [(), ("9000", "8000", "7000")])
def test_first_knocks_alone_push_out_nobody_who_is_further_on(close: tuple[str, ...]) -> None:
    story = Story(door(close=close), most_sources=10, most_newcomers=64).knock("7000", "8000")
    for each in crowd(1000):
        story.knock("7000", source=each)
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_nobody_holds_a_place_by_standing_still() -> None:
    """Who is as far as everybody else and knows how to go on gets in, at the cost of who has stood there longest."""
    story = Story(door(), most_sources=10, most_newcomers=64)
    strangers = crowd(10)
    for each in strangers:
        story.knock("7000", "8000", source=each)
    assert story.knock("7000", "8000", "9000").opened == [(ALICE, "ssh")]
    for each in strangers:
        story.knock("9000", source=each)
    assert [opened for opened, _door in story.opened[1:]] == strangers[1:]


def test_who_is_further_on_makes_a_newcomer_wait() -> None:
    story = Story(door("ssh", "1000", "2000", "3000", "4000"), most_sources=10, most_newcomers=64)
    for each in crowd(10):
        story.knock("1000", "2000", "3000", source=each)
    assert story.knock("1000", "2000", "3000", "4000").opened == []
    for each in crowd(10):
        story.knock("4000", source=each)
    assert len(story.opened) == 10


def test_who_tries_again_from_the_same_port_gets_in() -> None:
    """A UDP packet has no number: the first knock of the second try is that of the first once more."""
    story = Story(door("ssh", "7000/udp", "8000/udp"), most_sources=10, most_newcomers=1024)
    for each in crowd(100):
        story.knock("7000/udp", source=each)
    story.knock("7000/udp", source_port=4000)
    story.at(6).knock("7000/udp", "8000/udp", source_port=4000)
    assert story.opened == [(ALICE, "ssh")]


def test_a_syn_that_is_repeated_in_a_flood_begins_nothing_anew() -> None:
    story = flooded()
    for at in (0, 1, 3, 7):
        story.at(at).knock("7000", source_port=4000, sequence_number=7)
    story.at(8).knock("8000", "9000")
    assert story.opened == []

"""Packets to closed ports, which come by a queue of their own: what they end, and what they do not."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.core.scanners import Thresholds
from nfknock.core.unsure import UNSURE_TIMEOUT
from tests.core.story import ACK, ALICE, BOB, RST, Story, door

LATER = 2 * UNSURE_TIMEOUT
NEVER = Thresholds(ports=0)


def test_a_stray_ends_the_attempts_of_its_source_and_of_nobody_else() -> None:
    story = Story(door()).knock("7000", "8000").knock("7000", "8000", source=BOB)
    story.stray("1234").at(1).settle().knock("9000").knock("9000", source=BOB)
    assert story.opened == [(BOB, "ssh")]
    assert story.tracker.counters.strays == 2


def test_a_stray_that_is_read_too_early_or_too_late_counts_all_the_same() -> None:
    """Of three knocks and a stray between them nothing tells the order when they are read together."""
    for order in set(permutations("1s23")) | set(permutations("s123")):
        if [each for each in order if each != "s"] != ["1", "2", "3"]:
            continue
        story = Story(door())
        for each in order:
            (story.stray if each == "s" else story.knock)({"s": "1234", "1": "7000", "2": "8000", "3": "9000"}[each])
        assert story.opened == [] or order == ("1", "2", "3", "s")


def test_who_strayed_can_knock_a_while_later_whatever_is_read() -> None:
    story = Story(door()).stray("1234").at(LATER).knock("7000", "8000", "9000")
    assert story.opened == [(ALICE, "ssh")]


def test_a_door_of_one_knock_opens_whatever_comes_with_it() -> None:
    assert Story(door("ssh", "7000")).stray("1234").knock("7000").opened == [(ALICE, "ssh")]


@pytest.mark.parametrize("port", ["22", "443", "8000"])
def test_what_is_open_and_what_is_knocked_at_is_no_stray(port: str) -> None:
    story = Story(door(opens="22/tcp"), allowed=("443/tcp",)).knock("7000", "8000").stray(port).knock("9000")
    assert story.opened == [(ALICE, "ssh")]
    assert story.tracker.counters.strays == 0


def test_late_packets_of_an_old_session_end_nothing_at_a_door_that_hears_syns() -> None:
    story = Story(door(), door("any", "1000", "2000", "3000", tcpflags=""))
    story.knock("7000", "8000").knock("1000", "2000", source=BOB)
    story.stray("50000", flags=ACK).stray("50000", flags=RST, source=BOB)
    story.at(1).settle().knock("9000").knock("3000", source=BOB)
    assert story.opened == [(ALICE, "ssh")]


def test_what_is_sent_to_another_address_neither_helps_nor_harms() -> None:
    story = Story(door(target="192.0.2.1")).knock("7000", "8000").stray("1234", target="192.0.2.9")
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_who_hits_many_ports_is_ignored_for_a_while() -> None:
    story = Story(door(), thresholds=Thresholds(ports=10, within=10, ignore_timeout=60))
    story.stray(*map(str, range(100, 120)))
    assert story.ignored == [ALICE]
    story.at(30).knock("7000", "8000", "9000").knock("7000", "8000", "9000", source=BOB)
    assert story.opened == [(BOB, "ssh")]
    assert story.tracker.counters.ignored == 3
    assert story.at(61).knock("7000", "8000", "9000").opened == [(BOB, "ssh"), (ALICE, "ssh")]


def test_a_scan_is_remembered_through_a_reload() -> None:
    story = Story(door()).stray(*map(str, range(100, 150)))
    story.tracker.replace_doors([door()])
    assert story.knock("7000", "8000", "9000").opened == []


def test_strays_of_nobody_in_progress_are_not_remembered() -> None:
    story = Story(door(), thresholds=NEVER)
    for number in range(1000):
        story.stray("1234", source=str(ip_address(0x0A000000 + number)))
    assert len(story.tracker) == 0
    assert len(story.tracker._unsure._sources) == 1000
    story.at(LATER).stray("1234")
    assert len(story.tracker._unsure._sources) == 1


def test_who_strayed_before_a_reading_of_all_knocks_can_knock_at_once() -> None:
    story = Story(door()).stray("1234").settle()
    assert story.knock("7000", "8000", "9000").opened == [(ALICE, "ssh")]


@given(
    scan=st.permutations(["k1", "k2", "k3", *(f"s{number}" for number in range(9))]),
    cuts=st.lists(st.integers(0, 12), max_size=6),
    pause=st.floats(0, 1),
)
def test_no_scan_opens_however_its_packets_are_gathered(scan: list[str], cuts: list[int], pause: float) -> None:
    """As the daemon reads them: whatever knocks are there, then every stray that came before the reading."""
    knocks = {"k1": "7000", "k2": "8000", "k3": "9000"}
    story = Story(door(), thresholds=NEVER)
    places = sorted({0, *cuts, len(scan)})
    for begin, end in pairwise(places):
        batch = scan[begin:end]
        for each in batch:
            if each not in knocks:
                story.stray(f"1{each[1:]}00")
        story.knock(*(knocks[each] for each in batch if each in knocks))
        story.at(story.now + pause)
    at = [scan.index(each) for each in knocks]
    is_the_very_sequence = at == sorted(at) and not any(each.startswith("s") for each in scan[at[0] : at[2]])
    assert not story.opened or is_the_very_sequence

"""knockd's test vectors ("Knocking", by their numbers), as far as doors without commands go."""

from __future__ import annotations

import random

import pytest

from nfknock.core.model import Door
from tests.core.story import ACK, ALICE, BOB, HERE, SYN, Story, door

AB = (door("A", "1000", "2000", "3000"), door("B", "1000", "2500", "3500"))


@pytest.mark.parametrize(
    ("number", "doors", "knocks", "opened"),
    [
        (12, [door()], ["7000", "8000", "9000"], 1),
        (13, [door()], ["7000", "1234", "8000", "9000"], 0),
        (14, [door()], ["7000", "7000", "8000", "9000"], 1),
        (14, [door()], ["7000", "9000", "7000", "8000", "9000"], 1),
        (16, [door()], ["7000", "7000", "8000", "8000", "9000", "9000"], 2),
        (20, [*AB], ["1000", "2000", "3000"], 1),
        (20, [*AB], ["1000", "2500", "3500"], 1),
    ],
)
def test_knocks_in_a_row(number: int, doors: list[Door], knocks: list[str], opened: int) -> None:
    assert len(Story(*doors).knock(*knocks).opened) == opened, f"vector {number}"


@pytest.mark.parametrize("order", ["upwards", "downwards", "shuffled"])
def test_13_a_scan_of_all_ports_never_opens(order: str) -> None:
    ports = list(range(1, 65536))
    if order == "downwards":
        ports.reverse()
    elif order == "shuffled":
        random.Random(13).shuffle(ports)
    story = Story(door(), door("down", "9001", "8001", "7001")).knock(*map(str, ports))
    assert story.opened == []


def test_15_a_retransmission_in_the_middle() -> None:
    story = Story(door()).knock("7000")
    story.knock("8000", source_port=5, sequence_number=5).at(1).knock("8000", source_port=5, sequence_number=5)
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_15_a_retransmission_is_no_second_knock() -> None:
    story = Story(door("ssh", "1111", "1111"))
    for _ in range(3):
        story.knock("1111", source_port=5, sequence_number=5)
    assert story.opened == []


@pytest.mark.parametrize(("last", "opened"), [(105.0, 1), (105.9, 1), (105.95, 0)])
def test_17_fractions_of_a_second_count(last: float, opened: int) -> None:
    story = Story(door(seq_timeout=5)).at(100.9).knock("7000", "8000").at(last).knock("9000")
    assert len(story.opened) == opened


def test_18_a_bare_ack_is_ignored_with_syn_and_a_stray_without_flags() -> None:
    assert len(Story(door(tcpflags="syn")).knock("7000").knock("8000", flags=ACK).knock("8000", "9000").opened) == 1
    assert len(Story(door(tcpflags="")).knock("7000", "8000").knock("8000", flags=ACK).knock("9000").opened) == 0


@pytest.mark.parametrize(
    ("tcpflags", "flags", "opened"),
    [("syn", SYN | ACK, 1), ("syn,!ack", SYN | ACK, 0), ("syn,ack", SYN, 0), ("syn,ack", SYN | ACK, 1)],
)
def test_19_all_named_flags_must_match(tcpflags: str, flags: int, opened: int) -> None:
    assert len(Story(door(tcpflags=tcpflags)).knock("7000", "8000", "9000", flags=flags).opened) == opened


def test_21_whoever_is_slow_does_not_hold_up_others() -> None:
    story = Story(door()).at(0).knock("7000", source=BOB)
    story.at(3).knock("7000").at(4).knock("8000").at(5.5).knock("9000")
    assert story.opened == [(ALICE, "ssh")]


def test_22_a_target_door_hears_only_knocks_to_that_address() -> None:
    story = Story(door(target=HERE)).knock("7000", "8000").knock("7000", "8000", "9000", target="192.0.2.9")
    assert story.opened == []
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_23_the_source_port_may_vary_and_families_are_two_sources() -> None:
    story = Story(door()).knock("7000", "8000").knock("9000", source="2001:db8::2", target="2001:db8::1")
    assert story.opened == []
    assert story.knock("9000").opened == [(ALICE, "ssh")]

"""knockd's test vectors ("Knocking", by their numbers) through the core. Those of files are in tests/knockd."""

from __future__ import annotations

import random

import pytest

from nfknock.core import onetime
from nfknock.core.model import Commands, Door, Hole, Opening, Port, as_source
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


@pytest.mark.parametrize(
    ("commands", "source", "run"),
    [
        (Commands(start=("a", "%IP%")), ALICE, ("a", ALICE)),
        (Commands(start=("a", "%IP%")), "2001:db8::2", ("a", "2001:db8::2")),
        (Commands(start=("a", "%IP%"), start6=("b", "-6", "%IP%")), "2001:db8::2", ("b", "-6", "2001:db8::2")),
        (Commands(start=("a", "%IP%"), start6=()), "2001:db8::2", ()),
    ],
)
def test_24_ipv6_has_its_own_command_or_the_other_one(commands: Commands, source: str, run: tuple[str, ...]) -> None:
    assert commands.start_for(as_source(source)) == run


def test_25_what_is_to_stop_does_not_ask_how_the_start_went() -> None:
    commands = Commands(start=("false",), stop=("a", "%IP%"), cmd_timeout=5)
    assert (commands.stop_for(as_source(ALICE)), commands.cmd_timeout) == (("a", ALICE), 5)


@pytest.mark.parametrize(
    ("first", "second", "closes_at"), [(130.0, 140.0, 140.0), (None, 140.0, None), (150.0, 140.0, 150.0)]
)
def test_26_opened_twice_is_one_hole_with_the_later_end(
    first: float | None, second: float | None, closes_at: float | None
) -> None:
    older = Hole(door="ssh", source=as_source(ALICE), opens=(Opening(Port(22)),), opened_at=100.0, closes_at=first)
    newer = Hole(door="ssh", source=as_source(ALICE), opens=(Opening(Port(22)),), opened_at=110.0, closes_at=second)
    standing = newer.renewed(older)
    assert (standing.key, standing.opened_at, standing.closes_at) == (older.key, 100.0, closes_at)


@pytest.mark.parametrize(
    ("number", "raw", "knocked", "marked"),
    [
        (27, b" 1,2,3\n 4,5,6\n", "1,2,3", b"#1,2,3\n 4,5,6\n"),
        (27, b"#1,2,3\n 4,5,6\n", "4,5,6", b"#1,2,3\n#4,5,6\n"),
        (28, b"not,a,sequence\n 1,2,3\n 4,5,6\n", "1,2,3", b"not,a,sequence\n#1,2,3\n 4,5,6\n"),
    ],
)
def test_27_28_the_line_that_was_used_is_the_line_that_is_marked(
    number: int, raw: bytes, knocked: str, marked: bytes
) -> None:
    sequence = onetime.parse_sequence(knocked)
    [used] = [line.number for line in onetime.unused(raw) if line.sequence == sequence]
    assert onetime.mark(raw, [used]) == marked, f"vector {number}"
    assert sequence not in [line.sequence for line in onetime.unused(marked)], f"vector {number}"


def test_29_a_reload_in_mid_sequence_keeps_attempts_at_doors_that_did_not_change() -> None:
    story = Story(door(), door("web", "7", "8")).knock("7000", "8000")
    story.tracker.replace_doors([door(), door("web", "7", "9")])
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_30_what_a_hole_ends_by_is_its_own_date() -> None:
    """Nothing of the daemon's is needed for a hole to be over."""
    hole = Hole(door="ssh", source=as_source(ALICE), opens=(Opening(Port(22)),), opened_at=100.0, closes_at=130.0)
    assert [hole.is_expired(now) for now in (129.9, 130.0)] == [False, True]

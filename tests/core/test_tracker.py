"""Stories of people, strangers and networks at the doors."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from time import process_time

import pytest

from nfknock.core.model import Door, Opening, Port
from nfknock.core.tracker import ECHO_TIMEOUT, MOST_ATTEMPTS, MOST_ECHOES, SWEPT_AT_ONCE
from tests.core.story import ACK, ALICE, BOB, SYN, Story, door


def test_the_whole_sequence_opens_once() -> None:
    story = Story(door()).knock("7000", "8000", "9000")
    assert story.stages == [("ssh", 1), ("ssh", 2), ("ssh", 3)]
    assert story.opened == [(ALICE, "ssh")]


def test_a_late_knock_starts_over() -> None:
    story = Story(door("ssh", "7000/tcp", "8000/udp", seq_timeout=5))
    story.at(0).knock("7000/tcp")
    story.at(6).knock("8000/udp")
    assert story.opened == []
    assert story.timeouts == [1]


def test_a_wrong_knock_forgets_the_right_ones() -> None:
    story = Story(door(), door("web", "1000", "2000", "3000")).knock("7000", "2000", "8000", "9000")
    assert story.opened == []


def test_after_a_mistake_one_can_begin_again() -> None:
    story = Story(door()).knock("7000", "9000", "7000", "8000", "9000")
    assert story.opened == [(ALICE, "ssh")]


def test_udp_and_tcp_are_different_knocks() -> None:
    assert Story(door()).knock("7000/udp", "8000/udp", "9000/udp").opened == []


def test_a_repeated_syn_is_nothing() -> None:
    story = Story(door())
    story.knock("7000", source_port=1, sequence_number=1)
    story.knock("8000", source_port=2, sequence_number=2)
    story.at(1).knock("7000", source_port=1, sequence_number=1)
    story.at(1).knock("8000", source_port=2, sequence_number=2)
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_a_syn_that_is_repeated_after_the_door_opened_disturbs_nobody() -> None:
    story = Story(door())
    for number, port in enumerate(("7000", "8000", "9000")):
        story.knock(port, source_port=number, sequence_number=number)
    story.at(20).knock("7000")
    story.at(21).knock("8000", source_port=1, sequence_number=1)
    story.at(22).knock("8000", "9000")
    assert len(story.opened) == 2


def test_one_packet_does_not_count_twice() -> None:
    story = Story(door("ssh", "1111", "1111"))
    story.knock("1111", source_port=5, sequence_number=5).at(1).knock("1111", source_port=5, sequence_number=5)
    assert story.opened == []
    assert story.at(2).knock("1111").opened == [(ALICE, "ssh")]


def test_a_repeated_syn_does_not_open_a_door_of_one_knock_again() -> None:
    story = Story(door("ssh", "1111"))
    for second in (0, 1, 3, 7):
        story.at(second).knock("1111", source_port=5, sequence_number=5)
    assert len(story.opened) == 1


def test_who_knocks_with_udp_from_one_port_can_knock_again() -> None:
    story = Story(door("ssh", "7000/udp", "8000/udp"))
    for second in (0, 3):
        story.at(second).knock("7000/udp", "8000/udp", source_port=5)
    assert len(story.opened) == 2


def test_a_duplicated_udp_packet_is_nothing() -> None:
    story = Story(door("ssh", "7000/udp", "8000/udp", "9000/udp"))
    for port in ("7000/udp", "8000/udp", "8000/udp", "9000/udp"):
        story.knock(port, source_port=5)
    assert story.opened == [(ALICE, "ssh")]


def test_two_people_behind_one_address_both_get_in() -> None:
    story = Story(door()).knock("7000", "7000", "8000", "8000", "9000", "9000")
    assert story.opened == [(ALICE, "ssh")] * 2


@pytest.mark.parametrize("order", ["aabbab", "ababab", "abbaab", "aaabbb", "abbbaa"])
def test_two_people_interleaved_in_any_order_both_get_in(order: str) -> None:
    steps = {"a": iter(("7000", "8000", "9000")), "b": iter(("7000", "8000", "9000"))}
    story = Story(door()).knock(*(next(steps[who]) for who in order))
    assert len(story.opened) == 2


@pytest.mark.parametrize("sequence", ["1 1 1", "1 2 1 2 3", "7 7 7 8", "1 2 1 2"])
def test_a_sequence_that_repeats_ports_opens(sequence: str) -> None:
    ports = sequence.split()
    assert Story(door("ssh", *ports)).knock(*ports).opened == [(ALICE, "ssh")]


def test_an_ack_is_neither_knock_nor_stray() -> None:
    story = Story(door()).knock("7000").knock("8000", flags=ACK)
    assert (story.tracker.counters.knocks, story.tracker.counters.strays) == (1, 0)


@pytest.mark.parametrize(("length", "most"), [(1, 11), (3, 23), (32, MOST_ECHOES)])
def test_a_crowd_that_sends_much_is_remembered_within_bounds(length: int, most: int) -> None:
    story = Story(door("ssh", *(str(7000 + number) for number in range(length))), most_sources=10)
    for _ in range(100):
        for source in _crowd(10):
            story.knock("7000", source=source)
    assert {len(source.heard) for source in story.tracker._sources.values()} == {most}


def test_who_gave_up_half_way_costs_the_next_one_nothing() -> None:
    story = Story(door(seq_timeout=5))
    story.at(0).knock("7000")
    story.at(4).knock("7000", "8000")
    story.at(8).knock("9000")
    assert story.opened == [(ALICE, "ssh")]


def test_sources_do_not_help_each_other() -> None:
    assert Story(door()).knock("7000").knock("8000", source=BOB).knock("9000").opened == []


def test_a_packet_without_the_flags_is_nothing() -> None:
    story = Story(door(tcpflags="syn")).knock("7000", "8000").knock("8000", flags=ACK)
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_only_a_bare_syn_knocks_unless_it_is_said() -> None:
    assert Story(door()).knock("7000", "8000", "9000", flags=SYN | ACK).opened == []


def test_an_open_port_is_no_stray() -> None:
    story = Story(door(opens="22/tcp"), allowed=("443/tcp",))
    story.knock("7000", "22", "8000", "443", "9000")
    assert story.opened == [(ALICE, "ssh")]
    assert story.tracker.counters.strays == 0


def test_a_port_of_a_host_behind_is_closed_here() -> None:
    behind = Opening(Port(22), ip_address("198.51.100.5"))
    story = Story(replace(door(), opens=(behind,))).knock("7000", "22", "8000", "9000")
    assert story.opened == []


def test_any_closed_port_is_a_stray() -> None:
    story = Story(door()).knock("7000", "8000", "1234", "9000")
    assert story.opened == []
    assert story.tracker.counters.strays == 2


def test_the_closing_sequence_closes() -> None:
    story = Story(door(close=("9000", "8000", "7000"))).knock("7000", "8000", "9000")
    assert (story.opened, story.closed) == ([(ALICE, "ssh")], [])
    assert story.knock("9000", "8000", "7000").closed == [(ALICE, "ssh")]


def test_an_opening_that_begins_a_closing_is_no_news() -> None:
    story = Story(door(close=("9000", "8000", "7000"))).knock("7000", "8000", "9000")
    assert story.at(60).tick().timeouts == []


def test_late_attempts_are_told_once() -> None:
    story = Story(door()).knock("7000", "8000")
    assert story.at(60).tick().tick().timeouts == [2]


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255", "240.0.0.1",
     "::", "::1", "ff02::1", "::ffff:192.0.2.2", "::192.0.2.2", "2002:a00:1::1", "2002:ac1f:1::1", "2002:c0a8:1::1",
     "2002:a9fe:1::1", "2002:7f00:1::1", "2002:e000:1::1"],
)  # fmt: skip
def test_who_cannot_exist_opens_nothing(source: str) -> None:
    story = Story(door()).knock("7000", "8000", "9000", source=source)
    assert story.opened == []
    assert len(story.tracker) == 0
    assert story.tracker.counters.impossible == 1


@pytest.mark.parametrize(
    "source",
    [
        "1.1.1.1",
        "10.0.0.1",
        "169.254.1.1",
        "192.0.2.2",
        "fe80::1",
        "2001:db8::2",
        "fd00::1",
        "2002:c000:202::1",
        "2002:ac20:1::1",
    ],
)
def test_who_can_exist_may_knock(source: str) -> None:
    assert Story(door()).knock("7000", "8000", "9000", source=source).opened == [(source, "ssh")]


def _crowd(size: int) -> list[str]:
    return [f"198.51.{number // 256}.{number % 256}" for number in range(size)]


def test_memory_is_bounded() -> None:
    story = Story(door(), most_sources=100)
    for source in _crowd(1000):
        story.knock("7000", source=source)
    assert len(story.tracker) == 100


def test_a_crowd_at_the_first_knock_pushes_nobody_out_who_is_further_on() -> None:
    story = Story(door(), most_sources=100).knock("7000", "8000")
    for source in _crowd(1000):
        story.knock("7000", source=source)
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_attempts_of_one_source_are_bounded_and_the_furthest_stays() -> None:
    story = Story(door()).knock("7000", "8000")
    for _ in range(50):
        story.knock("7000")
    [attempts] = next(iter(story.tracker._sources.values())).attempts.values()
    assert len(attempts) == MOST_ATTEMPTS
    assert story.knock("9000").opened == [(ALICE, "ssh")]


def test_nothing_is_remembered_for_ever() -> None:
    story = Story(door())
    for source in _crowd(100):
        story.knock("7000", "8000", source=source)
    story.at(ECHO_TIMEOUT + 6).tick()
    assert len(story.tracker) == 0


def test_a_crowd_that_gives_up_at_once_holds_nothing_up() -> None:
    """What is said of one is not compared with what is said of all the others."""
    story = Story(door(), most_sources=SWEPT_AT_ONCE)
    for source in _crowd(SWEPT_AT_ONCE):
        story.knock("7000", source=source)
    began_at = process_time()
    story.at(60).tick()
    assert len(story.timeouts) == SWEPT_AT_ONCE
    assert process_time() - began_at < 0.4


def test_other_doors_do_not_end_attempts_at_those_that_stay() -> None:
    ssh, web = door(), door("web", "1000", "2000", "3000")
    story = Story(ssh, web).knock("7000", "1000", source=BOB).knock("7000", "8000")
    story.tracker.replace_doors([door("new", "4000", "5000", "6000"), ssh])
    assert story.knock("9000").opened == [(ALICE, "ssh")]
    assert story.knock("2000", "3000", source=BOB).knock("4000", "5000", "6000", source=BOB).opened[1:] == [
        (BOB, "new")
    ]


def test_a_door_that_changed_starts_over() -> None:
    story = Story(door()).knock("7000", "8000")
    story.tracker.replace_doors([door(seq_timeout=9)])
    assert story.knock("9000").opened == []


def test_a_door_needs_what_makes_it_one() -> None:
    good = door()
    for wrong in ({"sequence": ()}, {"opens": ()}, {"name": "two words"}, {"name": ""}, {"name": "x" * 41}):
        fields: dict[str, object] = {"name": good.name, "sequence": good.sequence, "opens": good.opens, **wrong}
        with pytest.raises(ValueError, match="door"):
            Door(**fields)  # type: ignore[arg-type]


def test_what_several_people_behind_one_address_repeat_is_nothing() -> None:
    """Four at once, whose kernels send each SYN again after one second and after three: they were not answered."""
    story = Story(door())
    sent = [(port, 50_000 + person) for port in ("7000", "8000", "9000") for person in range(4)]
    for at in (0, 1, 3):
        for port, source_port in sent:
            story.at(at).knock(port, source_port=source_port, sequence_number=7)
    assert story.opened == [(ALICE, "ssh")] * 4
    assert story.tracker.counters.knocks == len(sent)

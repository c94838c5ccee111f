"""What `check` warns of."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfknock.core.lint import lint
from nfknock.core.model import Door, Opening, Port


def door(name: str, *sequence: str, opens: str = "22", timeout: float = 30, close: tuple[str, ...] = ()) -> Door:
    return Door(
        name=name,
        sequence=tuple(map(Port.parse, sequence)),
        opens=(Opening(Port.parse(opens)),),
        open_timeout=timeout,
        close_sequence=tuple(map(Port.parse, close)),
    )


GOOD = door("good", "7101", "3203/udp", "9307", "1187/udp")


def test_a_good_door_is_fine() -> None:
    assert list(lint([GOOD])) == []


@pytest.mark.parametrize(
    ("doors", "warning"),
    [
        ([door("a", "7000", "8000", "9000")], "everybody knows"),
        ([door("a", "7000/udp", "8000", "9000")], "everybody knows"),
        ([door("a", "7101", "3203/udp")], "fewer than 3"),
        ([door("a", "1", "2/udp", "3")], "ascending"),
        ([door("a", "3", "2/udp", "1")], "descending"),
        ([door("a", "7101", "3203", "9307")], "TCP alone"),
        ([door("a", "7101", "3203/udp", "9307", timeout=0)], "open for good"),
        ([GOOD, door("b", "7101", "3203/udp", "9307")], "doors.b.sequence: is the start of doors.good.sequence"),
        ([GOOD, door("b", "7101", "3203/udp", "9307", "1187/udp")], "is the start of"),
        ([GOOD, door("b", "7101", "4203/udp", "2307")], "doors.good.sequence: begins like doors.b.sequence"),
        ([door("a", "7101", "3203/udp", "443")], "one of its ports is allowed"),
        ([door("a", "7101", "3203/udp", "22")], "one of its ports is opened by doors.a"),
    ],
)
def test_what_is_unwise_is_said(doors: list[Door], warning: str) -> None:
    warnings = list(lint(doors, [Port(443)]))
    assert any(warning in line for line in warnings), warnings


def test_a_closing_sequence_ends_what_has_no_end() -> None:
    assert list(lint([door("a", "7101", "3203/udp", "9307", timeout=0, close=("9307", "3203/udp"))])) == []


def test_a_port_of_a_host_behind_may_be_knocked_at_here() -> None:
    behind = replace(GOOD, opens=(Opening(Port(7101), ip_address("198.51.100.5")),))
    assert list(lint([behind])) == []


def test_a_door_that_is_open_for_longer_than_the_backend_can() -> None:
    long = door("a", "7101", "3203/udp", "9307", timeout=30 * 86400)
    assert list(lint([long], longest=None)) == []
    assert list(lint([long], longest=25 * 86400)) == [
        "doors.a.open_timeout: this backend shuts a hole after 25 days, be it meant for longer"
    ]

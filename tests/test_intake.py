"""Knocks and strays come by two ways, and whatever comes while one of them is read: what is made of their order."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.core.decisions import OpenDoor
from nfknock.core.packet import Packet
from nfknock.core.scanners import Thresholds
from nfknock.core.tracker import Tracker
from nfknock.daemon.intake import AWAY, Intake
from nfknock.readers import PACKETS_AT_ONCE, QUEUE_LENGTH, Reader
from tests.core.story import ALICE, BOB, HERE, SYN, door

SEQUENCE = {"k1": 7000, "k2": 8000, "k3": 9000}
STRAYS = ["s1", "s2"]
# What comes to a knock port and is no packet that can be read, as a fragment.
RUBBISH = "x"


class Way:
    """One of the two, as a reader has it: more may come until the very moment at which it is read."""

    lag = 0.0

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.waiting: list[Packet | None] = []
        self.is_drained = False
        self._meanwhile = meanwhile

    def read(self, most: int = PACKETS_AT_ONCE) -> list[Packet]:
        self._meanwhile()
        self.is_drained = len(self.waiting) < most
        taken, self.waiting[:] = self.waiting[:most], self.waiting[most:]
        return [each for each in taken if each]


class Host:
    """A kernel that packets come to, one by one, and a daemon that reads them."""

    def __init__(self, coming: list[str], at_each_reading: list[int]) -> None:
        self._coming = coming
        self._at_each_reading = at_each_reading
        self.knocks, self.strays = Way(self.arrive), Way(self.arrive)
        self._now = 0.0
        self.intake = Intake(Tracker([door()], thresholds=Thresholds(ports=0)), lambda: self._now)
        self.opened: list[str] = []

    def arrive(self) -> None:
        for _ in range(self._at_each_reading.pop(0) if self._at_each_reading else 0):
            if self._coming:
                self.come(self._coming.pop(0))

    def come(self, name: str, source: str = ALICE) -> None:
        if name == RUBBISH:
            self.knocks.waiting.append(None)
            return
        port = SEQUENCE.get(name) or 1000 + int(name[1:])
        way = self.knocks if name in SEQUENCE else self.strays
        way.waiting.append(packet(port, source, len(self.knocks.waiting)))

    def read(self) -> None:
        self._now += 0.0001
        for command in self.intake.read(cast("Reader", self.knocks), cast("Reader", self.strays)):
            if isinstance(command, OpenDoor):
                self.opened.append(str(command.source))

    def pass_time(self, seconds: float) -> None:
        """Let the loop go on for so long without packets, or be busy with others."""
        while seconds > 0:
            self._now += min(seconds, 1.0)
            seconds -= 1.0
            self.intake.beat()

    def freeze(self, seconds: float) -> None:
        """Let so much time pass in which the daemon does nothing."""
        self._now += seconds

    def read_on(self) -> None:
        while self._coming or not self.intake.is_settled:
            if not self._at_each_reading:
                self._at_each_reading.append(1)
            self.read()
        self.read()


def packet(port: int, source: str, source_port: int) -> Packet:
    return Packet(ip_address(source).packed, ip_address(HERE).packed, 6, source_port, port, 1, SYN)


@given(
    scan=st.permutations([*SEQUENCE, *STRAYS, RUBBISH]),
    at_each_reading=st.lists(st.integers(0, 3), max_size=20),
)
def test_no_scan_opens_whatever_comes_while_it_is_read(scan: list[str], at_each_reading: list[int]) -> None:
    host = Host(list(scan), at_each_reading)
    host.read_on()
    at = [scan.index(each) for each in SEQUENCE]
    is_the_very_sequence = at == sorted(at) and not any(each in STRAYS for each in scan[at[0] : at[2]])
    assert not host.opened or is_the_very_sequence


@given(at_each_reading=st.lists(st.integers(0, 3), max_size=20))
def test_who_mistyped_opens_as_soon_as_that_was_read(at_each_reading: list[int]) -> None:
    host = Host(list(STRAYS), at_each_reading)
    host.read_on()
    for name in SEQUENCE:
        host.come(name)
        host.read()
    assert host.opened == [ALICE]


@pytest.mark.parametrize("crowd", ["k1", RUBBISH])
def test_behind_a_crowd_of_knocks_nothing_is_known_yet(crowd: str) -> None:
    host = Host([], [])
    for number in range(3 * PACKETS_AT_ONCE):
        # One that cannot be read is enough for a full reading to look as if it had found all there were.
        host.come(crowd if number % PACKETS_AT_ONCE == 0 else "k1", BOB)
    for name in ("k1", "s1", "k2", "k3"):
        host.come(name)
    for _ in range(3):
        host.read()
        assert not host.intake.is_settled
    host.read_on()
    assert host.opened == []


def test_a_stray_counts_however_slowly_the_knocks_in_front_are_read() -> None:
    """Where the CPU is somebody else's, a backlog takes a while; the stray stands between two knocks in it."""
    host = Host([], [])
    for _ in range(PACKETS_AT_ONCE):
        host.come("k1", BOB)
    for name in ("k1", "s1", "k2", "k3"):
        host.come(name)
    host.read()
    host.pass_time(1.5)
    host.read_on()
    assert host.opened == []


def test_what_waited_while_nothing_was_read_is_not_heard() -> None:
    """Nobody knows any more when it came, nor what strayed between and was lost. What comes from now on counts."""
    host = Host([], [])
    host.freeze(AWAY + 0.1)
    for name in SEQUENCE:
        host.come(name)
    host.read()
    host.pass_time(1)
    assert host.opened == []
    assert host.intake.late == 3
    for name in SEQUENCE:
        host.come(name)
        host.read()
    assert host.opened == [ALICE]


@pytest.mark.parametrize("beats_first", [True, False])
def test_however_many_waited_none_is_heard(*, beats_first: bool) -> None:
    host = Host([], [])
    host.freeze(60)
    for _ in range(QUEUE_LENGTH):
        host.come("k1", BOB)
    for name in SEQUENCE:
        host.come(name)
    if beats_first:
        host.intake.beat()
    host.read()
    host.read_on()
    assert host.opened == []
    assert host.intake.late == QUEUE_LENGTH + 3


def test_what_is_copied_late_was_there_before() -> None:
    """NFLOG keeps packets that come thick and fast for a tick of the kernel's."""
    host = Host([], [])
    host.knocks.lag = 0.02
    host.freeze(60)
    host.read()
    for name in SEQUENCE:
        host.come(name)
    host.read()
    assert host.opened == []


def test_what_strayed_meanwhile_counts() -> None:
    host = Host([], [])
    host.come("k1")
    host.read()
    host.freeze(AWAY + 0.1)
    host.come("s1")
    host.read()
    host.pass_time(0.1)
    for name in ("k2", "k3"):
        host.come(name)
        host.read()
    assert host.opened == []


@pytest.mark.parametrize("seconds", [1.9, 10_000.0])
def test_a_moment_without_the_cpu_and_a_long_time_without_packets_cost_nothing(seconds: float) -> None:
    host = Host([], [])
    (host.freeze if seconds < AWAY else host.pass_time)(seconds)
    for name in SEQUENCE:
        host.come(name)
        host.read()
    assert host.opened == [ALICE]
    assert host.intake.late == 0


def test_who_knocks_long_after_the_loop_was_held_up_is_heard() -> None:
    host = Host([], [])
    host.freeze(60)
    host.intake.beat()
    was_away = [host.intake.was_away]
    host.read()
    assert [*was_away, host.intake.was_away] == [True, False]
    host.pass_time(3600)
    for name in SEQUENCE:
        host.come(name)
        host.read()
    assert host.opened == [ALICE]

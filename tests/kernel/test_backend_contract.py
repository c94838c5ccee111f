"""What every backend promises, on the real kernel; the fake keeps the same promises, so that it may stand in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfknock.backends import Backend
from nfknock.backends.iptables import IptablesBackend
from nfknock.config.baseline import read_baseline
from nfknock.core.model import Hole, Opening, Port, Rule
from nfknock.core.plan import Plan
from nfknock.errors import BackendError
from tests.fakes import FakeBackend

SOURCES = ["192.0.2.2", "2001:db8::2"]
PLAN = Plan(
    baseline=read_baseline(None),
    allowed=(Rule(comment="allow 443/tcp", protocol="tcp", ports=(443,)),),
    knock_ports=tuple(Port(7100 + number, "udp" if number % 3 else "tcp") for number in range(50)),
    queue=5,
)


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["iptables", "fake"])
def backend(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Backend]:
    if request.param == "fake":
        yield FakeBackend(clock)
    else:
        request.getfixturevalue("namespace")
        yield IptablesBackend(clock)


@pytest.fixture(params=SOURCES)
def hole(request: pytest.FixtureRequest, clock: Clock) -> Hole:
    return Hole(
        door="ssh",
        source=ip_address(request.param),
        opens=(Opening(Port(22)), Opening(Port(53, "udp"))),
        opened_at=clock.now,
        closes_at=clock.now + 30,
    )


def test_it_is_not_in_place_before_it_is_applied(backend: Backend) -> None:
    assert backend.probe() == []
    assert not backend.state().applied
    assert backend.holes() == []


def test_apply_changes_once(backend: Backend) -> None:
    assert backend.apply(PLAN).changed
    assert backend.state().applied
    assert backend.state().policy == {"ipv4": "DROP", "ipv6": "DROP"}
    assert not backend.apply(PLAN).changed


def test_another_plan_is_a_change(backend: Backend) -> None:
    backend.apply(PLAN)
    other = replace(PLAN, knock_ports=PLAN.knock_ports[1:], interfaces=("eth0", "ppp+"), answer="reject")
    assert backend.apply(other).changed
    assert not backend.apply(other).changed
    assert backend.apply(PLAN).changed


def test_a_dry_run_says_what_and_changes_nothing(backend: Backend) -> None:
    change = backend.apply(PLAN, dry_run=True)
    assert change.changed
    assert change.difference
    assert not backend.state().applied
    backend.apply(PLAN)
    change = backend.apply(PLAN, dry_run=True)
    assert (change.changed, change.difference) == (False, ())


def test_remove_leaves_nothing(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    assert backend.remove().changed
    assert not backend.state().applied
    assert backend.state().policy == {"ipv4": "ACCEPT", "ipv6": "ACCEPT"}
    assert backend.holes() == []
    assert not backend.remove().changed


def test_nothing_opens_before_it_is_applied(backend: Backend, hole: Hole) -> None:
    with pytest.raises(BackendError, match="run `nfknock apply` first"):
        backend.open([hole])


def test_a_hole_is_as_it_was_asked_for(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    assert backend.open([hole]) == [hole]
    assert backend.holes() == [hole]


def test_a_hole_without_an_end(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    endless = replace(hole, closes_at=None)
    assert backend.open([endless]) == [endless]
    assert backend.holes() == [endless]


def test_opening_again_gives_the_later_end_and_no_second_hole(backend: Backend, clock: Clock, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    clock.now += 10
    again = replace(hole, opened_at=clock.now, closes_at=clock.now + 30)
    assert backend.open([again]) == [replace(hole, closes_at=clock.now + 30)]
    shorter = replace(hole, opened_at=clock.now, closes_at=clock.now + 5)
    assert backend.open([shorter]) == [replace(hole, closes_at=clock.now + 30)]
    assert backend.holes() == [replace(hole, closes_at=clock.now + 30)]


def test_a_hole_that_ran_out_is_opened_anew(backend: Backend, clock: Clock, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    clock.now += 60
    again = replace(hole, opened_at=clock.now, closes_at=clock.now + 30)
    assert backend.open([again]) == [again]
    assert backend.holes() == [again]


def test_ports_follow_the_door(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    moved = replace(hole, opens=(Opening(Port(2222)),))
    assert backend.open([moved]) == [moved]
    assert backend.holes() == [moved]


def test_closing_takes_that_hole_alone(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    others = [replace(hole, door="web"), replace(hole, source=ip_address("198.51.100.7"))]
    backend.open([hole, *others])
    assert backend.close([hole.key]) == [hole]
    assert sorted(backend.holes(), key=str) == sorted(others, key=str)


def test_closing_what_is_gone_is_fine(backend: Backend, hole: Hole) -> None:
    assert backend.close([hole.key]) == []
    backend.apply(PLAN)
    assert backend.close([hole.key]) == []
    assert backend.close([]) == []


def test_sweeping_takes_what_is_over_and_nothing_else(backend: Backend, clock: Clock, hole: Hole) -> None:
    assert backend.sweep() == []
    backend.apply(PLAN)
    longer = replace(hole, door="web", closes_at=clock.now + 60)
    endless = replace(hole, door="vpn", closes_at=None)
    backend.open([hole, longer, endless])
    assert backend.sweep() == []
    clock.now += 30
    assert backend.sweep() == [hole]
    assert backend.holes() == [longer, endless]


def test_both_families_in_one_go(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    both = [replace(hole, source=ip_address(source)) for source in SOURCES]
    assert sorted(backend.open(both), key=str) == sorted(both, key=str)
    assert sorted(backend.close([each.key for each in both]), key=str) == sorted(both, key=str)


def test_apply_keeps_holes(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    backend.apply(replace(PLAN, allowed=()))
    assert backend.holes() == [hole]


def test_another_instance_sees_the_same_holes(namespace: None, clock: Clock, hole: Hole) -> None:
    backend = IptablesBackend(clock)
    backend.apply(PLAN)
    backend.open([hole])
    assert IptablesBackend(clock).holes() == [hole]


def test_many_holes(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    prefix = "2001:db8::" if hole.source.version == 6 else "198.51.100."
    many = [replace(hole, source=ip_address(f"{prefix}{number}")) for number in range(1, 200)]
    backend.open(many)
    assert sorted(backend.holes(), key=str) == sorted(many, key=str)
    backend.close(each.key for each in many[1:])
    assert backend.holes() == many[:1]

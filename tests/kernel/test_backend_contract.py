"""What every backend promises, on the real kernel; the fake keeps the same promises, so that it may stand in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import get_args

import pytest

from nfknock.backends import Backend
from nfknock.backends.iptables import IptablesBackend
from nfknock.backends.nftables import NftablesBackend, library
from nfknock.config.baseline import read_baseline
from nfknock.core.model import Hole, Opening, Port, Rule
from nfknock.core.plan import Answer, BackendChoice, Plan, Strays
from nfknock.errors import BackendError
from tests.fakes import FakeBackend

SOURCES = ["192.0.2.2", "2001:db8::2"]
TARGETS = {4: ip_address("198.51.100.5"), 6: ip_address("2001:db8:1::5")}
HERE = (Opening(Port(22)), Opening(Port(53, "udp")))
BEHIND = {
    # By number, as a backend that keeps no order returns them.
    version: (Opening(Port(22), to), Opening(Port(5432), to), Opening(Port(53, "udp"), to))
    for version, to in TARGETS.items()
}
PLAN = Plan(
    baseline=read_baseline(None),
    allowed=(Rule(comment="allow 443/tcp", protocol="tcp", ports=(443,)),),
    knock_ports=tuple(Port(7100 + number, "udp" if number % 3 else "tcp") for number in range(50)),
    queue=5,
    reader="nflog",
    opens=(Port(22), Port(53, "udp")),
    forwarded=(*BEHIND[4], *BEHIND[6]),
    strays=Strays(group=6),
)


HOST_RULESET = """
add table inet filter
add chain inet filter input { type filter hook input priority 0; policy drop; }
add rule inet filter input ct state established,related accept
add chain inet filter forward { type filter hook forward priority 0; policy drop; }
"""


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["iptables", "ipset", "nftables", "nftables, attached", "fake"])
def backend(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Backend]:
    if request.param == "fake":
        yield FakeBackend(clock)
        return
    request.getfixturevalue("namespace")
    if request.param == "nftables, attached":
        library.run(HOST_RULESET)
    yield make(request.param, clock)


def make(name: str, clock: Clock) -> Backend:
    if name.startswith("nftables"):
        return NftablesBackend(clock)
    return IptablesBackend(clock, BackendChoice(name=name))


def has_queue_expression() -> bool:
    """Whether nf_tables of this kernel has `queue`."""
    commands = ("add table inet t", "add chain inet t c", "add rule inet t c queue num 5", "delete table inet t")
    try:
        library.run("\n".join(commands))
    except BackendError:
        return False
    return True


@pytest.fixture(params=["here", "behind", "both"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SOURCES)
def hole(request: pytest.FixtureRequest, kind: str, clock: Clock) -> Hole:
    version = ip_address(request.param).version
    return Hole(
        door="ssh",
        source=ip_address(request.param),
        opens={"here": HERE, "behind": BEHIND[version], "both": HERE + BEHIND[version]}[kind],
        opened_at=clock.now,
        closes_at=clock.now + 30,
    )


def for_source(hole: Hole, source: str) -> Hole:
    """The same hole for another source, with hosts behind of its family."""
    address = ip_address(source)
    opens = tuple(each if each.to is None else Opening(each.port, TARGETS[address.version]) for each in hole.opens)
    return replace(hole, source=address, opens=opens)


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


@pytest.mark.parametrize("answer", get_args(Answer))
def test_another_reader_is_a_change(backend: Backend, answer: Answer) -> None:
    backend.apply(PLAN)
    other = replace(PLAN, reader="nfqueue", answer=answer)
    if backend.name == "nftables" and not has_queue_expression():
        with pytest.raises(BackendError, match='cannot send packets to NFQUEUE; say kind = "nflog"'):
            backend.apply(other)
        assert not backend.apply(PLAN).changed
        return
    assert backend.apply(other).changed
    assert backend.state(other).applied
    assert not backend.apply(other).changed
    assert backend.apply(PLAN).changed
    assert not backend.apply(PLAN).changed


def test_a_dry_run_says_what_and_changes_nothing(backend: Backend) -> None:
    change = backend.apply(PLAN, dry_run=True)
    assert change.changed
    assert change.difference
    assert not backend.state().applied
    backend.apply(PLAN)
    change = backend.apply(PLAN, dry_run=True)
    assert (change.changed, change.difference) == (False, ())


def test_remove_leaves_nothing(backend: Backend, hole: Hole) -> None:
    policy = backend.state().policy
    backend.apply(PLAN)
    backend.open([hole])
    assert backend.remove().changed
    assert not backend.state().applied
    assert backend.state().policy == policy
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
    other = Opening(Port(2222)) if hole.opens[-1].to is None else BEHIND[hole.source.version][0]
    moved = replace(hole, opens=(other,))
    assert backend.open([moved]) == [moved]
    assert backend.holes() == [moved]


def test_closing_takes_that_hole_alone(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    others = [replace(hole, door="web"), for_source(hole, "198.51.100.7")]
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
    assert sorted(backend.holes(), key=str) == sorted([longer, endless], key=str)


@pytest.mark.parametrize("name", ["iptables", "ipset", "nftables"])
def test_sweeping_leaves_what_another_process_renewed_meanwhile(
    namespace: None, clock: Clock, hole: Hole, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, other = make(name, clock), make(name, clock)
    backend.apply(PLAN)
    backend.open([hole])
    clock.now += 40
    renewed = replace(hole, opened_at=clock.now, closes_at=clock.now + 30)
    holes = backend.holes

    def read() -> list[Hole]:
        found = holes()
        other.open([renewed])
        return found

    monkeypatch.setattr(backend, "holes", read)
    assert backend.sweep() == []
    assert other.holes() == [renewed]


def test_both_families_in_one_go(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    both = [for_source(hole, source) for source in SOURCES]
    assert sorted(backend.open(both), key=str) == sorted(both, key=str)
    assert sorted(backend.close([each.key for each in both]), key=str) == sorted(both, key=str)


def test_apply_keeps_holes(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    backend.apply(replace(PLAN, allowed=()))
    assert backend.holes() == [hole]


@pytest.mark.parametrize("name", ["iptables", "ipset", "nftables"])
def test_another_instance_sees_the_same_holes(namespace: None, clock: Clock, hole: Hole, name: str) -> None:
    one, other = make(name, clock), make(name, clock)
    one.apply(PLAN)
    one.open([hole])
    assert other.holes() == [hole]


@pytest.mark.parametrize("name", ["ipset", "nftables"])
def test_what_the_kernel_counts_ends_whatever_the_clock_says(
    namespace: None, clock: Clock, hole: Hole, name: str
) -> None:
    """The backend iptables has dates, and a daemon that counts."""
    backend = make(name, clock)
    backend.apply(PLAN)
    backend.open([hole])
    clock.now -= 3600
    [seen] = backend.holes()
    assert seen.closes_at is not None
    assert seen.closes_at <= clock.now + 31
    again = replace(hole, opened_at=clock.now, closes_at=clock.now + 40)
    assert backend.open([again]) == [replace(hole, closes_at=clock.now + 40)]
    assert backend.holes() == [replace(hole, closes_at=clock.now + 40)]


def test_a_renewed_hole_goes_on_counting(backend: Backend, clock: Clock, hole: Hole) -> None:
    backend.apply(PLAN)
    used = replace(hole, packets=7, bytes=420)
    assert backend.open([used]) == [used]
    assert backend.holes() == [used]
    again = replace(hole, opened_at=clock.now, closes_at=clock.now + 60)
    assert backend.open([again]) == [replace(used, closes_at=clock.now + 60)]
    assert backend.holes() == [replace(used, closes_at=clock.now + 60)]


def test_what_is_taken_back_leaves_open_what_it_knows(backend: Backend, hole: Hole) -> None:
    """A hole that was opened meanwhile may lead to what was not guarded before."""
    before = replace(PLAN, forwarded=(), allowed=())
    backend.apply(before)
    take_back = backend.remember()
    backend.apply(PLAN)
    holes = [hole, replace(hole, door="web", packets=7, bytes=420)]
    backend.open(holes)
    for _attempt in range(2):
        take_back()
        here = tuple(each for each in hole.opens if each.to is None)
        assert sorted(backend.holes(), key=str) == sorted(
            [replace(each, opens=here) for each in holes if here], key=str
        )
        assert backend.state(before).applied
        assert not backend.apply(before).changed


def test_many_holes(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    prefix = "2001:db8::" if hole.source.version == 6 else "198.51.100."
    many = [for_source(hole, f"{prefix}{number}") for number in range(1, 200)]
    backend.open(many)
    assert sorted(backend.holes(), key=str) == sorted(many, key=str)
    backend.close(each.key for each in many[1:])
    assert backend.holes() == many[:1]


def test_nothing_opens_behind_that_is_not_guarded(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    strange = replace(hole, opens=(*hole.opens, Opening(Port(5433), TARGETS[hole.source.version])))
    with pytest.raises(BackendError, match="run `nfknock apply` first"):
        backend.open([for_source(hole, "198.51.100.7"), strange])
    assert backend.holes() == []


@pytest.mark.parametrize("guarded", [(), (BEHIND[4][0], BEHIND[6][0])])
def test_what_is_forwarded_no_more_is_shut(backend: Backend, hole: Hole, guarded: tuple[Opening, ...]) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    other = replace(PLAN, forwarded=guarded)
    assert backend.apply(other).changed
    opens = tuple(each for each in hole.opens if each.to is None or each in guarded)
    assert backend.holes() == ([replace(hole, opens=opens)] if opens else [])
    assert not backend.apply(other).changed
    assert backend.apply(PLAN).changed


def test_what_no_door_opens_is_shut(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole, replace(hole, door="web")])
    strange, left = backend.clear_out({"ssh": frozenset(hole.opens), "web": frozenset(hole.opens)})
    assert strange == []
    assert sorted(left, key=lambda each: each.door) == [hole, replace(hole, door="web")]
    strange, left = backend.clear_out({"ssh": frozenset(hole.opens[1:])})
    assert {each.hole and each.hole.door for each in strange} == {"ssh", "web"}
    assert left == backend.holes() == [replace(hole, opens=hole.opens[1:])]
    [last], left = backend.clear_out({})
    assert last.hole == replace(hole, opens=hole.opens[1:])
    assert left == backend.holes() == []


def test_a_removed_firewall_is_repaired_with_its_holes(backend: Backend, hole: Hole) -> None:
    backend.apply(PLAN)
    backend.open([hole])
    assert backend.repair(PLAN, [hole]) == []
    backend.remove()
    assert backend.repair(PLAN, [hole]) == [hole]
    assert backend.holes() == [hole]
    assert backend.state(PLAN).applied


def test_it_takes_over_what_another_had_open(backend: Backend, hole: Hole) -> None:
    assert not backend.stands()
    assert backend.apply(PLAN, holes=[hole]).changed
    assert backend.stands()
    assert backend.holes() == [hole]
    assert not backend.apply(PLAN).changed
    backend.remove()
    assert not backend.stands()

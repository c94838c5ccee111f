"""Holes in sets of the kernel: what is the backend ipset's own, beside the contract of all backends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfknock.backends.ipset.kernel import Sets
from nfknock.backends.iptables import IptablesBackend
from nfknock.config.baseline import read_baseline
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import LONGEST_IN_SET, BackendChoice, Plan
from nfknock.errors import BackendError
from tests.lab import wait_until

BEHIND = Opening(Port(5432), ip_address("198.51.100.5"))
PLAN = Plan(baseline=read_baseline(None), allowed=(), knock_ports=(Port(7101),), queue=5, forwarded=(BEHIND,))
SOURCES = ["192.0.2.2", "2001:db8::2"]


def hole(source: str = SOURCES[0], door: str = "ssh", *, seconds: float | None = 900, to: bool = False) -> Hole:
    # To the millisecond, as it is read back.
    now = round(time.time(), 3)
    opens = (Opening(Port(22)), Opening(Port(53, "udp")), *((BEHIND,) if to else ()))
    closes_at = None if seconds is None else round(now + seconds, 3)
    return Hole(door=door, source=ip_address(source), opens=opens, opened_at=now, closes_at=closes_at)


def of(name: str, size: int = 64) -> IptablesBackend:
    return IptablesBackend(choice=BackendChoice(name=name, set_size=size))


@pytest.fixture
def backend(namespace: None) -> IptablesBackend:
    made = of("ipset")
    made.apply(PLAN)
    return made


@contextmanager
def ipset() -> Iterator[Any]:
    """Be an administrator with the ipset command; each has to end, or its socket is left open."""
    from pyroute2 import IPSet

    with IPSet() as made:
        yield made


def same(some: list[Hole], others: list[Hole]) -> bool:
    """Whether both are the same holes; a hole is put off by as long as the lock was waited for."""

    def timeless(holes: list[Hole]) -> list[Hole]:
        return [replace(each, opened_at=0, closes_at=None) for each in holes]

    def instants(holes: list[Hole]) -> list[tuple[float, float]]:
        return [(each.opened_at, math.inf if each.closes_at is None else each.closes_at) for each in holes]

    some, others = sorted(some, key=str_of_key), sorted(others, key=str_of_key)
    return timeless(some) == timeless(others) and all(
        here == pytest.approx(there, rel=0, abs=2) for here, there in zip(instants(some), instants(others), strict=True)
    )


def str_of_key(hole: Hole) -> str:
    return str(hole.key)


@pytest.mark.parametrize("source", SOURCES)
def test_two_doors_that_open_the_same_port_are_two_holes(backend: IptablesBackend, source: str) -> None:
    long, short = hole(source, "ssh", seconds=60), hole(source, "web", seconds=30)
    backend.open([long, short])
    assert same(backend.holes(), [long, short])
    assert same(backend.close([("ssh", long.source)]), [long])
    assert same(backend.holes(), [short])


def test_names_that_do_not_fit_are_told_apart(backend: IptablesBackend) -> None:
    names = ["a" * 40, "a" * 39 + "b", "a" * 20, "a" * 21]
    several = [hole(door=name, to=True) for name in names]
    backend.open(several)
    assert same(backend.holes(), several)
    backend.close([("a" * 40, several[0].source)])
    assert same(backend.holes(), several[1:])


def test_the_kernel_shuts_by_itself_and_on_time(backend: IptablesBackend) -> None:
    short, endless = hole(seconds=1, to=True), hole(door="web", seconds=None)
    backend.open([short, endless])
    assert short.closes_at is not None
    wait_until(lambda: same(backend.holes(), [endless]), "the kernel to shut it", within=10)
    assert 0 <= time.time() - short.closes_at < 5


def test_a_clock_that_is_set_back_keeps_nothing_open(namespace: None) -> None:
    ahead = 3600.0
    backend = IptablesBackend(lambda: time.time() + ahead, BackendChoice(name="ipset"))
    backend.apply(PLAN)
    now = time.time() + ahead
    first = replace(hole(), opened_at=now, closes_at=now + 2)
    backend.open([first])
    ahead = 0.0
    [seen] = backend.holes()
    assert seen.closes_at is not None
    assert seen.closes_at < time.time() + 60, "what is left by the kernel's count, not an hour"
    again = replace(first, opened_at=time.time(), closes_at=time.time() + 3)
    backend.open([again])
    wait_until(lambda: backend.holes() == [], "the kernel to shut it", within=10)


def test_what_lasts_longer_than_the_kernel_counts_ends_then(backend: IptablesBackend) -> None:
    [standing] = backend.open([hole(seconds=366 * 86400)])
    assert standing.closes_at == pytest.approx(time.time() + LONGEST_IN_SET, abs=60)
    assert same(backend.holes(), [standing])


@pytest.mark.parametrize("name", ["iptables", "ipset"])
def test_probing_and_looking_leave_nothing(namespace: None, name: str) -> None:
    backend = of(name)
    assert backend.probe() == []
    assert backend.apply(PLAN, dry_run=True).changed
    assert backend.holes() == []
    assert Sets(1).heads() == {}
    assert not backend.stands()


def test_remove_leaves_no_set(backend: IptablesBackend) -> None:
    backend.open([hole(to=True)])
    assert len(Sets(1).heads()) == 5
    assert backend.remove().changed
    assert Sets(1).heads() == {}


def test_sets_without_rules_are_removed_too(backend: IptablesBackend) -> None:
    backend.open([hole()])
    of("iptables").remove()
    assert not backend.stands()
    with ipset() as there:
        there.create("nfknock4-left", "hash:ip,port", timeout=60, comment=True)
    assert backend.stands()
    assert backend.remove().changed
    assert not backend.stands()


def test_sets_of_somebody_else_s_are_not_ours_whatever_they_are_called(namespace: None) -> None:
    others = {"nfknock_admins": "hash:ip", "nfknock4-list": "hash:ip", "nfknocked": "list:set"}
    with ipset() as there:
        for name, kind in others.items():
            there.create(name, kind)
    backend = of("ipset")
    assert not backend.stands()
    backend.apply(PLAN)
    backend.remove()
    assert not backend.stands()
    with ipset() as there:
        for name in others:
            there.destroy(name)


@pytest.mark.parametrize("kind", ["hash:ip", "hash:ip,port"])
def test_somebody_else_s_set_in_the_list_is_taken_out_and_left_alone(backend: IptablesBackend, kind: str) -> None:
    backend.open([hole()])
    with ipset() as there:
        there.create("admins", kind)
        if kind == "hash:ip":
            there.add("admins", "192.0.2.2")
        there.add("nfknock4", "admins", etype="set")
    assert same(backend.holes(), [hole()])
    assert backend.sweep() == []
    [said], _left = backend.clear_out({"ssh": frozenset(hole().opens)})
    assert (said.hole, said.reason) == (None, "the set admins, which is no door's, was taken out of nfknock4")
    assert Sets(1).members("nfknock4") == ["nfknock4-ssh"]
    with ipset() as there:
        there.destroy("admins")
    assert same(backend.holes(), [hole()])


def test_somebody_else_s_set_of_a_door_s_name_lets_nobody_in(backend: IptablesBackend) -> None:
    with ipset() as there:
        there.create("nfknock4-ssh", "hash:ip")
        there.add("nfknock4-ssh", SOURCES[0])
    with pytest.raises(BackendError, match="nfknock4-ssh: somebody else has one of that name; rename or destroy it"):
        backend.open([hole()])
    assert Sets(1).members("nfknock4") == []
    assert backend.state(PLAN).applied
    with ipset() as there:
        there.destroy("nfknock4-ssh")
    backend.open([hole()])
    assert same(backend.holes(), [hole()])


def test_a_full_set_says_so_and_opens_nothing(namespace: None) -> None:
    backend = of("ipset", size=64)
    backend.apply(PLAN)
    many = [hole(f"198.51.100.{number}") for number in range(40)]
    with pytest.raises(BackendError, match=r"nfknock4-ssh: it is full; raise `set_size` under \[firewall\] and run"):
        backend.open([hole(SOURCES[1]), *many])
    assert backend.holes() == []
    backend.open(many[:20])
    before = backend.holes()
    with pytest.raises(BackendError, match="it is full"):
        backend.open([replace(many[0], closes_at=None), *many[20:]])
    assert backend.holes() == before


def test_a_larger_set_has_what_the_smaller_had(namespace: None) -> None:
    of("ipset", size=64).apply(PLAN)
    many = [hole(f"198.51.100.{number}") for number in range(40)]
    of("ipset", size=64).open([*many[:20], hole(SOURCES[1], seconds=None)])
    larger = of("ipset", size=4096)
    assert larger.apply(PLAN).changed
    assert not larger.apply(PLAN).changed
    assert len(larger.holes()) == 21
    larger.open(many[20:])
    assert {head.size for name, head in Sets(1).heads().items() if "-" in name} == {4096}
    assert same(larger.holes(), [*many, *(each for each in larger.holes() if each.source.version == 6)])


def test_a_set_that_would_be_too_small_stays(namespace: None) -> None:
    of("ipset", size=4096).apply(PLAN)
    many = [hole(f"198.51.100.{number}") for number in range(40)]
    of("ipset", size=4096).open(many)
    with pytest.raises(BackendError, match="it is full"):
        of("ipset", size=64).apply(PLAN)
    assert same(of("ipset", size=4096).holes(), many)
    assert {name for name in Sets(1).heads() if "!" in name} == set()


@pytest.mark.parametrize("is_in_list", [False, True])
@pytest.mark.parametrize("size", [64, 4096])
def test_what_somebody_left_who_was_killed_amid_a_resize_is_no_door_s(
    backend: IptablesBackend, size: int, *, is_in_list: bool
) -> None:
    from pyroute2.ipset import PortEntry

    backend.open([hole(seconds=None)])
    with ipset() as there:
        there.create("nfknock4-ssh!", "hash:ip,port", timeout=60, counters=True, comment=True)
        there.add("nfknock4-ssh!", ("192.0.2.9", PortEntry(22, 6)), etype="ip,port", timeout=0)
        if is_in_list:
            there.add("nfknock4", "nfknock4-ssh!", etype="set")
    assert backend.state(PLAN).applied
    heir = of("ipset", size=size)
    heir.apply(PLAN)
    with ipset() as there:
        assert "nfknock4-ssh!" not in [each.get_attr("IPSET_ATTR_SETNAME") for each in there.list()]
    assert [each.key for each in heir.close([hole().key])] == [hole().key]
    assert heir.holes() == []


def test_a_set_that_somebody_made_who_was_killed_then_is_no_damage(backend: IptablesBackend) -> None:
    with ipset() as there:
        there.create("nfknock4-ssh", "hash:ip,port", timeout=60, counters=True, comment=True, maxelem=64)
    assert of("ipset").state(PLAN).applied
    backend.open([hole()])
    with ipset() as there:
        there.flush("nfknock4")
    assert of("ipset").state(PLAN).damage == ("ipv4: nfknock4 does not look at the set nfknock4-ssh",)


def test_sets_of_doors_that_are_gone_are_destroyed(backend: IptablesBackend) -> None:
    backend.open([hole(), hole(door="web")])
    [gone], _left = backend.clear_out({"ssh": frozenset(hole().opens)})
    assert gone.hole is not None
    assert (gone.hole.door, gone.reason) == ("web", "there is no such door any more")
    assert [name for name in Sets(1).heads() if "web" in name] == []
    assert backend.state(PLAN).applied


def test_what_somebody_wrote_into_a_set_is_taken_out(backend: IptablesBackend) -> None:
    from pyroute2.ipset import PortEntry

    backend.open([hole(), hole(door="web")])
    comment = "nfknock hole web opened 2026-11-21T04:00:00.000Z closes 2099-11-21T04:00:00.000Z"
    with ipset() as there:
        there.add("nfknock4-ssh", ("192.0.2.9", PortEntry(22, 6)), etype="ip,port", timeout=0)
        there.add("nfknock4-ssh", ("192.0.2.10", PortEntry(22, 132)), etype="ip,port", timeout=9)
        there.add("nfknock4-ssh", ("192.0.2.9", PortEntry(23, 6)), etype="ip,port", timeout=9, comment=comment)
        there.add("nfknock4-web", ("192.0.2.9", PortEntry(22, 6)), etype="ip,port", timeout=0, comment=comment)
    doors = {name: frozenset(hole().opens) for name in ("ssh", "web")}
    strange, left = backend.clear_out(doors)
    reasons = sorted(each.reason for each in strange)
    assert reasons == [
        "ipv4: an entry in nfknock4-ssh that is no hole was taken out",
        "its entry was edited",
        "the door does not open that any more",
    ]
    assert {each.key for each in left} == {each.key for each in backend.holes()} == {hole().key, hole(door="web").key}
    assert backend.clear_out(doors)[0] == []


def _flush_all() -> None:
    with ipset() as there:
        there.flush()


def _flush_and_destroy() -> None:
    with ipset() as there:
        there.flush()
        there.destroy("nfknock4-ssh")
        there.destroy("nfknock6-ssh")


@pytest.mark.parametrize("harm", [_flush_all, _flush_and_destroy])
def test_a_flush_of_all_sets_is_repaired_with_its_holes(backend: IptablesBackend, harm: Callable[[], None]) -> None:
    both = [hole(source) for source in SOURCES]
    backend.open(both)
    assert backend.state(PLAN).applied
    harm()
    assert backend.holes() == []
    assert any("nfknock4-ssh" in line for line in backend.state(PLAN).damage)
    assert same(backend.repair(PLAN, both), both)
    assert same(backend.holes(), both)
    assert backend.state(PLAN).applied


def test_what_somebody_took_out_of_one_set_stays_out(backend: IptablesBackend) -> None:
    several = [hole(), hole(door="web")]
    backend.open(several)
    with ipset() as there:
        there.flush("nfknock4-ssh")
    assert backend.state(PLAN).applied
    assert same(backend.holes(), several[1:])


def test_flushed_rules_come_back_and_look_at_the_same_sets(backend: IptablesBackend, kernel: None) -> None:
    several = [hole(to=True), hole(SOURCES[1])]
    backend.open(several)
    for table in backend._tables.values():
        table.refresh()
        for chain in table.chains():
            table.fill(chain, ())
        table.commit()
    assert backend.holes() == []
    assert backend.repair(PLAN, several) == []
    assert same(backend.holes(), several)


def test_another_process_opened_there_meanwhile(backend: IptablesBackend) -> None:
    first, other = hole(), of("ipset")
    backend.holes()
    other.open([first])
    backend.holes()
    other.open([hole("192.0.2.7", seconds=600)])
    # Not known here yet: it is found when it is written.
    [renewed] = backend.open([hole("192.0.2.7", seconds=30)])
    assert renewed.closes_at == pytest.approx(time.time() + 600, abs=30)


moving = pytest.mark.parametrize(("old", "new"), [("iptables", "ipset"), ("ipset", "iptables")])


@pytest.fixture
def several() -> list[Hole]:
    return [hole(to=True), hole(SOURCES[1], seconds=None), hole(door="web", seconds=600)]


@pytest.fixture
def before(namespace: None, old: str, several: list[Hole]) -> IptablesBackend:
    made = of(old)
    made.apply(PLAN)
    made.open(several)
    return made


@moving
def test_holes_come_along_and_nothing_is_left(before: IptablesBackend, new: str, several: list[Hole]) -> None:
    after = of(new)
    assert (before.stands(), after.stands()) == (True, False)
    assert not after.state(PLAN).applied
    assert after.holes() == []
    assert after.apply(PLAN).changed
    assert (before.stands(), after.stands()) == (False, True)
    assert same(after.holes(), several)
    assert after.state(PLAN).applied
    assert not after.apply(PLAN).changed
    assert bool(Sets(1).heads()) == (new == "ipset")
    after.remove()
    assert Sets(1).heads() == {}


@moving
def test_a_dry_run_moves_nothing(before: IptablesBackend, new: str, several: list[Hole]) -> None:
    heads = Sets(1).heads()
    change = of(new).apply(PLAN, dry_run=True)
    assert change.changed
    assert any("192.0.2.2" in line for line in change.difference)
    assert same(before.holes(), several)
    assert before.state(PLAN).applied
    assert Sets(1).heads() == heads


@moving
def test_taken_back_everything_is_there_as_it_is_by_then(
    before: IptablesBackend, new: str, several: list[Hole]
) -> None:
    take_back, after = before.remember(), of(new)
    after.apply(PLAN)
    after.close([several[0].key])
    another = hole("192.0.2.8")
    after.open([another])
    take_back()
    assert same(before.holes(), [*several[1:], another])
    assert before.state(PLAN).applied
    assert not after.stands()


@moving
def test_what_cannot_be_moved_stays(
    before: IptablesBackend, new: str, several: list[Hole], monkeypatch: pytest.MonkeyPatch
) -> None:
    after, heads = of(new), Sets(1).heads()

    def fails() -> None:
        raise BackendError("no memory")

    monkeypatch.setattr(after._tables["ipv6"], "commit", fails)
    with pytest.raises(BackendError, match="no memory"):
        after.apply(PLAN)
    assert same(before.holes(), several)
    assert before.state(PLAN).applied
    assert Sets(1).heads() == heads

"""One backend takes over from another, with everything that is open."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nfknock.backends import Change
from nfknock.backends.succession import Succession
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, LockHeldError
from tests.fakes import FakeBackend

PLAN = Plan(baseline=(), allowed=(), knock_ports=(Port(7101),), queue=5)
FAR = Opening(Port(5432), ip_address("198.51.100.5"))


def hole(last: int = 2, opening: Opening = Opening(Port(22))) -> Hole:  # noqa: B008  (it is never changed)
    source = ip_address(f"192.0.2.{last}")
    return Hole(door="ssh", source=source, opens=(opening,), opened_at=100.0, closes_at=None)


def named(name: str) -> FakeBackend:
    backend = FakeBackend()
    backend.name = name
    return backend


@pytest.fixture
def old() -> FakeBackend:
    backend = named("old")
    backend.apply(PLAN)
    backend.open([hole()])
    return backend


@pytest.fixture
def new() -> FakeBackend:
    return named("new")


@pytest.fixture
def both(old: FakeBackend, new: FakeBackend) -> Succession:
    return Succession(new, lambda: [old])


def test_holes_come_along_and_nothing_of_the_old_one_is_left(
    both: Succession, old: FakeBackend, new: FakeBackend
) -> None:
    change = both.apply(PLAN)
    assert change.changed
    assert change.replaced == ("old",)
    assert new.holes() == [hole()]
    assert not old.stands()
    assert not both.apply(PLAN).changed


def test_what_leads_to_what_is_forwarded_no_more_stays_behind(
    both: Succession, old: FakeBackend, new: FakeBackend
) -> None:
    old.open([hole(3)])
    old._holes[hole(4).key] = hole(4, FAR)
    old._holes[hole(5).key] = replace(hole(5), opens=(*hole(5).opens, FAR))
    both.apply(PLAN)
    assert new.holes() == [hole(2), hole(3), hole(5)]


def test_a_dry_run_says_who_goes(both: Succession, old: FakeBackend, new: FakeBackend) -> None:
    change = both.apply(PLAN, dry_run=True)
    assert change.changed
    assert "old" in change.difference[-1]
    assert old.stands()
    assert not new.stands()


def test_where_the_old_one_cannot_go_the_new_one_does_not_stay(
    both: Succession, old: FakeBackend, new: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise BackendError("the lock is held")

    monkeypatch.setattr(old, "remove", fails)
    with pytest.raises(BackendError, match="the lock is held"):
        both.apply(PLAN)
    assert old.stands()
    assert old.holes() == [hole()]
    assert not new.stands()


def test_where_the_new_one_fails_half_way_it_does_not_stay(
    both: Succession, old: FakeBackend, new: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plan: Plan, **_others: object) -> None:
        new._plan = plan
        raise BackendError("no room for the holes")

    monkeypatch.setattr(new, "apply", fails)
    with pytest.raises(BackendError, match="no room for the holes"):
        both.apply(PLAN)
    assert old.holes() == [hole()]
    assert not new.stands()


def test_what_is_done_to_the_old_one_meanwhile_is_done_to_the_new_one(
    both: Succession, old: FakeBackend, new: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.apply(replace(PLAN, forwarded=(FAR,)))
    old.open([hole(3), replace(hole(4), closes_at=200.0), hole(5)])
    shorter, longer = replace(hole(3), opened_at=150.0, closes_at=160.0), replace(hole(4), closes_at=300.0)
    added = replace(hole(6), opens=(*hole(6).opens, FAR))
    apply, clock = new.apply, 150.0
    for backend in (old, new):
        monkeypatch.setattr(backend, "_clock", lambda: clock)

    def applies(*given: Any, **named: Any) -> Change:
        old.close([hole(2).key, hole(3).key])
        old.open([shorter, longer, added])
        return apply(*given, **named)

    monkeypatch.setattr(new, "apply", applies)
    both.apply(PLAN)
    assert sorted(new.holes(), key=str) == sorted([shorter, longer, hole(5), hole(6)], key=str)


def test_before_the_move_what_is_open_is_the_old_ones(both: Succession, old: FakeBackend) -> None:
    assert both.stands()
    assert both.holes() == [hole()]
    assert both.state(PLAN).damage == ("it was put in place by the backend old",)
    assert both.close([hole().key]) == [hole()]
    assert old.holes() == []


def test_a_daemon_repairs_nothing_where_another_one_stands(
    both: Succession, old: FakeBackend, new: FakeBackend
) -> None:
    with pytest.raises(BackendError, match="in place by the backend old and not by new; run `nfknock apply`"):
        both.repair(PLAN, [])
    assert not new.stands()
    old.remove()
    assert both.repair(PLAN, [hole()]) == [hole()]


def test_taken_back_the_old_one_has_what_is_open_by_then(both: Succession, old: FakeBackend, new: FakeBackend) -> None:
    old.open([hole(3)])
    take_back = both.remember()
    both.apply(PLAN)
    new.open([hole(4)])
    new.close([hole(3).key])
    take_back()
    assert not new.stands()
    assert old.holes() == [hole(2), hole(4)]


def test_taken_back_what_the_old_one_did_not_guard_is_shut(
    both: Succession, old: FakeBackend, new: FakeBackend
) -> None:
    take_back = both.remember()
    both.apply(replace(PLAN, forwarded=(FAR,)))
    new.open([hole(3, FAR), replace(hole(4), opens=(*hole(4).opens, FAR)), hole(5)])
    for _attempt in range(2):
        take_back()
        assert not new.stands()
        assert old.holes() == [hole(2), hole(4), hole(5)]


def test_taken_back_at_the_second_attempt_everything_is_there(
    both: Succession, old: FakeBackend, new: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_back = both.remember()
    both.apply(PLAN)
    new.open([hole(3)])

    def fails(_holes: object) -> list[Hole]:
        raise LockHeldError("the lock is held")

    with monkeypatch.context() as patched:
        patched.setattr(old, "open", fails)
        with pytest.raises(LockHeldError):
            take_back()
    take_back()
    assert old.holes() == [hole(2), hole(3)]


def test_remove_takes_out_both(both: Succession, old: FakeBackend, new: FakeBackend) -> None:
    new.apply(PLAN)
    assert both.remove().changed
    assert [each.stands() for each in (old, new, both)] == [False] * 3
    assert not both.remove().changed

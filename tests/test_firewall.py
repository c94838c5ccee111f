"""The daemon's hand on a firewall that is only a fake: what it says, and what it remembers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfknock.backends import Change, FirewallState
from nfknock.core.model import Door, Hole, Opening, Port
from nfknock.core.plan import Plan
from nfknock.daemon import control
from nfknock.daemon.firewall import Firewall
from nfknock.errors import BackendError, BusyError
from tests.fakes import FakeBackend
from tests.lab import wait_until

SOURCE = ip_address("192.0.2.2")
DOOR = Door(name="ssh", sequence=(Port(7101),), opens=(Opening(Port(22)),), open_timeout=1.0)
PLAN = Plan(baseline=(), allowed=(), knock_ports=DOOR.sequence, queue=5)


class Forgetful(FakeBackend):
    """A backend whose kernel takes away by itself what is over, as it does with sets."""

    def sweep(self) -> list[Hole]:
        return []

    def holes(self) -> list[Hole]:
        super().sweep()
        return super().holes()


async def open_until(firewall: Firewall, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Let a source in and run the daemon until its log has this."""
    await firewall.start(PLAN, [DOOR])
    running = asyncio.create_task(firewall.run())
    firewall.open(DOOR, SOURCE)
    await asyncio.to_thread(wait_until, lambda: text in caplog.messages, text)
    firewall.stop()
    await running


async def start_with_a_hole(firewall: Firewall, *, for_seconds: float = DOOR.open_timeout) -> None:
    await firewall.start(PLAN, [DOOR])
    firewall.open(replace(DOOR, open_timeout=for_seconds), SOURCE)
    await firewall._write_openings()


def test_what_the_kernel_takes_away_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backend = Forgetful()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)
    with caplog.at_level(logging.INFO):
        asyncio.run(open_until(firewall, "192.0.2.2: ssh: closed after 1 s", caplog))
    assert sum("closed after" in line for line in caplog.messages) == 1
    assert (firewall.opened, firewall.closed) == (1, 1)


def test_what_somebody_shut_before_its_time_is_not(caplog: pytest.LogCaptureFixture) -> None:
    backend = Forgetful()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)

    async def shut_early() -> None:
        await start_with_a_hole(firewall, for_seconds=60.0)
        backend.close([("ssh", SOURCE)])
        await firewall._look()

    with caplog.at_level(logging.INFO):
        asyncio.run(shut_early())
    assert "192.0.2.2: ssh: opened 22/tcp for 60 s" in caplog.messages
    assert not any("closed after" in line for line in caplog.messages)
    assert firewall.closed == 0


# What the firewall was not told to guard yet, as after a reload that another program's lock put off.
INNER = replace(DOOR, name="inner", opens=(Opening(Port(5432), to=ip_address("10.0.0.5")),))


def test_a_hole_that_cannot_be_written_costs_nobody_else_theirs(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)
    others = [ip_address(f"192.0.2.{number}") for number in range(3, 6)]

    async def open_together() -> None:
        await firewall.start(PLAN, [DOOR])
        firewall.open(DOOR, others[0])
        firewall.open(INNER, SOURCE)
        for each in others[1:]:
            firewall.open(DOOR, each)
        await firewall._write_openings()

    with caplog.at_level(logging.INFO):
        asyncio.run(open_together())
    assert {hole.source for hole in backend.holes()} == set(others)
    assert firewall.opened == len(others)
    failed = [line for line in caplog.messages if "not opened" in line]
    assert len(failed) == 1
    assert failed[0].startswith("192.0.2.2: inner: not opened: ")


class Unrepairable(FakeBackend):
    """A firewall that is damaged in a way that cannot be mended, as where `attach` names a chain that is gone."""

    def state(self, plan: Plan | None = None) -> FirewallState:
        return replace(super().state(plan), damage=("a rule is gone",) if plan else ())

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:  # noqa: ARG002
        raise BackendError("attach: there is no such chain")


def test_what_cannot_be_repaired_keeps_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    now = 1e9
    backend = Unrepairable(lambda: now)
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend, lambda: now)

    async def look_after_the_end() -> None:
        nonlocal now
        await start_with_a_hole(firewall)
        now += 2 * DOOR.open_timeout
        await firewall._look()

    with caplog.at_level(logging.INFO):
        asyncio.run(look_after_the_end())
    assert backend.holes() == []
    assert "looking after the firewall: attach: there is no such chain" in caplog.messages
    assert "192.0.2.2: ssh: closed after 1 s" in caplog.messages


def test_what_cannot_be_repaired_is_shut_though_the_clock_was_set_back() -> None:
    now = 1e9
    backend = Unrepairable(lambda: now)
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend, lambda: now)

    async def look_until_shut() -> None:
        nonlocal now
        await start_with_a_hole(firewall, for_seconds=0.1)
        now -= 3600
        give_up_at = time.monotonic() + 20
        while backend.holes() and time.monotonic() < give_up_at:
            await firewall._look()
            await asyncio.sleep(0.05)

    asyncio.run(look_until_shut())
    assert backend.holes() == []


class Applied(FakeBackend):
    """A backend that keeps the plans that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[Plan] = []

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        self.plans.append(plan)
        return super().apply(plan, holes=holes, dry_run=dry_run)


@pytest.mark.parametrize("knocked", [True, False])
def test_what_was_cut_stays_cut_whatever_is_knocked_at_next(*, knocked: bool) -> None:
    """The door is gone from the configuration; a one-time knock at another one has the daemon watch other ports."""
    backend = Applied()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)
    cutting = replace(INNER, cut_sessions=True)

    async def cut_and_watch() -> None:
        await firewall.start(replace(PLAN, forwarded=cutting.opens, cut=cutting.opens), [DOOR, cutting])
        firewall.open(cutting, SOURCE)
        await firewall._write_openings()
        await firewall.apply(PLAN, [DOOR])
        if knocked:
            firewall.watch(replace(PLAN, knock_ports=(Port(7102),)))
            await firewall._write_plan()

    asyncio.run(cut_and_watch())
    assert backend.plans[-1].cut == cutting.opens
    assert backend.plans[-1].knock_ports == ((Port(7102),) if knocked else PLAN.knock_ports)


class Flushed(FakeBackend):
    """A firewall that others flush."""

    is_repaired_by_halves = False

    def flush(self) -> None:
        self._plan, self._holes = None, {}

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        if self.is_repaired_by_halves:
            self.is_repaired_by_halves = False
            super().repair(plan, ())
            raise BackendError("the rules are back, and then something fails")
        return super().repair(plan, holes)


class FlushedUnderOurEyes(Flushed):
    """Once, between a look at the rules and one at the holes."""

    is_due = False

    def holes(self) -> list[Hole]:
        if self.is_due:
            self.is_due = False
            self.flush()
        return super().holes()


class FlushedAndHardToRead(Flushed):
    """The first look at the rules fails after that, and the one at the holes does not."""

    was_asked = False

    def state(self, plan: Plan | None = None) -> FirewallState:
        if self._plan is None and not self.was_asked:
            self.was_asked = True
            raise BackendError("reading the rules: changed meanwhile")
        return super().state(plan)


@pytest.mark.parametrize("kind", [Flushed, FlushedUnderOurEyes, FlushedAndHardToRead])
def test_what_was_open_is_owed_until_it_is_back(kind: type[Flushed], caplog: pytest.LogCaptureFixture) -> None:
    backend = kind()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)

    async def look_after_a_flush() -> None:
        await start_with_a_hole(firewall, for_seconds=60.0)
        await firewall._look()
        if isinstance(backend, FlushedUnderOurEyes):
            backend.is_due = True
        else:
            backend.is_repaired_by_halves = kind is Flushed
            backend.flush()
        await firewall._look()
        await firewall._look()

    asyncio.run(look_after_a_flush())
    assert [hole.key for hole in backend.holes()] == [("ssh", SOURCE)]
    assert "the firewall was changed by somebody else: there is no plan; put back, with 1 hole" in caplog.messages


def test_what_was_shut_after_a_flush_is_not_put_back() -> None:
    backend = Flushed()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)

    async def shut_after_a_flush() -> None:
        await start_with_a_hole(firewall, for_seconds=60.0)
        backend.flush()
        firewall.close("ssh", SOURCE)
        await firewall._write_closings()
        await firewall._look()

    asyncio.run(shut_after_a_flush())
    assert backend.holes() == []


class ShutWhileRead(Flushed):
    """A firewall in which somebody shuts everything, once, when the holes have been read and are not returned yet.

    Reading them took from five seconds before that to five after it.
    """

    is_due = False
    early = 5.0

    def holes(self) -> list[Hole]:
        found = super().holes()
        if self.is_due:
            self.is_due = False
            self._holes = {}
            control.note_closed()
            self.early = -5.0
        return found


def test_what_is_shut_by_hand_while_it_is_read_is_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFKNOCK_RUNTIME_DIR", str(tmp_path))
    backend = ShutWhileRead()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend, lambda: time.time() - backend.early)

    async def flush_after_a_look() -> None:
        await start_with_a_hole(firewall, for_seconds=60.0)
        backend.is_due = True
        await firewall._look()
        backend.flush()
        await firewall._look()

    asyncio.run(flush_after_a_look())
    assert backend.state(PLAN).applied
    assert backend.holes() == []


def test_what_is_owed_is_no_reason_to_put_back_rules_that_somebody_replaced() -> None:
    backend = Flushed()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)
    other = replace(PLAN, knock_ports=(Port(7102),))

    async def look_after_another_apply() -> None:
        await start_with_a_hole(firewall, for_seconds=60.0)
        backend.is_repaired_by_halves = True
        backend.flush()
        await firewall._look()
        backend.apply(other)
        await firewall._look()

    asyncio.run(look_after_another_apply())
    assert not backend.apply(other).changed
    assert [hole.key for hole in backend.holes()] == [("ssh", SOURCE)]


def test_a_knock_is_kept_while_somebody_else_changes_the_firewall(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    backend.apply(PLAN)
    firewall = Firewall(lambda: backend)

    async def open_at_the_second_try() -> None:
        await firewall.start(PLAN, [DOOR])
        firewall.open(DOOR, SOURCE)
        backend.failure = BusyError("reading holes of nf_tables: changed meanwhile")
        await firewall._write_openings()
        backend.failure = None
        await firewall._write_openings()

    asyncio.run(open_at_the_second_try())
    assert [hole.key for hole in backend.holes()] == [("ssh", SOURCE)]
    assert caplog.messages == ["reading holes of nf_tables: changed meanwhile; trying again"]

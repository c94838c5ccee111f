"""Somebody sets the wall clock while holes are open.

No test sets the machine's clock, which is the kernel's too. A clock of our own runs an hour beside it while the hole is
opened; then it jumps to the kernel's time. From then on everything stands as it would after a jump: the rule's date is
an hour off, for the daemon and for the kernel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TypeVar

import pytest

from nfknock.backends import Backend
from nfknock.config.baseline import read_baseline
from nfknock.core.model import Door, Hole, Opening, Port
from nfknock.core.plan import Plan
from nfknock.daemon.firewall import Firewall
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, READER, Lab, make_backend, wait_until
from tests.setting import CHOSEN

HOUR = 3600.0
OPEN_TIMEOUT = 2.0
MOST_LATE = 5.0
# Long enough to be seen by a daemon that did not open it, on a machine that is busy.
SEEN_TIMEOUT = 8.0
DOOR = Door(
    name="ssh",
    sequence=(Port(7101), Port(8203, "udp")),
    opens=(Opening(Port(22)), Opening(Port(53, "udp"))),
    open_timeout=OPEN_TIMEOUT,
)
PLAN = Plan(
    baseline=read_baseline(None),
    allowed=(),
    knock_ports=DOOR.sequence,
    queue=5,
    reader=READER,
    opens=(Port(22), Port(53, "udp")),
)
SOURCES = {CLIENT4: BASTION4, CLIENT6: BASTION6}
_Result = TypeVar("_Result")


class Clock:
    """The wall clock, an hour or so off."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def __call__(self) -> float:
        return time.time() + self.ahead

    def jump(self) -> None:
        self.ahead = 0.0


@pytest.fixture
def host(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Be on the bastion with the test itself."""
    for name in ("XTABLES_LOCKFILE", "NFKNOCK_RUNTIME_DIR"):
        monkeypatch.setenv(name, lab.environment[name])
    with lab.bastion.here():
        yield lab


@asynccontextmanager
async def daemon(clock: Clock) -> AsyncIterator[Firewall]:
    """Run what the daemon runs, but for its packets."""
    firewall = Firewall(lambda: make_backend(clock), clock)
    await firewall.start(PLAN, [DOOR])
    running = asyncio.create_task(firewall.run())
    try:
        yield firewall
    finally:
        firewall.stop()
        await running


def backend(clock: Clock) -> Backend:
    made = make_backend(clock)
    made.probe()
    made.apply(PLAN)
    return made


def holes(clock: Clock, seconds: float = OPEN_TIMEOUT) -> list[Hole]:
    now = clock()
    return [
        Hole(door="ssh", source=ip_address(source), opens=DOOR.opens, opened_at=now, closes_at=now + seconds)
        for source in SOURCES
    ]


async def beside(function: Callable[[], _Result]) -> _Result:
    """Let the daemon run while we wait."""
    return await asyncio.to_thread(function)


def are_open(lab: Lab, *, within: float = 0.3) -> list[bool]:
    """Whether each source is answered; nobody listens behind the hole, so by a refusal."""

    def answers(bastion: str) -> bool:
        try:
            return lab.reaches(bastion, 22, within=within)
        except ConnectionRefusedError:
            return True

    return [answers(bastion) for bastion in SOURCES.values()]


def count_rules(lab: Lab) -> int:
    return lab.rules().count("nfknock hole ssh")


async def wait_for_rules(lab: Lab, count: int) -> None:
    await beside(lambda: wait_until(lambda: count_rules(lab) == count, f"{count} rules of holes"))


async def end_of(lab: Lab) -> float:
    """Wait until no hole has a rule any more, and nobody is answered; return when that was, on the monotonic clock."""
    await beside(lambda: wait_until(lambda: count_rules(lab) == 0, "every hole to be gone", within=3 * MOST_LATE))
    gone_at = time.monotonic()
    assert not any(await beside(lambda: are_open(lab)))
    return gone_at


def test_a_hole_that_the_daemon_opened_ends_in_time_though_the_clock_is_set_back(host: Lab) -> None:
    async def story() -> None:
        clock = Clock(HOUR)
        await beside(lambda: backend(clock))
        async with daemon(clock) as firewall:
            for source in SOURCES:
                firewall.open(DOOR, ip_address(source))
            opened_at = time.monotonic()
            await wait_for_rules(host, 4)
            clock.jump()
            assert all(await beside(lambda: are_open(host)))
            took = await end_of(host) - opened_at
            assert OPEN_TIMEOUT - 0.5 < took < OPEN_TIMEOUT + MOST_LATE

    asyncio.run(story())


@pytest.mark.parametrize("who", ["another daemon", "a hand"])
def test_a_hole_that_others_opened_ends_in_time_though_the_clock_is_set_back(host: Lab, who: str) -> None:
    async def story() -> None:
        clock = Clock(HOUR)
        others = await beside(lambda: backend(clock))
        if who == "another daemon":
            await beside(lambda: others.open(holes(clock, SEEN_TIMEOUT)))
        async with daemon(clock) as firewall:
            if who == "a hand":
                # libxtables is for one thread at a time.
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(firewall._thread, others.open, holes(clock, SEEN_TIMEOUT))
            opened_at = time.monotonic()
            # Whatever it does next, it has looked.
            await beside(lambda: wait_until(lambda: len(firewall._holes) == len(SOURCES), "the holes to be seen"))
            clock.jump()
            assert await end_of(host) - opened_at < SEEN_TIMEOUT + MOST_LATE

    asyncio.run(story())


def test_a_hole_that_was_open_before_clock_and_daemon_began_ends_in_time(host: Lab) -> None:
    """Set back while no daemon ran: nobody knows how much is left, but never more than it had in all."""

    async def story() -> None:
        clock = Clock(HOUR)
        await beside(lambda: backend(clock).open(holes(clock)))
        clock.jump()
        assert all(are_open(host))
        began_at = time.monotonic()
        async with daemon(clock):
            assert await end_of(host) - began_at < OPEN_TIMEOUT + MOST_LATE

    asyncio.run(story())


def test_a_knock_after_the_clock_was_set_back_renews_for_its_own_time(host: Lab) -> None:
    """Not for the hour that the rule's date is off, and not for what was left only."""

    async def story() -> None:
        clock = Clock(HOUR)
        await beside(lambda: backend(clock))
        async with daemon(clock) as firewall:
            firewall.open(DOOR, ip_address(CLIENT4))
            await wait_for_rules(host, 2)
            clock.jump()
            await asyncio.sleep(OPEN_TIMEOUT / 2)
            firewall.open(DOOR, ip_address(CLIENT4))
            renewed_at = time.monotonic()
            took = await end_of(host) - renewed_at
            assert OPEN_TIMEOUT - 0.5 < took < OPEN_TIMEOUT + MOST_LATE

    asyncio.run(story())


def test_a_knock_after_the_clock_was_set_back_opens_for_its_own_time(host: Lab) -> None:
    async def story() -> None:
        clock = Clock(HOUR)
        await beside(lambda: backend(clock))
        async with daemon(clock) as firewall:
            clock.jump()
            for source in SOURCES:
                firewall.open(DOOR, ip_address(source))
            opened_at = time.monotonic()
            await wait_for_rules(host, 4)
            assert all(await beside(lambda: are_open(host)))
            assert OPEN_TIMEOUT - 0.5 < await end_of(host) - opened_at < OPEN_TIMEOUT + MOST_LATE

    asyncio.run(story())


def test_a_clock_that_is_set_forward_shuts_early_and_the_next_knock_opens(host: Lab) -> None:
    async def story() -> None:
        clock = Clock(-HOUR)
        await beside(lambda: backend(clock))
        async with daemon(clock) as firewall:
            for source in SOURCES:
                firewall.open(DOOR, ip_address(source))
            await wait_for_rules(host, 4)
            clock.jump()
            jumped_at = time.monotonic()
            if CHOSEN.backend == "iptables":
                assert not any(await beside(lambda: are_open(host))), "the kernel goes by the date"
            assert await end_of(host) - jumped_at < MOST_LATE
            for source in SOURCES:
                firewall.open(DOOR, ip_address(source))
            await wait_for_rules(host, 4)
            assert all(await beside(lambda: are_open(host)))

    asyncio.run(story())


def test_a_hole_without_an_end_outlives_every_jump(host: Lab) -> None:
    async def story() -> None:
        for ahead in (HOUR, -HOUR):
            clock = Clock(ahead)
            for hole in holes(clock):
                endless = replace(hole, closes_at=None)
                await beside(lambda clock=clock, hole=endless: backend(clock).open([hole]))  # type: ignore[misc]
            async with daemon(clock):
                clock.jump()
                await asyncio.sleep(OPEN_TIMEOUT + 1)
                assert count_rules(host) == 4

    asyncio.run(story())

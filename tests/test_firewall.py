"""The daemon's hand on a firewall that is only a fake: what it says, and what it remembers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfknock.core.model import Door, Hole, Opening, Port
from nfknock.core.plan import Plan
from nfknock.daemon.firewall import Firewall
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
        await firewall.start(PLAN, [DOOR])
        firewall.open(replace(DOOR, open_timeout=60.0), SOURCE)
        await firewall._write_openings()
        backend.close([("ssh", SOURCE)])
        await firewall._look()

    with caplog.at_level(logging.INFO):
        asyncio.run(shut_early())
    assert "192.0.2.2: ssh: opened 22/tcp for 60 s" in caplog.messages
    assert not any("closed after" in line for line in caplog.messages)
    assert firewall.closed == 0

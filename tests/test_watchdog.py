"""A write to the firewall that hangs is seen from the loop, which goes on."""

from __future__ import annotations

import asyncio
import threading

from nfknock.core.model import Hole
from nfknock.core.plan import Plan
from nfknock.daemon.firewall import Firewall
from tests.fakes import FakeBackend

PLAN = Plan(baseline=(), allowed=(), knock_ports=(), queue=5)


class HangingBackend(FakeBackend):
    """Hangs when it sweeps, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.apply(PLAN)
        self.go_on = threading.Event()

    def sweep(self) -> list[Hole]:
        self.go_on.wait(30)
        return super().sweep()


async def turn(backend: HangingBackend) -> list[bool]:
    firewall = Firewall(lambda: backend)
    assert not firewall.has_stalled(0.3)
    await firewall.start(PLAN, ())
    running = asyncio.create_task(firewall.run())
    stalled = []
    for _ in range(100):
        await asyncio.sleep(0.05)
        stalled.append(firewall.has_stalled(0.3))
        if stalled[-1]:
            break
    backend.go_on.set()
    await asyncio.sleep(0.2)
    stalled.append(firewall.has_stalled(2.5))
    firewall.stop()
    await running
    return stalled


def test_a_write_that_hangs_is_a_stall_until_it_is_done() -> None:
    first, *_, while_it_hung, afterwards = asyncio.run(turn(HangingBackend()))
    assert (first, while_it_hung, afterwards) == (False, True, False)

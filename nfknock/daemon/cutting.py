"""Whose sessions end when a door is shut early, and what stays cut for good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from nfknock.backends import tracking
from nfknock.core.model import Door, Hole, Opening
from nfknock.core.plan import Plan
from nfknock.daemon import logs
from nfknock.errors import NfknockError


class Cutting:
    """The doors whose sessions are cut, and what was cut with its door."""

    def __init__(self) -> None:
        self._doors: frozenset[str] = frozenset()
        self._for_good: set[Opening] = set()
        """What had sessions that were cut with their door: a service that goes on sending must not revive them."""

    def add(self, doors: Iterable[Door]) -> None:
        """Cut at these doors as well, where they wish it."""
        self._doors |= _cutting(doors)

    def replace(self, doors: Iterable[Door]) -> None:
        """Cut at these doors alone, where they wish it."""
        self._doors = _cutting(doors)

    def lose(self, holes: Iterable[Hole], doors: Iterable[Door]) -> list[Hole]:
        """Note the holes that no door has any more; return those whose sessions are to be cut.

        A door that is gone is shut early, as it was wished when it was there.
        """
        either = self._doors | _cutting(doors)
        lost = [hole for hole in holes if hole.door in either]
        self._for_good.update(opening for hole in lost for opening in hole.opens)
        return lost

    def kept_up(self, plan: Plan) -> Plan:
        """Return a plan with what stays cut, whatever doors it is of."""
        return replace(plan, cut=(*plan.cut, *sorted(self._for_good.difference(plan.cut), key=str)))

    async def end_sessions(self, closed: Iterable[Hole], call: Callable[[Callable[[], int]], Awaitable[int]]) -> None:
        """End what came through these holes, where that is wished; `call` runs the kernel's part of it."""
        meant = [hole for hole in closed if hole.door in self._doors]
        if not meant:
            return
        try:
            count = await call(lambda: tracking.cut_sessions(meant))
        except NfknockError as exc:
            logs.log.error("cutting sessions: %s", exc)
            return
        sources = ", ".join(sorted({str(hole.source) for hole in meant}))
        logs.log.info("%s: %d %s cut", sources, count, "session was" if count == 1 else "sessions were")


def _cutting(doors: Iterable[Door]) -> frozenset[str]:
    return frozenset(door.name for door in doors if door.cut_sessions)

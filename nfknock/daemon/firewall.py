"""The daemon's hand on the firewall: one thread that owns the backend, and the holes' ends.

The loop never waits for a write. What is asked for meanwhile is collected and written together. Holes end in the
kernel by themselves; here their rules are swept, and what is swept is read from the kernel, never from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nfknock.backends import Backend
from nfknock.backends.forwarding import guarded
from nfknock.core.model import Door, Hole, IPAddress
from nfknock.core.plan import Plan
from nfknock.daemon import control, logs
from nfknock.daemon.cutting import Cutting
from nfknock.daemon.ends import Ends, Key
from nfknock.errors import BackendError, BusyError, DaemonError

# Legacy tables send no event when somebody changes them, and within five seconds they are to be as they were.
_LOOK_EVERY = 2.0
# A knock that could not be carried out for so long is no longer what somebody is waiting for.
_PATIENCE = 30.0
# A closing is tried until it is done.
_RETRY_AFTER = 1.0
_NOT_IN_PLACE = "the firewall is not in place; run `nfknock apply` first"

_Result = TypeVar("_Result")


class Firewall:
    """Opens and closes holes in the background, sweeps those whose time is over, and repairs what others damage."""

    def __init__(
        self, make_backend: Callable[[], Backend], clock: Callable[[], float] = time.time, *, repair: bool = True
    ) -> None:
        self.repair = repair
        self.opened = 0
        self.closed = 0
        self._make_backend = make_backend
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firewall")
        self._backend: Backend
        self._opening: dict[Key, tuple[Door, float]] = {}
        self._closing: set[Key] = set()
        self._cutting = Cutting()
        self._plan: Plan
        self._is_plan_due = False
        self._applying = asyncio.Lock()
        self._holes: dict[Key, Hole] = {}
        """As they stood when they were last looked at: what is put back when somebody flushes them."""
        self._ends = Ends()
        self._looked_at = 0.0
        self._damage: tuple[str, ...] = ()
        self._wake = asyncio.Event()
        self._look_at = time.monotonic()
        self._is_stopping = False
        self._turned_at = math.inf
        """When `run` last came round, on the clock of time.monotonic."""

    async def start(self, plan: Plan, doors: Iterable[Door]) -> None:
        """Look whether the firewall is in place and bring it up to date. Raises BackendError, DaemonError."""
        self._backend = await self._call(self._make_backend)
        for warning in await self._call(self._backend.probe):
            logs.log.warning(warning)
        if not (await self._call(self._backend.state)).applied:
            # What was never put in place, or was taken out while no daemon ran, is not ours to put back.
            raise DaemonError(_NOT_IN_PLACE)
        looked_at = self._clock()
        self._remember(await self.apply(plan, doors), looked_at)
        self._ends.see(self._holes.values(), self._clock())
        if self._holes:
            logs.log.info("adopted %d open %s", len(self._holes), "hole" if len(self._holes) == 1 else "holes")

    async def apply(self, plan: Plan, doors: Iterable[Door]) -> list[Hole]:
        """Bring the firewall to another plan, and shut what none of these doors opens; return what is left.

        Raises BackendError, or DaemonError if it is not in place at all: whoever took it out meant it, and it is put
        back by `nfknock apply`, not by a daemon that reads its file anew.
        """
        doors = tuple(doors)
        opens = {door.name: frozenset(door.opens) for door in doors}
        async with self._applying:
            due, self._is_plan_due = self._is_plan_due, False
            try:
                await self._check_place()
                # First, so that the log says what is shut: with the last door that forwards, the chain of such holes
                # goes.
                strange, left = await self._call(lambda: self._backend.clear_out(opens))
                for each in strange:
                    logs.log.warning("%s", each)
                lost = self._cutting.lose([each.hole for each in strange if each.hole], doors)
                changed = await self._apply(self._cutting.kept_up(plan))
            except BaseException:
                self._is_plan_due = due
                raise
        if changed:
            logs.log.info("the firewall was brought up to the configuration")
        self._cutting.add(doors)
        await self._cut(lost)
        self._cutting.replace(doors)
        return left

    async def exchange(self, make_backend: Callable[[], Backend]) -> None:
        """Write by another backend from now on. Raises BackendError, or DaemonError if it is not in place."""
        async with self._applying:
            backend = await self._call(make_backend)
            damage = (await self._call(backend.state)).damage
            if damage:
                raise DaemonError(f"{'; '.join(damage)}; run `nfknock apply`")
            self._backend = backend

    def watch(self, plan: Plan) -> None:
        """Bring the firewall to another plan, as soon as it can be written."""
        self._plan, self._is_plan_due = self._cutting.kept_up(plan), True
        self._wake.set()

    def open(self, door: Door, source: IPAddress) -> None:
        """Let a source in at a door, as soon as it can be written."""
        self._closing.discard((door.name, source))
        self._opening[door.name, source] = (door, self._clock())
        self._wake.set()

    def close(self, door: str, source: IPAddress) -> None:
        """Shut a door for a source, as soon as it can be written."""
        self._opening.pop((door, source), None)
        self._closing.add((door, source))
        self._wake.set()

    async def run(self) -> None:
        """Write what is asked for and sweep, until `stop`; then write what is left, once."""
        while not self._is_stopping:
            self._turned_at = time.monotonic()
            await self._pause()
            await self._write_openings()
            await self._write_closings()
            await self._write_plan()
            if time.monotonic() >= self._look_at:
                await self._look()
        await self._write_openings()
        await self._write_closings()
        self._thread.shutdown()
        for door, source in self._closing:
            logs.log.error("%s: %s: still open; run: nfknock close %s %s", source, door, door, source)

    def stop(self) -> None:
        """Let `run` end."""
        self._is_stopping = True
        self._wake.set()

    def has_stalled(self, timeout: float) -> bool:
        """Whether a write has hung for so many seconds; while another program has the lock, `run` still comes round."""
        return not self._is_stopping and time.monotonic() - self._turned_at > timeout

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._look_at):
                await self._wake.wait()
        self._wake.clear()

    async def _write_openings(self) -> None:
        wanted, self._opening = self._opening, {}
        if wanted:
            await self._write_together(wanted)

    async def _write_together(self, wanted: dict[Key, tuple[Door, float]]) -> None:
        now = self._clock()
        holes = [_hole(door, source, now) for (_name, source), (door, _asked_at) in wanted.items()]
        try:
            standing = await self._open(holes)
        except BusyError as exc:
            # What was shut again meanwhile stays shut.
            waiting = {
                key: asked for key, asked in wanted.items() if key not in self._closing and now - asked[1] < _PATIENCE
            }
            self._opening = {**waiting, **self._opening}
            self._try_again(str(exc))
        except BackendError as exc:
            if len(holes) == 1:
                logs.log.error("%s: %s: not opened: %s", holes[0].source, holes[0].door, exc)
                return
            # A backend writes all or none, and one that cannot be written is no reason to keep the others shut.
            for key, asked in wanted.items():
                self._turned_at = time.monotonic()
                await self._write_together({key: asked})
        else:
            self._holes.update({hole.key: hole for hole in standing})
            written_at = self._clock()
            for hole in standing:
                self._ends.renew(hole, written_at, wanted[hole.key][0].open_timeout)
                # Not before, nor later, as what was opened before the clock was set back: that one is renewed.
                is_new = now <= hole.opened_at <= written_at
                logs.log.info(logs.opened(hole, hole.opened_at if is_new else now, is_new=is_new))
                self.opened += is_new
            self._look_again(standing)

    async def _write_closings(self) -> None:
        wanted, self._closing = self._closing, set()
        if not wanted:
            return
        try:
            closed = await self._call(lambda: self._backend.close(wanted))
            self._note_closed(closed)
            for key in wanted:
                # Flushed before it could be shut, it is not to be put back either.
                self._holes.pop(key, None)
            await self._cut(closed)
        except BackendError as exc:
            # What was opened again meanwhile stays open.
            self._closing |= wanted - self._opening.keys()
            self._try_again(str(exc))

    async def _open(self, holes: list[Hole]) -> list[Hole]:
        """Write holes; where the firewall was damaged, put it back first."""
        try:
            return await self._call(lambda: self._backend.open(holes))
        except BusyError:
            raise
        except BackendError:
            if not await self._repair():
                raise
            return await self._call(lambda: self._backend.open(holes))

    async def _check_place(self) -> None:
        state = await self._call(self._backend.state)
        if state.by:
            # Moving is for `nfknock apply`, which looks before whether it would lock anybody out.
            raise DaemonError(f"the firewall is in place by the backend {state.by}; run `nfknock apply`")
        if not state.applied and not self._may_repair():
            raise DaemonError(_NOT_IN_PLACE)

    async def _apply(self, plan: Plan) -> bool:
        await self._check_place()
        changed = (await self._call(lambda: self._backend.apply(plan))).changed
        self._plan = plan
        return changed

    async def _write_plan(self) -> None:
        async with self._applying:
            if not self._is_plan_due:
                return
            self._is_plan_due = False
            try:
                await self._apply(self._plan)
            except BusyError as exc:
                self._is_plan_due = True
                self._try_again(str(exc))
            except (BackendError, DaemonError) as exc:
                logs.log.error("watching other knock ports: %s", exc)

    async def _cut(self, closed: Iterable[Hole]) -> None:
        await self._cutting.end_sessions(closed, self._call)

    async def _look(self) -> None:
        """Repair what was damaged, take away holes whose time is over and find out when to look again."""
        self._look_at = time.monotonic() + _LOOK_EVERY
        # Each by itself: what cannot be repaired, or read, is no reason to leave open what is over.
        failures = set()
        for step in (self._repair, self._sweep, self._close_over):
            try:
                await step()
            except BackendError as exc:
                failures.add(str(exc))
        for each in sorted(failures):
            logs.log.warning("looking after the firewall: %s", each)

    async def _sweep(self) -> None:
        looked_at = self._clock()
        holes = await self._call(self._backend.holes)
        # Reading thousands takes a while, in which no knock is written: once, where nothing is over.
        if any(hole.is_expired(self._clock()) for hole in holes):
            self._note_closed(await self._call(self._backend.sweep))
            holes = await self._call(self._backend.holes)
        gone = self._gone(holes)
        # What is missing may have gone with the rules, since they were looked at or because they could not be.
        if not self._damage and not all(self._has_ended(hole) for hole in gone) and await self._repair():
            holes = await self._call(self._backend.holes)
            gone = self._gone(holes)
        if not self._damage:
            self._note_closed([hole for hole in gone if self._has_ended(hole)], is_over=True)
            self._remember(holes, looked_at)
        self._ends.see(holes, self._clock())
        over = self._ends.over()
        self._look_again(hole for hole in holes if hole.key not in over)

    async def _close_over(self) -> None:
        # The clock was set back: for it they are not over yet.
        if over := self._ends.over():
            self._note_closed(await self._call(lambda: self._backend.close(over)), is_over=True)

    def _has_ended(self, gone: Hole) -> bool:
        """Whether the kernel took it away by itself, as it does with what is in a set, and not somebody before."""
        # Who shut it before its time has said so.
        return gone.is_expired(self._clock()) or self._ends.has_come(gone.key)

    def _gone(self, standing: Iterable[Hole]) -> list[Hole]:
        there = {hole.key for hole in standing}
        return [hole for key, hole in self._holes.items() if key not in there]

    async def _repair(self) -> bool:
        """Put back what somebody damaged, if that is wished; True if something was. Raises BackendError."""
        plan = self._plan
        known, damage = self._damage, (await self._call(lambda: self._backend.state(plan))).damage
        if not self._may_repair():
            self._leave(damage)
            return False
        # Where it fails, the rules may be back, and without their holes: those stay owed.
        self._damage = damage or known
        if not self._damage:
            return False
        # If somebody shut holes that we have not seen shut: better one knock more than a hole too many.
        holes = [] if control.closed_at() > self._looked_at else list(self._holes.values())
        put_back = self._backend.repair if damage else self._open_missing
        back = await self._call(lambda: put_back(plan, holes))
        what, self._damage = "; ".join(self._damage), ()
        if damage or back:
            count = f"{len(back)} {'hole' if len(back) == 1 else 'holes'}"
            logs.log.error("the firewall was changed by somebody else: %s; put back, with %s", what, count)
        return bool(damage or back)

    def _leave(self, damage: tuple[str, ...]) -> None:
        """Say once what stays damaged; what was open in it is nothing to put back."""
        if damage:
            self._holes.clear()
            if damage != self._damage:
                mend = "`nfknock apply` puts it back"
                what = "; ".join(damage)
                logs.log.error("the firewall was changed by somebody else, and stays so: %s; %s", what, mend)
        self._damage = damage

    def _open_missing(self, plan: Plan, holes: list[Hole]) -> list[Hole]:
        """Open what is not; the rules, which somebody may have put in place for another plan, are left alone."""
        standing, now = {hole.key for hole in self._backend.holes()}, self._clock()
        missing = (hole for hole in holes if hole.key not in standing and not hole.is_expired(now))
        return self._backend.open(guarded(missing, plan))

    def _may_repair(self) -> bool:
        # Whoever took it out with `nfknock remove` meant it.
        return self.repair and not control.is_removed()

    def _remember(self, holes: Iterable[Hole], looked_at: float) -> None:
        """Take these for what is open. What somebody shuts while they are read may be among them, or not."""
        self._looked_at = looked_at
        self._holes = {hole.key: hole for hole in holes}

    def _look_again(self, holes: Iterable[Hole]) -> None:
        """Be there when the first of these ends. Pauses are counted on a clock that nobody sets."""
        now = self._clock()
        ends = [hole.closes_at - now for hole in holes if hole.closes_at is not None]
        self._look_at = min(self._look_at, time.monotonic() + max(0.0, min(ends, default=_LOOK_EVERY)))
        if (end := self._ends.next()) is not None:
            self._look_at = min(self._look_at, end)

    def _note_closed(self, closed: Collection[Hole], *, is_over: bool = False) -> None:
        now = math.inf if is_over else self._clock()
        for hole in closed:
            self._holes.pop(hole.key, None)
            logs.log.info(logs.closed(hole, now if hole.closes_at is None else min(now, hole.closes_at)))
        self.closed += len(closed)

    def _try_again(self, why: str) -> None:
        logs.log.warning("%s%s", why, "" if self._is_stopping else "; trying again")
        self._look_at = min(self._look_at, time.monotonic() + _RETRY_AFTER)

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _hole(door: Door, source: IPAddress, now: float) -> Hole:
    closes_at = now + door.open_timeout if door.open_timeout else None
    return Hole(door=door.name, source=source, opens=door.opens_for(source), opened_at=now, closes_at=closes_at)

"""Runs what doors run, beside everything else: no command ever holds up a packet, a hole or another door.

A door with a stop command is *on* for a source from the knock until that command has ended. While it is on, another
knock puts the stop command off and starts nothing; so there is one stop for one start, whatever happens in between.
One task sees to each visit, from its note in the journal to the end of its stop command, so that nothing overtakes.

When the daemon is told to end, what would end by time is stopped at once: nobody else would do it. When it is killed,
the journal tells the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace

from nfknock.core.model import Door, IPAddress
from nfknock.daemon import logs
from nfknock.daemon.journal import Journal, Note
from nfknock.daemon.process import Call, Process
from nfknock.daemon.threads import NoRoomError, in_thread

# For each door, so that one whose commands hang takes no turn from another; and for all of them.
_AT_ONCE = 4
_AT_ONCE_IN_ALL = 64
_MOST_WAITING = 256
_RETRY_AFTER = 1.0
# When the daemon is told to end: for start commands that run, and then for the stop commands.
_LAST_START_TIMEOUT = 5.0
_LAST_STOP_TIMEOUT = 20.0

Key = tuple[str, IPAddress]


@dataclass(slots=True, kw_only=True, eq=False)
class _Visit:
    """A door that is on for a source, or is just going on or off."""

    note: Note
    starting: Call | None
    """The start command; None if an earlier daemon ran it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None
    process: Process | None = None
    """The start command, while it runs."""
    is_over: bool = False
    """Whether the stop command is due."""

    @property
    def key(self) -> Key:
        return (self.note.call.door, self.note.call.source)

    def end(self) -> None:
        """Have the stop command run as soon as it can."""
        self.is_over = True
        self.changed.set()
        if self.timer is not None:
            self.timer.cancel()


@dataclass(slots=True)
class _Lane:
    """The commands of one kind at one door."""

    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    waiting: int = 0


class CommandRunner:
    """Starts and stops what doors run."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._journal = Journal()
        self._visits: dict[Key, _Visit] = {}
        """Those that a knock renews; one that is over is in `_tasks` alone."""
        self._last: dict[Key, asyncio.Task[None]] = {}
        self._tasks: dict[asyncio.Task[None], _Visit | None] = {}
        self._starting: dict[str, _Lane] = defaultdict(_Lane)
        self._stopping: dict[str, _Lane] = defaultdict(_Lane)
        self._starts_in_all = asyncio.Semaphore(_AT_ONCE_IN_ALL)
        self._running = 0
        self._is_ending = False

    @property
    def running(self) -> int:
        """How many commands run now."""
        return self._running

    @property
    def stops_waiting(self) -> int:
        """How many stop commands are still to be run."""
        return sum(visit is not None for visit in self._tasks.values())

    async def prepare(self, doors: Iterable[Door]) -> None:
        """Look whether stop commands can be noted, where there are some. Raises DaemonError."""
        if any(door.commands and (door.commands.stop or door.commands.stop6) for door in doors):
            await in_thread(self._journal.prepare)

    def adopt(self, doors: Mapping[str, Door]) -> None:
        """Take up what an earlier daemon left."""
        for note in self._journal.take_up():
            visit = _Visit(note=note, starting=None)
            self._begin(visit)
            self._set_timer(visit, note.remaining(self._clock()))
        if self._visits:
            count = len(self._visits)
            logs.log.info("adopted %d stop %s", count, "command" if count == 1 else "commands")
        self.reconsider(doors)

    def reconsider(self, doors: Mapping[str, Door]) -> None:
        """Stop what only a closing sequence would stop, where no door has that any more."""
        for key, visit in tuple(self._visits.items()):
            door = doors.get(key[0])
            if visit.note.stop_at is None and not (door and door.close_sequence):
                logs.log.warning("%s: %s: nothing can stop this any more, so it is stopped now", key[1], key[0])
                self._end(visit)

    def opened(self, door: Door, source: IPAddress) -> None:
        """Run what a door runs for a source that knocked."""
        if door.commands is None:
            return
        arguments, run_timeout = door.commands.start_for(source), door.commands.run_timeout
        call = Call(door=door.name, source=source, arguments=arguments, run_timeout=run_timeout)
        stop, timeout = door.commands.stop_for(source), door.commands.cmd_timeout
        if not stop:
            self._spawn(self._start(call))
        elif visit := self._visits.get((door.name, source)):
            # What stops it is what belongs to what started it, whatever the configuration says by now.
            visit.note = replace(visit.note, stop_at=self._stop_at(timeout), cmd_timeout=timeout)
            visit.changed.set()
            logs.log.info(logs.put_off(door.name, source, timeout))
            self._set_timer(visit, timeout)
        else:
            note = Note(
                call=replace(call, arguments=stop),
                stop_at=self._stop_at(timeout),
                cmd_timeout=timeout,
                name=self._journal.fresh_name(),
            )
            self._begin(_Visit(note=note, starting=call))

    def closed(self, door: str, source: IPAddress) -> None:
        """Run the stop command now, if the door is on for that source."""
        if visit := self._visits.get((door, source)):
            self._end(visit)

    async def stop(self) -> None:
        """Stop everything that would end by time, and come to an end within seconds."""
        self._is_ending = True
        for visit in tuple(self._visits.values()):
            # As a hole without an end stays, a door without an end stays noted.
            if visit.note.stop_at is not None:
                logs.log.info("%s: %s: stop command is run early, as the daemon ends", visit.key[1], visit.key[0])
                self._end(visit)
        due = {task: visit for task, visit in self._tasks.items() if visit and visit.is_over}
        if due:
            await asyncio.wait(due, timeout=_LAST_START_TIMEOUT)
        for visit in due.values():
            if visit.process is not None:
                visit.process.end()
        if left := [task for task in due if not task.done()]:
            await asyncio.wait(left, timeout=_LAST_STOP_TIMEOUT)
        if count := sum(not task.done() for task in due):
            logs.log.error("%d stop %s left to the next daemon", count, "command is" if count == 1 else "commands are")
        for task in self._tasks:
            task.cancel()

    def _stop_at(self, cmd_timeout: float | None) -> float | None:
        return None if cmd_timeout is None else self._clock() + cmd_timeout

    def _begin(self, visit: _Visit) -> None:
        self._visits[visit.key] = visit
        earlier = self._last.get(visit.key)
        self._last[visit.key] = task = self._spawn(self._live(visit, earlier), visit)
        task.add_done_callback(lambda _: self._forget(visit, task))

    def _forget(self, visit: _Visit, task: asyncio.Task[None]) -> None:
        if self._visits.get(visit.key) is visit:
            del self._visits[visit.key]
        if self._last.get(visit.key) is task:
            del self._last[visit.key]

    def _end(self, visit: _Visit) -> None:
        """Let a visit go off; whoever knocks from now on begins another."""
        visit.end()
        if self._visits.get(visit.key) is visit:
            del self._visits[visit.key]

    async def _live(self, visit: _Visit, earlier: asyncio.Task[None] | None) -> None:
        """See a door from on to off for a source; the earlier visit of that source comes first."""
        if earlier is not None:
            await asyncio.wait([earlier])
        if visit.starting is None:
            await self._until_due(visit)
        elif not await self._is_noted(visit):
            return
        else:
            self._set_timer(visit, visit.note.cmd_timeout)
            began, _ = await asyncio.gather(self._start(visit.starting, visit), self._until_due(visit))
            if not began:
                await self._strike_out(visit)
                return
        await self._stop(visit)

    async def _is_noted(self, visit: _Visit) -> bool:
        """Note the stop command; False, and a log line, where that cannot be done."""
        try:
            await in_thread(lambda: self._journal.write(visit.note))
        except (OSError, NoRoomError) as exc:
            self._end(visit)
            with contextlib.suppress(OSError, NoRoomError):
                await in_thread(lambda: self._journal.remove(visit.note.name))
            reason = (getattr(exc, "strerror", None) or str(exc)).lower()
            start = f"{visit.key[1]}: {visit.key[0]}"
            logs.log.error("%s: command not run: its stop command cannot be noted: %s", start, reason)
            return False
        return True

    async def _until_due(self, visit: _Visit) -> None:
        """Keep the note as the visit is, until the stop command is due."""
        while not visit.is_over:
            await visit.changed.wait()
            visit.changed.clear()
            if not visit.is_over:
                try:
                    await in_thread(lambda: self._journal.write(visit.note))
                except (OSError, NoRoomError) as exc:
                    # The earlier note stands: the worst is a stop that comes early, after the daemon was killed.
                    logs.log.warning("%s: %s: noting that: %s", visit.key[1], visit.key[0], exc)

    async def _start(self, call: Call, visit: _Visit | None = None) -> bool:
        """Run a start command when it is its turn; False if it did not come to that, and then the visit is over."""
        if not call.arguments:
            return True
        try:
            await self._start_in_turn(call, visit)
        except NoRoomError as exc:
            logs.log.error("%s: %s: command not run: %s", call.source, call.door, exc)
            if visit is not None:
                self._end(visit)
            return False
        return True

    async def _start_in_turn(self, call: Call, visit: _Visit | None) -> None:
        lane = self._starting[call.door]
        if lane.waiting >= _MOST_WAITING:
            raise NoRoomError(f"{lane.waiting} wait already")
        lane.waiting += 1
        try:
            await lane.turn.acquire()
        finally:
            lane.waiting -= 1
        try:
            async with self._starts_in_all:
                if self._is_ending:
                    raise NoRoomError("the daemon ends")
                await self._run(call, visit)
        finally:
            lane.turn.release()

    def _set_timer(self, visit: _Visit, seconds: float | None) -> None:
        if visit.timer is not None:
            visit.timer.cancel()
        visit.timer = None
        if seconds is not None and not visit.is_over:
            visit.timer = asyncio.get_running_loop().call_later(seconds, self._run_out, visit)

    def _run_out(self, visit: _Visit) -> None:
        logs.log.info(logs.timed_out(*visit.key))
        self._end(visit)

    async def _stop(self, visit: _Visit) -> None:
        """Run the stop command to its end, however long there is no room for it."""
        call = visit.note.call
        async with self._stopping[call.door].turn:
            while True:
                try:
                    await self._run(call, is_stop=True)
                except NoRoomError as exc:
                    logs.log.error("%s: command not run: %s; trying again", call.door, exc)
                    await asyncio.sleep(_RETRY_AFTER)
                else:
                    break
        await self._strike_out(visit)

    async def _strike_out(self, visit: _Visit) -> None:
        try:
            await in_thread(lambda: self._journal.remove(visit.note.name))
        except (OSError, NoRoomError) as exc:
            what = "the note of a stop command that has been run cannot be removed, so it will be run again"
            logs.log.error("%s: %s: %s: %s", visit.key[1], visit.key[0], what, exc)

    async def _run(self, call: Call, visit: _Visit | None = None, *, is_stop: bool = False) -> None:
        """Run a command to its end; a start command is its visit's process meanwhile. Raises NoRoomError."""

        def run() -> None:
            try:
                process = Process(call, outlives_us=is_stop)
            except (OSError, ValueError) as exc:
                reason = getattr(exc, "strerror", None) or str(exc)
                logs.log.error("%s: command cannot be run: %s: %s", call.door, call.arguments[0], reason.lower())
                return
            if visit is not None:
                visit.process = process
            process.wait()

        self._running += 1
        try:
            await in_thread(run)
        finally:
            self._running -= 1
            if visit is not None:
                visit.process = None

    def _spawn(self, work: Coroutine[object, object, object], visit: _Visit | None = None) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except Exception as exc:  # noqa: BLE001  (one command that fails in a new way must not end the daemon)
                logs.log.error("running a command: %s: %s", type(exc).__name__, exc)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks[task] = visit
        task.add_done_callback(self._tasks.pop)
        return task

"""Runs what doors run, beside everything else: no command ever holds up a packet, a hole or another door.

A door with a stop command is *on* for a source from the knock until that command was started. While it is on, another
knock puts the stop command off and starts nothing; so there is one stop for one start, whatever happens in between.
When the daemon is told to end, what would end by time is stopped at once: nobody else would do it. When it is killed,
the journal tells the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
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
# What runs when the daemon is told to end has so long; then a start command is ended and a stop command left alone.
_LAST_TIMEOUT = 5.0

Key = tuple[str, IPAddress]


@dataclass(slots=True, kw_only=True)
class _Visit:
    """A door that is on for a source."""

    note: Note
    timer: asyncio.TimerHandle | None = None
    beginning: asyncio.Task[None] | None = None
    process: Process | None = None
    """The start command, while it runs."""
    is_over: bool = False


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
        self._endings: dict[Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
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
        return len(self._visits)

    def prepare(self, doors: tuple[Door, ...]) -> None:
        """Look whether stop commands can be noted, where there are some. Raises DaemonError."""
        if any(door.commands and (door.commands.stop or door.commands.stop6) for door in doors):
            self._journal.prepare()

    def adopt(self) -> None:
        """Take up what an earlier daemon left."""
        for note in self._journal.take_up():
            visit = _Visit(note=note)
            self._visits[note.call.door, note.call.source] = visit
            self._set_timer(visit, note.remaining(self._clock()))
        if self._visits:
            count = len(self._visits)
            logs.log.info("adopted %d stop %s", count, "command" if count == 1 else "commands")

    def opened(self, door: Door, source: IPAddress) -> None:
        """Run what a door runs for a source that knocked."""
        if door.commands is None:
            return
        key, arguments = (door.name, source), door.commands.start_for(source)
        call = Call(door=door.name, source=source, arguments=arguments, run_timeout=door.commands.run_timeout)
        if not door.commands.stop_for(source):
            self._spawn(self._start(call))
            return
        note = self._note(door, source)
        if visit := self._visits.get(key):
            self._spawn(self._renew(visit, note))
            return
        visit = self._visits[key] = _Visit(note=note)
        visit.beginning = self._spawn(self._begin(visit, call, self._endings.get(key)))

    def closed(self, door: str, source: IPAddress) -> None:
        """Run the stop command now, if the door is on for that source."""
        if visit := self._visits.get((door, source)):
            self._end(visit)

    async def stop(self) -> None:
        """Stop everything that is on, and come to an end within seconds."""
        self._is_ending = True
        await self._wait({visit.beginning for visit in self._visits.values() if visit.beginning})
        for visit in tuple(self._visits.values()):
            if visit.note.stop_at is None:
                continue  # as a hole without an end stays, this stays noted
            if visit.process is not None:
                visit.process.end()
            call = visit.note.call
            logs.log.info("%s: %s: stop command is run early, as the daemon ends", call.source, call.door)
            self._end(visit)
        await self._wait(self._tasks)
        for task in self._tasks:
            task.cancel()

    def _note(self, door: Door, source: IPAddress) -> Note:
        assert door.commands is not None
        commands = door.commands
        call = Call(
            door=door.name, source=source, arguments=commands.stop_for(source), run_timeout=commands.run_timeout
        )
        stop_at = None if commands.cmd_timeout is None else self._clock() + commands.cmd_timeout
        return Note(call=call, stop_at=stop_at, cmd_timeout=commands.cmd_timeout, name=self._journal.fresh_name())

    async def _begin(self, visit: _Visit, call: Call, earlier: asyncio.Task[None] | None) -> None:
        """Note the stop command, then run the start command; the stop of an earlier visit comes first."""
        if earlier is not None:
            await asyncio.wait([earlier])
        note = visit.note
        try:
            await in_thread(lambda: self._journal.write(note))
        except OSError as exc:
            self._forget(visit)
            reason = (exc.strerror or str(exc)).lower()
            logs.log.error(
                "%s: %s: command not run: its stop command cannot be noted: %s", call.source, call.door, reason
            )
            return
        self._set_timer(visit, note.cmd_timeout)
        if not await self._start(call, visit):
            self._forget(visit)
            self._journal.remove(note.name)

    async def _renew(self, visit: _Visit, note: Note) -> None:
        visit.note = note = replace(note, name=visit.note.name)
        self._set_timer(visit, note.cmd_timeout)
        call = note.call
        logs.log.info(logs.put_off(call.door, call.source, note.cmd_timeout))
        try:
            await in_thread(lambda: self._journal.write(note))
        except OSError as exc:
            # The earlier note stands: the worst is a stop that comes early, after the daemon was killed.
            logs.log.warning("%s: %s: noting that: %s", call.source, call.door, (exc.strerror or str(exc)).lower())

    async def _start(self, call: Call, visit: _Visit | None = None) -> bool:
        """Run a start command when it is its turn; False if it did not come to that."""
        if not call.arguments:
            return True
        lane = self._starting[call.door]
        if lane.waiting >= _MOST_WAITING:
            logs.log.error("%s: %s: command not run: %d wait already", call.source, call.door, lane.waiting)
            return False
        lane.waiting += 1
        async with lane.turn, self._starts_in_all:
            lane.waiting -= 1
            if self._is_ending:
                return False
            with contextlib.suppress(NoRoomError):
                await self._run(call, visit)
                return True
        logs.log.error("%s: %s: command not run: the system has no room for it", call.source, call.door)
        return False

    def _set_timer(self, visit: _Visit, seconds: float | None) -> None:
        if visit.timer is not None:
            visit.timer.cancel()
        visit.timer = None
        if seconds is not None and not visit.is_over:
            visit.timer = asyncio.get_running_loop().call_later(seconds, self._run_out, visit)

    def _run_out(self, visit: _Visit) -> None:
        logs.log.info(logs.timed_out(visit.note.call.door, visit.note.call.source))
        self._end(visit)

    def _end(self, visit: _Visit) -> None:
        key = (visit.note.call.door, visit.note.call.source)
        self._forget(visit)
        self._endings[key] = task = self._spawn(self._stop(visit))
        task.add_done_callback(lambda _: self._endings.pop(key) if self._endings.get(key) is task else None)

    async def _stop(self, visit: _Visit) -> None:
        """Run the stop command, once the start command has ended, until it has been started."""
        if visit.beginning is not None:
            await asyncio.wait([visit.beginning])
        call = visit.note.call
        async with self._stopping[call.door].turn:
            while True:
                try:
                    await self._run(call, when_started=lambda: self._journal.remove(visit.note.name))
                except NoRoomError as exc:
                    logs.log.error("%s: command not run: %s; trying again", call.door, exc)
                    await asyncio.sleep(_RETRY_AFTER)
                else:
                    return

    async def _run(
        self, call: Call, visit: _Visit | None = None, *, when_started: Callable[[], None] = lambda: None
    ) -> None:
        """Run a command to its end; a start command is its visit's process meanwhile. Raises NoRoomError."""

        def run() -> None:
            try:
                process = Process(call)
            except (OSError, ValueError) as exc:
                reason = getattr(exc, "strerror", None) or str(exc)
                logs.log.error("%s: command cannot be run: %s: %s", call.door, call.arguments[0], reason.lower())
                when_started()
                return
            when_started()
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

    def _forget(self, visit: _Visit) -> None:
        visit.is_over = True
        if visit.timer is not None:
            visit.timer.cancel()
        key = (visit.note.call.door, visit.note.call.source)
        if self._visits.get(key) is visit:
            del self._visits[key]

    def _spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except Exception as exc:  # noqa: BLE001  (one command that fails in a new way must not end the daemon)
                logs.log.error("running a command: %s: %s", type(exc).__name__, exc)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    async def _wait(tasks: Iterable[asyncio.Task[None]]) -> None:
        if tasks := set(tasks):
            await asyncio.wait(tasks, timeout=_LAST_TIMEOUT)

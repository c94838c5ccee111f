"""The loop: packets in, commands out, timers in between."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_never

from nfknock.backends import make_backend
from nfknock.config import Config, read
from nfknock.core.decisions import CloseDoor, Command, OpenDoor, SequenceTimeout, SourceIgnored, StageReached
from nfknock.core.lint import FEW_LEFT
from nfknock.core.model import Door, IPAddress
from nfknock.core.onetime import Line
from nfknock.core.plan import Plan, ReaderKind, knock_ports
from nfknock.core.tracker import Tracker
from nfknock.daemon import control, logs, supervisor
from nfknock.daemon.commands import CommandRunner
from nfknock.daemon.counting import load_counting, load_or_last
from nfknock.daemon.firewall import Firewall
from nfknock.daemon.intake import Intake, since_boot
from nfknock.daemon.outlets import ON_STDERR, Outlets, written_aside
from nfknock.daemon.reloads import Reloads
from nfknock.daemon.spending import Spender
from nfknock.daemon.strays import StrayWatch
from nfknock.daemon.threads import in_thread
from nfknock.daemon.user import step_down
from nfknock.errors import NfknockError
from nfknock.readers import Reader, make_reader

_TICK = 1.0


class Service:
    """One daemon with one configuration file."""

    def __init__(self, config: Config, outlets: Outlets) -> None:
        self._config = config
        self._outlets = outlets
        self._doors = {door.name: door for door in config.doors}
        self._tracker = Tracker(config.doors, config.allowed_ports, config.thresholds)
        self._intake = Intake(self._tracker)
        self._reading_later: asyncio.TimerHandle | None = None
        self._reader = make_reader(config.plan)
        self._strays = StrayWatch(self._read)
        self._firewall = Firewall(lambda: make_backend(config.backend), repair=config.repair)
        self._commands = CommandRunner()
        self._spender = Spender(self._find, self._let_in, self._follow)
        self._gate = logs.Gate()
        self._losses = logs.Losses()
        self._started_at = time.time()
        self._reloads = Reloads(config.path, self._read_anew)
        self._ended: asyncio.Future[None]

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises NfknockError when it cannot start or cannot go on."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        # From the first moment on: unhandled it would end us. Until we serve, the file is being read anyway.
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        loop.set_exception_handler(_say_in_a_line)
        self._reader.open()
        try:
            self._strays.open(self._config.plan)
            await self._commands.prepare(self._config.doors)
            await self._firewall.start(self._config.plan, self._config.doors)
            self._commands.adopt(self._doors)
            async with control.answering(self.describe):
                await self._serve(loop)
        finally:
            for reader in self._readers:
                reader.close()
        self._ended.result()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        writing = loop.create_task(self._firewall.run())
        waiting = [loop.create_task(self._tick()), loop.create_task(self._reloads.run())]
        feeding = loop.create_task(supervisor.feed_watchdog(self._firewall.has_stalled))
        for task in (writing, *waiting):
            task.add_done_callback(self._end_with)
        # A start that had to wait for somebody's lock is a while in which nothing was read, too.
        self._come_round()
        self._listen()
        if self._config.notes:
            count = len(self._config.notes)
            logs.log.info("%s is a knockd.conf, read as `nfknock import` reads it: %d notes", self._config.path, count)
        logs.log.info("ready", extra=ON_STDERR)
        supervisor.notify("READY=1")
        await asyncio.wait([self._ended])
        supervisor.notify("STOPPING=1")
        for reader in self._readers:
            loop.remove_reader(reader.fileno())
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await self._spender.stop()
        self._firewall.stop()
        await asyncio.wait([writing])
        await self._commands.stop()
        feeding.cancel()
        # The loop would give them back their default, which is to end us before we have ended.
        for number in (signal.SIGHUP, signal.SIGUSR1):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    @property
    def _readers(self) -> list[Reader]:
        return [self._reader, *filter(None, [self._strays.reader])]

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)
        self._strays.listen()

    def describe(self) -> dict[str, Any]:
        """Return the `daemon` part of `status --json`."""
        counters, plan = self._tracker.counters, self._config.plan
        return {
            "running": True,
            "pid": os.getpid(),
            "started_at": datetime.fromtimestamp(self._started_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "knocks": counters.knocks,
            "strays": counters.strays,
            "opened": self._firewall.opened,
            "closed": self._firewall.closed,
            "lost": self._reader.count_lost(),
            "reader": {"kind": plan.reader, "queue": plan.queue, "port": self._reader.port},
            "unreadable": self._reader.counters.unreadable,
            "impossible": counters.impossible,
            "ignored": counters.ignored,
            "late": self._intake.late,
            "sources_ignored": self._tracker.scanners.count(since_boot()),
            "strays_lost": self._strays.count_lost(),
            "strays_trouble": self._strays.trouble,
            "evicted": counters.evicted,
            "sources": len(self._tracker),
            "one_time_left": {door.name: door.one_time.left for door in self._doors.values() if door.one_time},
            "commands_running": self._commands.running,
            "stop_commands_waiting": self._commands.stops_waiting,
            "reloads": self._reloads.describe(),
        }

    def _read(self) -> None:
        try:
            # Once more where there were strays: then it is known of what comes later that it came after them.
            for _ in range(2):
                for command in self._intake.read(self._reader, self._strays.reader):
                    self._do(command, since_boot())
                if self._intake.is_settled:
                    return
        except Exception as exc:  # noqa: BLE001
            # Shut is safe: without a reader the kernel drops knocks, and whoever supervises us starts us again.
            self._end(exc)
            return
        if self._reading_later is None:
            self._reading_later = asyncio.get_running_loop().call_later(self._reader.lag, self._read_later)

    def _come_round(self) -> None:
        """Show that the loop does; where it did not, be done with what waits: who knocks from now on is to be heard."""
        self._intake.beat()
        if self._intake.was_away:
            self._read()

    def _read_later(self) -> None:
        self._reading_later = None
        if not self._ended.done():
            self._read()

    def _do(self, command: Command, now: float) -> None:
        match command:
            case StageReached() | SequenceTimeout() | SourceIgnored():
                self._gate.say(command, now)
            case OpenDoor(door=name, source=source, sequence=sequence):
                logs.log.info(logs.describe(command))
                door = self._doors[name]
                if door.one_time is None:
                    self._let_in(door, source)
                else:
                    self._spender.spend(door, source, sequence)
            case CloseDoor(door=name, source=source):
                logs.log.info(logs.describe(command))
                if self._doors[name].one_time is None:
                    self._shut(name, source)
                else:
                    self._spender.then(lambda: self._shut(name, source))
            case _:
                assert_never(command)

    def _find(self, name: str) -> Door | None:
        return self._doors.get(name)

    def _let_in(self, door: Door, source: IPAddress) -> None:
        if door.opens_for(source):
            self._firewall.open(door, source)
        elif door.opens:
            logs.log.info("%s: %s: opens nothing for IPv%d addresses", source, door.name, source.version)
        self._commands.opened(door, source)

    def _shut(self, name: str, source: IPAddress) -> None:
        self._firewall.close(name, source)
        self._commands.closed(name, source)

    def _follow(self, name: str, lines: list[Line]) -> None:
        """Go on with what a file of one-time sequences still has."""
        door = self._doors.get(name)
        if door is None or door.one_time is None:
            return
        window = tuple(line.sequence for line in lines[: door.one_time.look_ahead + 1])
        self._doors[name] = replace(door, one_time=replace(door.one_time, window=window, left=len(lines)))
        if len(lines) <= FEW_LEFT:
            logs.log.warning(logs.scarce(name, len(lines)))
        doors = tuple(self._doors.values())
        plan = replace(self._config.plan, knock_ports=knock_ports(doors))
        self._config = replace(self._config, doors=doors, plan=plan)
        self._tracker.replace_doors(doors, self._config.allowed_ports)
        self._firewall.watch(plan)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._come_round()
            now = since_boot()
            for command in self._tracker.expire(now):
                self._do(command, now)
            self._gate.summarise(now)
            self._losses.say(self._reader.count_lost(), now)
            self._strays.tick(now)

    def _reload(self) -> None:
        # Whatever is wrong with the configuration: a log file that was moved away is done with.
        self._reopen_logs()
        self._reloads.ask()

    def _reopen_logs(self) -> None:
        self._outlets.reopen(self._config.log)

    async def _read_anew(self) -> None:
        # No sequence is marked meanwhile: what is read and what is followed are the same.
        async with self._spender.paused:
            await self._take_up(await in_thread(lambda: load_counting(self._config.path)))

    async def _take_up(self, config: Config) -> None:
        if config.user != self._config.user:
            raise NfknockError("another user needs a restart")
        # What "auto" is changes with whoever applies.
        if config.backend != self._config.backend or config.backend.name == "auto":
            await self._firewall.exchange(lambda: make_backend(config.backend))
        await self._commands.prepare(config.doors)
        reader = self._reader if _where(config.plan) == _where(self._config.plan) else make_reader(config.plan)
        has_other_strays = not self._strays.suits(config.plan)
        if has_other_strays:
            # Gone first and back last: the new knocks may come by its group, or the new strays by that of the knocks.
            self._strays.end()
        try:
            if reader is not self._reader:
                reader.open()
            await self._firewall.apply(config.plan, config.doors)
        except BaseException:
            if reader is not self._reader:
                reader.close()
            if has_other_strays and not self._ended.done():
                self._strays.follow(self._config.plan)
            raise
        self._exchange_reader(reader)
        if has_other_strays:
            self._strays.follow(config.plan)
        reader.answer = config.plan.answer
        self._firewall.repair = config.repair
        if config.log != self._config.log:
            self._outlets.reopen(config.log)
        self._config = config
        self._doors = {door.name: door for door in config.doors}
        self._tracker.replace_doors(config.doors, config.allowed_ports)
        self._tracker.scanners.thresholds = config.thresholds
        self._commands.reconsider(self._doors)

    def _exchange_reader(self, reader: Reader) -> None:
        if reader is self._reader:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._reader.fileno())
        self._reader.close()
        self._reader = reader
        loop.add_reader(reader.fileno(), self._read)

    def _end_with(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._end(task.exception())

    def _end(self, reason: BaseException | None = None) -> None:
        if self._ended.done():
            return
        if reason is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(reason)


def _where(plan: Plan) -> tuple[ReaderKind, int]:
    """Where knocks come from."""
    return plan.reader, plan.queue


def _say_in_a_line(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Have the event loop's complaints (no descriptor left for a connection) in the log without their tracebacks."""
    logs.log.error("%s: %s", context["message"], context.get("exception", "no reason is known"))


def serve(path: Path, *, or_last: bool = False) -> None:
    """Run the daemon until it is told to stop; for `or_last` see load_or_last. Raises NfknockError."""
    config = load_or_last(path) if or_last else load_counting(path)
    step_down(config.user)
    if not or_last:
        read(path)  # as the user that it is now: a reload has to be able to
    with control.sole_daemon(), written_aside(sys.stderr, config.log) as outlets:
        asyncio.run(Service(config, outlets).run())

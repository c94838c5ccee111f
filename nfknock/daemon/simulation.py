"""What the daemon would say to packets that were captured: packets in, log lines out, no I/O.

The clock is the capture's. It moves with the packets and never back (captures that were merged may try); between two
of them the timers run, once a second as the daemon's do. Holes are kept here, in the kernel's place: where a hole lets
a packet in, it never comes to the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import assert_never

from nfknock.config import Config
from nfknock.core import onetime
from nfknock.core.decisions import CloseDoor, Command, OpenDoor, SequenceTimeout, SourceIgnored, StageReached
from nfknock.core.lint import FEW_LEFT
from nfknock.core.model import Hole, IPAddress, Rule, Sequence
from nfknock.core.packet import TCP, Packet
from nfknock.core.plan import knock_ports
from nfknock.core.tracker import Tracker
from nfknock.daemon import logs

_TICK = 1.0
# RFC 6335 section 6.
_LAST_SYSTEM_PORT = 1023


@dataclass(frozen=True, slots=True)
class _On:
    """A stop command that is to come; at which instant, or when the closing sequence is knocked."""

    stop: tuple[str, ...]
    stop_at: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log, and its instant (seconds since the epoch, by the capture's clock)."""

    at: float
    text: str


class Simulation:
    """A daemon and a firewall with one configuration, and time as it passed in a capture."""

    def __init__(self, config: Config, one_time: Mapping[str, list[onetime.Line]] | None = None) -> None:
        """`one_time` has the unused sequences of each door that has such a file."""
        self.now = 0.0
        self._one_time = {name: [line.sequence for line in lines] for name, lines in (one_time or {}).items()}
        self._allowed_ports = config.allowed_ports
        self._on: dict[tuple[str, IPAddress], _On] = {}
        self._doors = {door.name: door for door in config.doors}
        self._knock_codes = frozenset(port.code for port in config.plan.knock_ports)
        self._allowed = config.plan.allowed
        self._tracker = Tracker(config.doors, config.allowed_ports, config.thresholds)
        self._strays = config.plan.strays
        self._gate = logs.Gate()
        self._lines: list[Line] = []
        self._holes: dict[tuple[str, IPAddress], Hole] = {}
        self._tick_at = math.inf
        self._is_summary_due = False

    @property
    def holes(self) -> list[Hole]:
        """What is open now."""
        return list(self._holes.values())

    def run(self, packets: Iterable[tuple[float, Packet | None]]) -> Iterator[Line]:
        """Yield what the daemon would have logged, up to the last packet. None is a packet that is not for it."""
        for at, packet in packets:
            with self._collected():
                self._move(at)
                for command in self._receive(packet) if packet is not None else ():
                    self._do(command)
            yield from self._lines
            self._lines.clear()

    @contextlib.contextmanager
    def _collected(self) -> Iterator[None]:
        """Take what is logged, and keep it from wherever log lines go else."""
        handler = _Collector(self)
        before, propagates = logs.log.level, logs.log.propagate
        logs.log.addHandler(handler)
        logs.log.propagate = False
        logs.log.setLevel(logging.INFO)
        try:
            yield
        finally:
            logs.log.removeHandler(handler)
            logs.log.propagate = propagates
            logs.log.setLevel(before)

    def note(self, text: str) -> None:
        """Take a log line."""
        self._lines.append(Line(self.now, text))

    def _move(self, at: float) -> None:
        """Let time pass until `at`, with all that happens meanwhile in its order."""
        if self._tick_at == math.inf:
            self.now, self._tick_at = at, at + _TICK
        while (event_at := min(self._tick_at, self._first_end())) <= at:
            self.now = max(self.now, event_at)
            if event_at == self._tick_at:
                self._tick(at)
            else:
                self._sweep()
        self.now = max(self.now, at)

    def _tick(self, until: float) -> None:
        for command in self._tracker.expire(self.now):
            self._do(command)
        before = len(self._lines)
        self._gate.summarise(self.now)
        self._is_summary_due = self._is_summary_due and len(self._lines) == before
        self._tick_at += _TICK
        if not len(self._tracker) and not self._is_summary_due:
            # Nothing waits for a timer, and a capture may span years.
            self._tick_at += max(0.0, math.floor((until - self._tick_at) / _TICK)) * _TICK

    def _first_end(self) -> float:
        ends = [hole.closes_at for hole in self._holes.values()] + [on.stop_at for on in self._on.values()]
        return min((end for end in ends if end is not None), default=math.inf)

    def _sweep(self) -> None:
        for key, on in list(self._on.items()):
            if on.stop_at is not None and on.stop_at <= self.now:
                self.note(logs.timed_out(*key))
                self._stop(key)
        for hole in [hole for hole in self._holes.values() if hole.is_expired(self.now)]:
            self._close(hole)

    def _receive(self, packet: Packet) -> list[Command]:
        if not self._is_taken(packet):
            return []
        # A capture tells in which order they came.
        self._tracker.settle(math.inf)
        if packet.code in self._knock_codes:
            return self._tracker.receive(packet, self.now)
        return self._tracker.receive_stray(packet, self.now) if self._is_stray(packet) else []

    def _is_stray(self, packet: Packet) -> bool:
        """Whether the firewall would show the packet to the daemon if it is to no knock port."""
        if self._strays is None:
            return False
        if packet.protocol == TCP:
            return any(flags.accepts(packet.flags) for flags in self._strays.tcpflags)
        # A capture has no sessions: what comes from a service's port is an answer to a question of ours.
        return packet.source_port > _LAST_SYSTEM_PORT

    def _is_taken(self, packet: Packet) -> bool:
        """Whether the packet comes as far as to the knocks."""
        if packet.source == packet.target:
            return False
        source = ip_address(packet.source)
        return not (
            any(_lets_in(rule, packet, source) for rule in self._allowed)
            or any(
                opening.to is None and opening.port.code == packet.code
                for hole in self._holes.values()
                if hole.source == source
                for opening in hole.opens
            )
        )

    def _do(self, command: Command) -> None:
        match command:
            case StageReached() | SequenceTimeout() | SourceIgnored():
                before = len(self._lines)
                self._gate.say(command, self.now)
                self._is_summary_due |= len(self._lines) == before
            case OpenDoor(door=door, source=source, sequence=sequence):
                self.note(logs.describe(command))
                self._open(door, source)
                self._start(door, source)
                self._spend(door, sequence)
            case CloseDoor(door=door, source=source):
                self.note(logs.describe(command))
                self._stop((door, source))
                if hole := self._holes.get((door, source)):
                    self._close(hole)
            case _:
                assert_never(command)

    def _open(self, name: str, source: IPAddress) -> None:
        door = self._doors[name]
        opens = door.opens_for(source)
        if not opens:
            return
        closes_at = self.now + door.open_timeout if door.open_timeout else None
        hole = Hole(door=name, source=source, opens=opens, opened_at=self.now, closes_at=closes_at)
        older = self._holes.get(hole.key)
        hole = hole.renewed(older) if older else hole
        self._holes[hole.key] = hole
        self.note(logs.opened(hole, self.now, is_new=older is None))

    def _start(self, name: str, source: IPAddress) -> None:
        """Say what would be run, as the daemon's CommandRunner does."""
        commands = self._doors[name].commands
        if commands is None:
            return
        stop, timeout = commands.stop_for(source), commands.cmd_timeout
        is_on = (name, source) in self._on
        if stop:
            self._on[name, source] = _On(stop, None if timeout is None else self.now + timeout)
        if is_on:
            self.note(logs.put_off(name, source, timeout))
        elif start := commands.start_for(source):
            self.note(logs.running(name, start))

    def _stop(self, key: tuple[str, IPAddress]) -> None:
        if on := self._on.pop(key, None):
            self.note(logs.running(key[0], on.stop))

    def _spend(self, name: str, sequence: Sequence) -> None:
        """Go on with what a file of one-time sequences would still have."""
        door = self._doors[name]
        if door.one_time is None:
            return
        left = self._one_time[name]
        del left[: left.index(sequence) + 1]
        window = tuple(left[: door.one_time.look_ahead + 1])
        self._doors[name] = replace(door, one_time=replace(door.one_time, window=window, left=len(left)))
        if len(left) <= FEW_LEFT:
            self.note(logs.scarce(name, len(left)))
        doors = tuple(self._doors.values())
        self._knock_codes = frozenset(port.code for port in knock_ports(doors))
        self._tracker.replace_doors(doors, self._allowed_ports)

    def _close(self, hole: Hole) -> None:
        del self._holes[hole.key]
        self.note(logs.closed(hole, self.now if hole.closes_at is None else min(self.now, hole.closes_at)))


class _Collector(logging.Handler):
    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        self._simulation.note(record.getMessage())


def _lets_in(rule: Rule, packet: Packet, source: IPAddress) -> bool:
    """Whether an entry of `allow` accepts the packet before it comes to the knock ports."""
    return (
        # A capture does not tell where a packet came in.
        rule.interface is None
        and rule.protocol in (None, "tcp" if packet.protocol == TCP else "udp")
        and (not rule.ports or packet.port in rule.ports)
        and (rule.source is None or source in rule.source)
    )

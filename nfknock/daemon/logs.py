"""What the daemon says: knockd's lines, so that people's filters keep working, and never a flood of them."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Sequence

from nfknock.config.durations import format_duration
from nfknock.core.decisions import CloseDoor, Command, OpenDoor, SequenceTimeout, SourceIgnored, StageReached
from nfknock.core.lint import few_left
from nfknock.core.model import Hole, IPAddress

log = logging.getLogger("nfknock")

_LINES_A_SECOND = 5.0
_LINES_AT_ONCE = 20.0
_SUMMARY_EVERY = 10.0


def describe(command: Command) -> str:
    """Return the log line for what the tracker decided."""
    if isinstance(command, SourceIgnored):
        timeout = format_duration(command.ignore_timeout)
        return f"{command.source}: hit {command.ports} closed ports; ignored until it has hit none for {timeout}"
    start = f"{command.source}: {command.door}"
    match command:
        case StageReached(stage=stage, is_closing=is_closing):
            return f"{start}: {'closing, stage' if is_closing else 'Stage'} {stage}"
        case OpenDoor():
            return f"{start}: OPEN SESAME"
        case CloseDoor():
            return f"{start}: CLOSE SESAME"
        case SequenceTimeout(stage=stage):
            return f"{start}: sequence timeout (stage {stage})"


def opened(hole: Hole, now: float, *, is_new: bool) -> str:
    """Return the log line for a hole that was opened, or got a later end, at `now` (epoch seconds)."""
    start = f"{hole.source}: {hole.door}: {'opened' if is_new else 'renewed'} {', '.join(map(str, hole.opens))}"
    if hole.closes_at is None:
        return f"{start} until it is closed"
    return f"{start} for {format_duration(hole.closes_at - now)}"


def running(door: str, arguments: Sequence[str]) -> str:
    """Return the log line for a command that is started."""
    return f"{door}: running command: {visible(shlex.join(arguments))}"


def visible(text: str) -> str:
    """Return a text as one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def put_off(door: str, source: IPAddress, cmd_timeout: float | None) -> str:
    """Return the log line for a stop command that somebody put off by knocking again; the timeout is in seconds."""
    until = "until it is closed" if cmd_timeout is None else f"for {format_duration(cmd_timeout)}"
    return f"{source}: {door}: stop command put off {until}"


def timed_out(door: str, source: IPAddress) -> str:
    """Return the log line for a stop command whose time has come."""
    return f"{source}: {door}: command timeout"


def scarce(door: str, left: int) -> str:
    """Return the log line for one-time sequences that run short."""
    return f"{door}: one-time sequences: {few_left(left)}"


def closed(hole: Hole, at: float) -> str:
    """Return the log line for a hole that was closed at `at` (epoch seconds)."""
    return f"{hole.source}: {hole.door}: closed after {format_duration(max(0.0, at - hole.opened_at))}"


class Gate:
    """Lets through so many lines a second and counts the rest: a flood of knocks is one number, not a full disk."""

    def __init__(self) -> None:
        self._tokens = _LINES_AT_ONCE
        self._filled_at = 0.0
        self._left_out = 0
        self._said_at = 0.0

    def say(self, command: Command, now: float) -> None:
        """Log what a stranger can cause."""
        self._tokens = min(_LINES_AT_ONCE, self._tokens + (now - self._filled_at) * _LINES_A_SECOND)
        self._filled_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            log.info(describe(command))
        else:
            self._left_out += 1

    def summarise(self, now: float) -> None:
        """Say how many lines were left out, now and then."""
        if self._left_out and now - self._said_at >= _SUMMARY_EVERY:
            log.info("%d lines about knocks were left out", self._left_out)
            self._left_out, self._said_at = 0, now


class Losses:
    """Says how many packets the kernel could not hand over, now and then."""

    def __init__(self, what: str = "packets") -> None:
        self._what = what
        self._said = 0
        self._said_at = -math.inf

    def say(self, lost: int, now: float) -> None:
        """Take note of the reader's count; another reader counts from 0 again."""
        if lost < self._said:
            self._said = 0
        if lost > self._said and now - self._said_at >= _SUMMARY_EVERY:
            log.warning("%d %s were lost: they came faster than they are read", lost - self._said, self._what)
            self._said, self._said_at = lost, now

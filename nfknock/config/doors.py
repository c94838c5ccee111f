"""Doors: what each key of [doors.NAME] means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from nfknock import onetime
from nfknock.config import sections
from nfknock.config.values import PathError, at, ports, timeout
from nfknock.core.model import (
    BARE_SYN,
    Commands,
    Door,
    IPAddress,
    OneTimeSequences,
    Opening,
    Port,
    Sequence,
    TcpFlags,
    as_source,
)
from nfknock.core.sources import is_possible_source
from nfknock.errors import OneTimeError, UsedUpError

_LONGEST_SEQ_TIMEOUT = 3600.0
# Kernel expiry is written as a date, and iptables reads dates up to 2037.
_LONGEST_OPEN_TIMEOUT = 366 * 86400.0
_LONGEST_RUN_TIMEOUT = 86400.0
# As knockd has it.
_CMD_TIMEOUT = 10.0
_MOST_LOOKED_AHEAD = 100

ParsePath = Callable[[str], Path | None]
Warn = Callable[[str], None]


Tolerated = Literal["nothing", "used up", "anything"]
"""What may be wrong with a file of one-time sequences."""


def read_doors(raw: Any, parse_path: ParsePath, tolerates: Tolerated, warn: Warn) -> tuple[Door, ...]:
    """Give the doors their values. Raises ValueError that begins with the key path.

    What is tolerated of a file of one-time sequences is told to `warn` and leaves its door shut.
    """
    if not isinstance(raw, dict) or not raw:
        raise ValueError("doors: at least one is needed, as [doors.NAME] with a sequence and what it opens")
    doors = tuple(_Reader(name, section, parse_path, tolerates, warn).door() for name, section in raw.items())
    files: dict[str, str] = {}
    for door in doors:
        file = os.path.realpath(door.one_time.path) if door.one_time else door.name
        if door.one_time and files.setdefault(file, door.name) != door.name:
            other = files[file]
            raise ValueError(f"doors.{door.name}.one_time_sequences: doors.{other} has this file already")
    return doors


class _Reader:
    """One section on its way to a door."""

    def __init__(self, name: str, raw: Any, parse_path: ParsePath, tolerates: Tolerated, warn: Warn) -> None:
        self._name = name
        self._path = f"doors.{name}"
        self._section = sections.read_section(raw, sections.Door, self._path)
        self._parse_path = parse_path
        self._tolerates = tolerates
        self._warn = warn

    def door(self) -> Door:
        self._check_presence()
        section, path = self._section, self._path
        close_sequence = ports(f"{path}.close_sequence", section.close_sequence)
        tcpflags = BARE_SYN if section.tcpflags is None else at(f"{path}.tcpflags", TcpFlags.parse, section.tcpflags)
        return at(
            path,
            lambda _: Door(
                name=self._name,
                sequence=ports(f"{path}.sequence", section.sequence or ()),
                opens=tuple(dict.fromkeys(self._openings())),
                seq_timeout=timeout(f"{path}.seq_timeout", section.seq_timeout, 0.1, _LONGEST_SEQ_TIMEOUT),
                open_timeout=self._open_timeout(),
                close_sequence=close_sequence,
                tcpflags=tcpflags,
                target=at(f"{path}.target", as_source, section.target) if section.target else None,
                commands=self._commands(),
                one_time=self._one_time(close_sequence),
                cut_sessions=section.cut_sessions,
            ),
            self._name,
        )

    def _check_presence(self) -> None:
        section, path = self._section, self._path
        for key in ("sequence", "open"):
            if getattr(section, key) == []:
                raise PathError(f"{path}.{key}: is empty; a door needs at least one port there")
        if section.sequence is None and section.one_time_sequences is None:
            raise PathError(f"{path}: the key 'sequence' is missing")
        if section.sequence is not None and section.one_time_sequences is not None:
            raise PathError(f"{path}.one_time_sequences: there is a sequence already; a door has one or the other")
        if section.one_time_look_ahead is not None and section.one_time_sequences is None:
            raise PathError(f"{path}.one_time_look_ahead: there are no one_time_sequences here")
        if section.cut_sessions and section.open is None:
            raise PathError(f"{path}.cut_sessions: this door opens no port")
        if section.open is None and section.open_timeout is not None:
            raise PathError(f"{path}.open_timeout: this door opens no port")
        starts = (section.start_command, section.start_command_6, section.stop_command, section.stop_command_6)
        if section.open is None and starts == (None, None, None, None):
            raise PathError(f"{path}: the key 'open' is missing, or a start_command")

    def _openings(self) -> Iterator[Opening]:
        for index, entry in enumerate(self._section.open or ()):
            path = f"{self._path}.open[{index}]"
            if isinstance(entry, sections.Forward):
                yield Opening(at(f"{path}.port", Port.parse, entry.port), at(f"{path}.to", _host_behind, entry.to))
            else:
                yield Opening(at(path, Port.parse, entry))

    def _open_timeout(self) -> float:
        path = f"{self._path}.open_timeout"
        seconds = 30 if self._section.open_timeout is None else self._section.open_timeout
        return timeout(path, seconds, 1.0, _LONGEST_OPEN_TIMEOUT, zero=True)

    def _commands(self) -> Commands | None:
        section, path = self._section, self._path
        keys = ("start_command", "start_command_6", "stop_command", "stop_command_6")
        lists = [at(f"{path}.{key}", _arguments, getattr(section, key)) for key in keys]
        if all(each is None for each in lists):
            for key in ("cmd_timeout", "run_timeout"):
                if getattr(section, key) is not None:
                    raise PathError(f"{path}.{key}: there is no command here")
            return None
        start, start6, stop, stop6 = lists
        run_timeout = 60 if section.run_timeout is None else section.run_timeout
        return Commands(
            start=start or (),
            start6=start6,
            stop=stop or (),
            stop6=stop6,
            cmd_timeout=self._cmd_timeout(),
            run_timeout=timeout(f"{path}.run_timeout", run_timeout, 0.1, _LONGEST_RUN_TIMEOUT),
        )

    def _cmd_timeout(self) -> float | None:
        section, path = self._section, f"{self._path}.cmd_timeout"
        has_stop = bool(section.stop_command or section.stop_command_6)
        if section.cmd_timeout is None:
            # What goes with a hole ends with it.
            usual = self._open_timeout() if section.open else _CMD_TIMEOUT
            if not usual and not section.close_sequence and has_stop:
                raise PathError(f"{self._path}: the key 'cmd_timeout' is missing: this door never closes by itself")
            return usual or None
        if not has_stop:
            raise PathError(f"{path}: there is no stop_command that it would delay")
        seconds = timeout(path, section.cmd_timeout, 0.0, _LONGEST_OPEN_TIMEOUT)
        return None if seconds == 0 and section.close_sequence else seconds

    def _one_time(self, closing: Sequence) -> OneTimeSequences | None:
        section, path = self._section, f"{self._path}.one_time_sequences"
        if section.one_time_sequences is None:
            return None
        file = at(path, self._parse_path, section.one_time_sequences)
        if file is None:
            raise PathError(f"{path}: is empty; it names a file")
        look_ahead = 5 if section.one_time_look_ahead is None else section.one_time_look_ahead
        if not 0 <= look_ahead <= _MOST_LOOKED_AHEAD:
            raise PathError(
                f"{self._path}.one_time_look_ahead: {look_ahead} is out of range (0 to {_MOST_LOOKED_AHEAD})"
            )
        try:
            lines = onetime.read(file, closing=closing)
        except OneTimeError as exc:
            if self._tolerates != "anything" and not (self._tolerates == "used up" and isinstance(exc, UsedUpError)):
                raise PathError(f"{path}: {exc}") from exc
            self._warn(f"{path}: {exc}; the door stays shut")
            lines = []
        window = tuple(line.sequence for line in lines[: look_ahead + 1])
        return OneTimeSequences(path=str(file), look_ahead=look_ahead, window=window, left=len(lines))


def _host_behind(text: str) -> IPAddress:
    address = as_source(text)
    if not is_possible_source(address.packed):
        raise ValueError(f"{text!r} is not the address of a host behind this one")
    return address


def _arguments(value: list[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if value and not value[0]:
        raise ValueError("the program has no name; write [] to run nothing")
    if any("\0" in argument for argument in value):
        raise ValueError("an argument cannot have a NUL byte in it")
    return tuple(value)

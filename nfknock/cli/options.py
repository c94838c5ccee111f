"""What the commands of the client have in common on the command line."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from nfknock.client.hosts import Host, parse_source
from nfknock.core.model import Port
from nfknock.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LONGEST_TIMEOUT = 86400.0

_ROUTE = (
    click.option("-4", "only4", is_flag=True, help="IPv4 only."),
    click.option("-6", "only6", is_flag=True, help="IPv6 only."),
    click.option("-I", "source", metavar="ADDRESS", help="Knock from this address of this host."),
)


def route_options(command: _Command) -> _Command:
    """Give a command `-4`, `-6` and `-I ADDRESS`, for `route` to read."""
    for option in reversed(_ROUTE):
        command = option(command)
    return command


def route(only4: bool, only6: bool, source: str | None) -> tuple[socket.AddressFamily, Host | None]:
    """Return the family to use, and the address to knock from. Raises UsageError."""
    context = click.get_current_context()
    if only4 and only6:
        raise click.UsageError("-4 and -6 exclude each other", context)
    family = socket.AF_INET if only4 else socket.AF_INET6 if only6 else socket.AF_UNSPEC
    if source is None:
        return family, None
    try:
        host = parse_source(source)
    except ValueError as exc:
        raise click.UsageError(f"-I: {exc}", context) from exc
    if family not in (socket.AF_UNSPEC, host.family):
        raise click.UsageError(f"-I {source} and {'-4' if only4 else '-6'} exclude each other", context)
    return host.family, host


def sequence(texts: Iterable[str], *, udp: bool = False) -> tuple[Port, ...]:
    """Read the ports to knock at; without a protocol they are TCP, or UDP if that is wanted. Raises ConfigError."""
    try:
        return tuple(Port.parse(f"{text}/udp" if udp and text.strip().isdigit() else text) for text in texts)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def one_time(file: Path) -> Callable[[], Sequence[Port]]:
    """Return what takes the next unused sequence of a file, and marks it there before it is knocked."""
    from nfknock.onetime import spend

    return lambda: spend(file)[0]


def timeout(text: str) -> float:
    """Read `--timeout`: a number of seconds, or one with a unit. Raises ConfigError."""
    from nfknock.config.durations import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise ConfigError(f"--timeout: {exc}") from exc
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise ConfigError(f"--timeout: {seconds:g} s is out of range (more than 0, at most a day)")
    return seconds

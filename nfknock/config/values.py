"""Values as people write them, each with its place in the file in front of what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

from nfknock.config.durations import parse_duration
from nfknock.core.model import IPNetwork, Port

_MAPPED = IPv6Network("::ffff:0:0/96")

_Value = TypeVar("_Value")


def ports(path: str, values: Iterable[str | int]) -> tuple[Port, ...]:
    """Parse the knocks of a sequence; `path` is its key."""
    return tuple(at(f"{path}[{index}]", _knock, value) for index, value in enumerate(values))


def _knock(value: str | int) -> Port:
    try:
        return Port.parse(value)
    except ValueError:
        # Without the value: a daemon that reads its file anew says this in the log, and sequences are secret.
        raise ValueError('this is no port from 1 to 65535; write 7101, "7101/tcp" or "7101/udp"') from None


def timeout(path: str, value: str | float, shortest: float, longest: float, *, zero: bool = False) -> float:
    """Parse a duration to seconds within bounds; with `zero` 0 is right as well."""
    seconds = at(path, parse_duration, value)
    if not (shortest <= seconds <= longest or (zero and seconds == 0)):
        also = "0, or " if zero else ""
        raise PathError(f"{path}: {seconds:g} s is out of range ({also}{shortest:g} s to {longest:g} s)")
    return seconds


def path_beside(config: Path) -> Callable[[str], Path | None]:
    """Return a parser of paths, relative ones beside the configuration; an empty text is None."""

    def parse(text: str) -> Path | None:
        if "\0" in text:
            raise ValueError(f"{text!r} is not a path")
        return config.parent / text if text else None

    return parse


def network(text: str) -> IPNetwork:
    """Parse an address or a network."""
    parsed = ip_network(text)
    if isinstance(parsed, IPv6Network) and parsed.prefixlen >= _MAPPED.prefixlen and parsed.subnet_of(_MAPPED):
        # An IPv4 address that is written as IPv6; no packet ever bears it so.
        return ip_network((parsed.network_address.packed[-4:], parsed.prefixlen - _MAPPED.prefixlen))
    return parsed


def interface(name: str) -> str:
    """Check the name of an interface."""
    if not 1 <= len(name.encode()) <= 15 or not name.isprintable() or any(c in ' /:!"' for c in name):
        raise ValueError(f"{name!r} is not the name of an interface")
    return name


def at(path: str, parse: Callable[[Any], _Value], value: Any) -> _Value:
    """Parse a value; what it complains of gets the key path in front, once."""
    try:
        return parse(value)
    except PathError:
        raise
    except ValueError as exc:
        raise PathError(f"{path}: {exc}") from exc


class PathError(ValueError):
    """A ValueError that says already where it is."""

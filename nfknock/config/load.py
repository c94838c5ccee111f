"""Reads the configuration file and gives every value its meaning."""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

from nfknock.config import sections
from nfknock.config.durations import parse_duration
from nfknock.core.model import BARE_SYN, Door, IPNetwork, Port, Rule, TcpFlags, as_source
from nfknock.core.plan import Plan, knock_ports
from nfknock.errors import ConfigError

DEFAULT_PATH = Path("/etc/nfknock/nfknock.toml")

_LONGEST_SEQ_TIMEOUT = 3600.0
# Kernel expiry is written as a date, and iptables reads dates up to 2037.
_LONGEST_OPEN_TIMEOUT = 366 * 86400.0

_LARGEST_FILE = 1 << 20
_MAPPED = IPv6Network("::ffff:0:0/96")

# What tomllib says of a table that is declared a second time.
_TWICE = re.compile(r"Cannot declare \((?P<keys>.*)\) twice \(at (?P<line>line \d+)")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration that passed every check."""

    path: Path
    backend: str
    reader: str
    doors: tuple[Door, ...]
    plan: Plan
    allowed_ports: tuple[Port, ...]
    """Ports that are open to everybody, for whom a packet there is no stray."""

    def door(self, name: str) -> Door:
        """Return the door of that name. Raises ConfigError that lists the names there are."""
        for door in self.doors:
            if door.name == name:
                return door
        names = ", ".join(door.name for door in self.doors)
        raise ConfigError(f"there is no door {name!r} in {self.path}; there is {names}")


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with the file, the key path and what would be right."""
    raw = _read_toml(path, "configuration")
    try:
        return _config(path, raw)
    except ValueError as exc:
        # A key or a value may have a line break in it.
        raise ConfigError(" ".join(f"{path}: {exc}".split())) from exc


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode())
    except FileNotFoundError:
        mend = "; `nfknock init` writes one" if what == "configuration" else ""
        raise ConfigError(f"there is no {what} file {path}{mend}") from None
    except OSError as exc:
        raise ConfigError(f"the {what} file {path} cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8 text") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from exc
    except ValueError as exc:  # a TOMLDecodeError, or int() about a number of very many digits
        if twice := _TWICE.match(str(exc)):
            key = ".".join(re.findall(r"'(.*?)'", twice["keys"]))
            raise ConfigError(f"{path}: {key}: is there already, and again in {twice['line']}") from exc
        raise ConfigError(f"{path}: not valid TOML: {str(exc)[:1].lower()}{str(exc)[1:]}") from exc


def _read(path: Path) -> bytes:
    """Read a file of reasonable size. Raises OSError; a pipe or a device would hold up a daemon that reads anew."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > _LARGEST_FILE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return os.read(descriptor, _LARGEST_FILE)
    finally:
        os.close(descriptor)


def _config(path: Path, raw: dict[str, Any]) -> Config:
    for key in raw:
        if key not in ("firewall", "reader", "doors"):
            raise ValueError(f"{key}: unknown key; known are firewall, reader, doors")
    firewall = sections.read_section(raw.get("firewall", {}), sections.Firewall, "firewall")
    reader = sections.read_section(raw.get("reader", {}), sections.Reader, "reader")
    if not 0 <= reader.queue <= 65535:
        raise ValueError(f"reader.queue: {reader.queue} is out of range (0 to 65535)")
    doors = _doors(raw.get("doors"))
    allowed, open_to_all = _allowed(firewall.allow)
    plan = Plan(
        # Beside the configuration, wherever nfknock is started from.
        baseline=read_baseline(_at("firewall.rules", _path_beside(path), firewall.rules)),
        allowed=allowed,
        knock_ports=knock_ports(doors),
        queue=reader.queue,
        answer=reader.answer,
        interfaces=tuple(_at("firewall.interfaces", _interface, name) for name in firewall.interfaces),
    )
    return Config(
        path=path,
        backend=firewall.backend,
        reader=reader.kind,
        doors=doors,
        plan=plan,
        allowed_ports=open_to_all,
    )


def _doors(raw: Any) -> tuple[Door, ...]:
    if not isinstance(raw, dict) or not raw:
        raise ValueError("doors: at least one is needed, as [doors.NAME] with a sequence and what it opens")
    return tuple(_door(name, section) for name, section in raw.items())


def _door(name: str, raw: Any) -> Door:
    path = f"doors.{name}"
    section = sections.read_section(raw, sections.Door, path)
    for key in ("sequence", "open"):
        if not getattr(section, key):
            raise ValueError(f"{path}.{key}: is empty; a door needs at least one port there")
    seq_timeout = _timeout(f"{path}.seq_timeout", section.seq_timeout, 0.1, _LONGEST_SEQ_TIMEOUT)
    open_timeout = _timeout(f"{path}.open_timeout", section.open_timeout, 1.0, _LONGEST_OPEN_TIMEOUT, zero=True)
    tcpflags = BARE_SYN if section.tcpflags is None else _at(f"{path}.tcpflags", TcpFlags.parse, section.tcpflags)
    return _at(
        path,
        lambda _: Door(
            name=name,
            sequence=_ports(f"{path}.sequence", section.sequence),
            opens=tuple(dict.fromkeys(_ports(f"{path}.open", section.open))),
            seq_timeout=seq_timeout,
            open_timeout=open_timeout,
            close_sequence=_ports(f"{path}.close_sequence", section.close_sequence),
            tcpflags=tcpflags,
            target=_at(f"{path}.target", as_source, section.target) if section.target else None,
        ),
        name,
    )


def _allowed(entries: Iterable[str | int | sections.Allow]) -> tuple[tuple[Rule, ...], tuple[Port, ...]]:
    """Return the rules, and the ports that are open to everybody."""
    rules: list[Rule] = []
    open_to_all: list[Port] = []
    for index, entry in enumerate(entries):
        path = f"firewall.allow[{index}]"
        source = None
        if isinstance(entry, sections.Allow):
            source = _at(f"{path}.from", _network, entry.source)
            port = _at(f"{path}.open", Port.parse, entry.open)
        else:
            port = _at(path, Port.parse, entry)
            open_to_all.append(port)
        rules.append(Rule(comment=f"allow {port}", protocol=port.protocol, ports=(port.number,), source=source))
    return tuple(rules), tuple(open_to_all)


def read_baseline(path: Path | None) -> tuple[Rule, ...]:
    """Read a rules file, or the one that comes with nfknock. Raises ConfigError."""
    if path is None:
        with resources.as_file(resources.files("nfknock.rules") / "baseline.toml") as shipped:
            return read_baseline(shipped)
    raw = _read_toml(path, "rules")
    try:
        if set(raw) != {"rule"} or not isinstance(raw["rule"], list):
            raise ValueError("a rules file holds [[rule]] tables and nothing else")
        return tuple(_baseline_rule(f"rule[{index}]", entry) for index, entry in enumerate(raw["rule"]))
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _baseline_rule(path: str, raw: Any) -> Rule:
    section = sections.read_section(raw, sections.BaselineRule, path)
    for port in (*section.ports, *filter(None, [section.source_port])):
        _at(path, Port, port)
    for key, value in (("icmp_type", section.icmp_type), ("hop_limit", section.hop_limit)):
        if value is not None and not 0 <= value <= 255:
            raise ValueError(f"{path}.{key}: {value} is out of range (0 to 255)")
    if not section.comment.isprintable() or not 1 <= len(section.comment.encode()) <= 200 or '"' in section.comment:
        raise ValueError(f"{path}.comment: one line of 1 to 200 bytes without quotes")
    return _at(
        path,
        lambda _: Rule(
            comment=section.comment,
            verdict=section.verdict,
            family=section.family,
            interface=_at(f"{path}.interface", _interface, section.interface) if section.interface else None,
            states=tuple(section.state),
            protocol=section.protocol,
            source=_at(f"{path}.from", _network, section.source) if section.source else None,
            source_port=section.source_port,
            ports=tuple(section.ports),
            icmp_type=section.icmp_type,
            hop_limit=section.hop_limit,
        ),
        path,
    )


def _ports(path: str, values: Iterable[str | int]) -> tuple[Port, ...]:
    return tuple(_at(f"{path}[{index}]", Port.parse, value) for index, value in enumerate(values))


def _timeout(path: str, value: str | float, shortest: float, longest: float, *, zero: bool = False) -> float:
    seconds = _at(path, parse_duration, value)
    if not (shortest <= seconds <= longest or (zero and seconds == 0)):
        also = "0, or " if zero else ""
        raise ValueError(f"{path}: {seconds:g} s is out of range ({also}{shortest:g} s to {longest:g} s)")
    return seconds


def _path_beside(config: Path) -> Callable[[str], Path | None]:
    def parse(text: str) -> Path | None:
        if "\0" in text:
            raise ValueError(f"{text!r} is not a path")
        return config.parent / text if text else None

    return parse


def _network(text: str) -> IPNetwork:
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED.prefixlen and network.subnet_of(_MAPPED):
        # An IPv4 address that is written as IPv6; no packet ever bears it so.
        return ip_network((network.network_address.packed[-4:], network.prefixlen - _MAPPED.prefixlen))
    return network


def _interface(name: str) -> str:
    if not 1 <= len(name.encode()) <= 15 or not name.isprintable() or any(c in ' /:!"' for c in name):
        raise ValueError(f"{name!r} is not the name of an interface")
    return name


def _at(path: str, parse: Callable[[Any], _Value], value: Any) -> _Value:
    """Parse a value; what it complains of gets the key path in front, once."""
    try:
        return parse(value)
    except _PathError:
        raise
    except ValueError as exc:
        raise _PathError(f"{path}: {exc}") from exc


class _PathError(ValueError):
    """A ValueError that says already where it is."""

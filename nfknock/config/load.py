"""Reads the configuration file and gives every value its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfknock.config import sections
from nfknock.config.baseline import read_baseline
from nfknock.config.doors import Tolerated, read_doors
from nfknock.config.toml import parse_toml, read_file
from nfknock.config.values import at, interface, network, path_beside, ports, timeout
from nfknock.core.model import Door, Port, Rule
from nfknock.core.plan import (
    BackendChoice,
    Plan,
    Strays,
    cut_openings,
    forwarded,
    knock_ports,
    opened_here,
    stray_flags,
)
from nfknock.core.scanners import Thresholds
from nfknock.errors import ConfigError
from nfknock.knockd import KnockdError, convert, looks_like_knockd

DEFAULT_PATH = Path("/etc/nfknock/nfknock.toml")

# Some 300 bytes of the kernel's memory for each entry.
_LARGEST_SET = 1 << 20
_ATTACH = re.compile(r"(inet|ip6?) [A-Za-z][\w/\\.]* [A-Za-z][\w/\\.]*", re.ASCII)
_SECTIONS = ("firewall", "reader", "guard", "daemon", "log", "doors")
_LAST_QUEUE = 65535
_MOST_PORTS = 1000
_LONGEST_IGNORE_TIMEOUT = 86400.0
_MOST_KNOCKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Where the daemon's lines go; to stderr if nowhere else."""

    syslog: bool = False
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration that passed every check."""

    path: Path
    backend: BackendChoice
    repair: bool
    doors: tuple[Door, ...]
    plan: Plan
    allowed_ports: tuple[Port, ...]
    """Ports that are open to everybody, for whom a packet there is no stray."""
    log: Log
    thresholds: Thresholds
    """From what on a source is ignored."""
    user: str = ""
    """Whom a daemon that root starts becomes; empty: nobody."""
    warnings: tuple[str, ...] = ()
    """What was tolerated."""
    notes: tuple[str, ...] = ()
    """What became of the lines of a knockd.conf, in the words of `nfknock import`."""

    def door(self, name: str) -> Door:
        """Return the door of that name. Raises ConfigError that lists the names there are."""
        for door in self.doors:
            if door.name == name:
                return door
        names = ", ".join(door.name for door in self.doors)
        raise ConfigError(f"there is no door {name!r} in {self.path}; there is {names}")


def read(path: Path) -> bytes:
    """Return what a configuration file holds. Raises ConfigError."""
    return read_file(path, "configuration")


def load(path: Path, content: bytes | None = None, *, tolerates: Tolerated = "nothing") -> Config:
    """Read and check a configuration file, ours or a knockd.conf; `content` stands for what it holds.

    Raises ConfigError with the file, the key path and what would be right.

    A door whose one-time sequences are used up, or cannot be read, stays shut with a warning if that is tolerated:
    one door must not keep the others shut, and whoever only wants to shut things, or to look, must not fail for it.
    """
    if content is None:
        content = read(path)
    notes: tuple[str, ...] = ()
    # A file that is called .toml is meant to be one, whatever stands in it.
    if path.suffix.lower() != ".toml" and looks_like_knockd(content.decode("latin-1")):
        content, notes = _from_knockd(path, content)
    raw = parse_toml(path, content)
    try:
        return _config(path, raw, notes, tolerates)
    except ValueError as exc:
        # A key or a value may have a line break in it.
        raise ConfigError(" ".join(f"{path}: {exc}".split())) from exc


def _from_knockd(path: Path, content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the TOML that `nfknock import` would write, and its report."""
    try:
        conversion = convert(content)
    except KnockdError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    # What is unwise about a sequence is what `check` says of any.
    notes = [note for note in conversion.notes if not (note.kind == "unwise" and note.text.startswith("sequence: "))]
    return conversion.text.encode(), tuple(f"{path}:{note.line}: {note.kind}: {note.text}" for note in notes)


def _backend(firewall: sections.Firewall) -> BackendChoice:
    if firewall.attach and firewall.backend not in ("nftables", "auto"):
        raise ValueError("firewall.attach: only the backend nftables stands in somebody else's chain")
    if firewall.attach and not _ATTACH.fullmatch(firewall.attach):
        raise ValueError(f'firewall.attach: {firewall.attach!r} is no chain; write it as "inet filter input"')
    return BackendChoice(name=firewall.backend, attach=firewall.attach, set_size=firewall.set_size)


def _config(path: Path, raw: dict[str, Any], notes: tuple[str, ...], tolerates: Tolerated) -> Config:
    for key in raw:
        if key not in _SECTIONS:
            raise ValueError(f"{key}: unknown key; known are {', '.join(_SECTIONS)}")
    firewall = sections.read_section(raw.get("firewall", {}), sections.Firewall, "firewall")
    if not 1 <= firewall.set_size <= _LARGEST_SET:
        raise ValueError(f"firewall.set_size: {firewall.set_size} is out of range (1 to {_LARGEST_SET})")
    reader = sections.read_section(raw.get("reader", {}), sections.Reader, "reader")
    if not 0 <= reader.queue <= _LAST_QUEUE:
        raise ValueError(f"reader.queue: {reader.queue} is out of range (0 to {_LAST_QUEUE})")
    guard = sections.read_section(raw.get("guard", {}), sections.Guard, "guard")
    daemon = sections.read_section(raw.get("daemon", {}), sections.Daemon, "daemon")
    log = sections.read_section(raw.get("log", {}), sections.Log, "log")
    warnings: list[str] = []
    # Beside the configuration, wherever nfknock is started from.
    beside = path_beside(path)
    doors = read_doors(raw.get("doors"), beside, tolerates, warnings.append)
    allowed, open_to_all = _allowed(firewall.allow)
    plan = Plan(
        baseline=read_baseline(at("firewall.rules", beside, firewall.rules)),
        allowed=allowed,
        knock_ports=knock_ports(doors),
        cut=cut_openings(doors),
        opens=opened_here(doors),
        forwarded=forwarded(doors),
        queue=reader.queue,
        reader=reader.kind,
        answer=reader.answer,
        interfaces=tuple(at("firewall.interfaces", interface, name) for name in firewall.interfaces),
        strays=Strays(group=_stray_group(guard, reader), tcpflags=stray_flags(doors)) if guard.strays else None,
        knocks_a_second=_knocks_a_second(guard),
    )
    return Config(
        path=path,
        backend=_backend(firewall),
        repair=firewall.repair,
        doors=doors,
        plan=plan,
        allowed_ports=open_to_all,
        thresholds=_thresholds(guard),
        user=daemon.user,
        log=Log(syslog=log.syslog, file=at("log.file", beside, log.file)),
        warnings=tuple(warnings),
        notes=notes,
    )


def _stray_group(guard: sections.Guard, reader: sections.Reader) -> int:
    """Return the NFLOG group of strays: the number beside that of the knocks, unless one is given."""
    if guard.group is None:
        return reader.queue + 1 if reader.queue < _LAST_QUEUE else reader.queue - 1
    if not 0 <= guard.group <= _LAST_QUEUE:
        raise ValueError(f"guard.group: {guard.group} is out of range (0 to {_LAST_QUEUE})")
    if (reader.kind, reader.queue) == ("nflog", guard.group):
        raise ValueError(f"guard.group: {guard.group} is that of the knocks; a flood of strays would push them out")
    return guard.group


def _knocks_a_second(guard: sections.Guard) -> int:
    if not 0 <= guard.knocks_a_second <= _MOST_KNOCKS:
        raise ValueError(f"guard.knocks_a_second: {guard.knocks_a_second} is out of range (0 to {_MOST_KNOCKS})")
    return guard.knocks_a_second


def _thresholds(guard: sections.Guard) -> Thresholds:
    if not 0 <= guard.ports <= _MOST_PORTS:
        raise ValueError(f"guard.ports: {guard.ports} is out of range (0 to {_MOST_PORTS})")
    return Thresholds(
        ports=guard.ports,
        within=timeout("guard.within", guard.within, 0.1, 3600),
        ignore_timeout=timeout("guard.ignore_timeout", guard.ignore_timeout, 1, _LONGEST_IGNORE_TIMEOUT),
    )


def _allowed(entries: Iterable[str | int | sections.Allow]) -> tuple[tuple[Rule, ...], tuple[Port, ...]]:
    """Return the rules, in the order in which they are written, and the ports that are open to everybody."""
    rules: list[Rule] = []
    open_to_all: list[Port] = []
    for index, entry in enumerate(entries):
        path = f"firewall.allow[{index}]"
        if isinstance(entry, sections.Allow):
            rules += _allowed_to_some(path, entry)
            continue
        port = at(path, Port.parse, entry)
        open_to_all.append(port)
        rules.append(Rule(comment=f"allow {port}", protocol=port.protocol, ports=(port.number,)))
    return tuple(rules), tuple(open_to_all)


def _allowed_to_some(path: str, entry: sections.Allow) -> Iterator[Rule]:
    """Yield a rule for each port from each network; without ports everything of those networks is let in."""
    texts = [entry.source] if isinstance(entry.source, str) else entry.source
    values = entry.open if isinstance(entry.open, list) else [entry.open] if entry.open is not None else None
    if texts is None and entry.interface is None:
        raise ValueError(f"{path}: the key 'from' is missing, or 'interface'")
    for key, given in (("from", texts), ("open", values)):
        if given == []:
            raise ValueError(f"{path}.{key}: is empty; leave it out to mean all")
    sources = [None] if texts is None else [at(f"{path}.from", network, text) for text in texts]
    opened = [None] if values is None else ports(f"{path}.open", values)
    name = at(f"{path}.interface", interface, entry.interface) if entry.interface is not None else None
    for port in opened:
        for source in sources:
            what = f"allow {port}" if port else "allow everything"
            yield Rule(
                comment=what,
                protocol=port.protocol if port else None,
                ports=(port.number,) if port else (),
                source=source,
                interface=name,
            )

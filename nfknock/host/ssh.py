"""The SSH session that nfknock is called from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from nfknock.core.model import IPAddress, as_source
from nfknock.host.interfaces import towards

_VARIABLE = "SSH_CONNECTION"
_FURTHEST = 20
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Where an SSH session comes from, and to which TCP port of this host."""

    source: IPAddress
    port: int
    interface: str | None
    """Where its packets come in; None if that cannot be told."""


def session() -> Session | None:
    """Return the session that this process is called from, None without one.

    `sudo` and `su -` leave the variable out; the shell that they were called from still has it. One that is empty says
    that there is no session.
    """
    for environment in _environments():
        text = environment.get(_VARIABLE)
        if text is not None:
            return parse(text)
    return None


def parse(text: str) -> Session | None:
    """Read `192.0.2.2 50514 192.0.2.1 22` as sshd writes it; None for anything else."""
    fields = text.split()
    if len(fields) != 4:
        return None
    try:
        source, zone = _address(fields[0])
        own, _zone = _address(fields[2])
        port = int(fields[3]) if fields[3].isascii() and fields[3].isdigit() else 0
    except ValueError:
        return None
    if not 1 <= port <= 65535:
        return None
    is_same = source.version == own.version
    return Session(source=source, port=port, interface=zone or towards(source, own if is_same else None))


def _address(text: str) -> tuple[IPAddress, str | None]:
    """Read an address; one of a link has its interface behind it."""
    parsed = ip_address(text)
    zone = parsed.scope_id if isinstance(parsed, IPv6Address) else None
    return as_source(text.partition("%")[0]), zone


def _environments() -> Iterator[Mapping[str, str]]:
    yield os.environ
    pid = os.getppid()
    for _ in range(_FURTHEST):
        if pid <= 1:
            return
        yield _environment_of(pid)
        pid = _parent_of(pid)


def _environment_of(pid: int) -> Mapping[str, str]:
    """Return another process's variables, as far as they may be read."""
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            raw = file.read(_LONGEST)
    except OSError:
        return {}
    pairs = (each.partition(b"=") for each in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(content) for name, _, content in pairs}


def _parent_of(pid: int) -> int:
    try:
        # The name before it stands in brackets and may have anything in it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[1])
    except (OSError, IndexError, ValueError):
        return 0

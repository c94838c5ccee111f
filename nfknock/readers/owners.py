"""Who receives from an NFQUEUE number or an NFLOG group."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from nfknock.core.plan import ReaderKind

TITLES: dict[ReaderKind, str] = {"nfqueue": "NFQUEUE", "nflog": "NFLOG group"}
"""What goes before a number."""
TABLES: dict[ReaderKind, Path] = {
    "nfqueue": Path("/proc/net/netfilter/nfnetlink_queue"),
    "nflog": Path("/proc/net/netfilter/nfnetlink_log"),
}
"""Where the kernel lists those that are bound: number, owner, and what else each kind has."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A program that is bound; the netlink port is by custom its process id."""

    port: int

    @property
    def name(self) -> str:
        """What to call it."""
        try:
            return f"process {self.port} ({Path('/proc', str(self.port), 'comm').read_text().strip()})"
        except OSError:
            return "another program"


def row(kind: ReaderKind, number: int) -> list[str] | None:
    """Return the kernel's line about a number, None if nobody is bound to it.

    Raises OSError: PermissionError (it is for root's eyes), and FileNotFoundError where the kernel has no such kind.
    """
    lines = TABLES[kind].read_text().splitlines()
    return next((fields for fields in map(str.split, lines) if fields and fields[0] == str(number)), None)


def owner(kind: ReaderKind, number: int) -> Owner | None:
    """Return who is bound to a number, None if nobody is. Raises OSError as `row` does."""
    fields = row(kind, number)
    return Owner(int(fields[1])) if fields else None


def why_not_bound(kind: ReaderKind, number: int, key: str = "`queue` under [reader]") -> str:
    """Say why a number could not be bound to, and what to do about it; `key` is where it is configured."""
    trying = f"binding {TITLES[kind]} {number}"
    has_it = None
    with contextlib.suppress(OSError):
        has_it = owner(kind, number)
    if has_it is None:
        return f"{trying}: permission denied, or another program has it; run this as root"
    mend = f"stop that program, or choose another number with {key}"
    return f"{trying}: {has_it.name} has it already; {mend}"

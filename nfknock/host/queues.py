"""Who has an NFQUEUE number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")


@dataclass(frozen=True, slots=True)
class Owner:
    """A program that is bound to a queue; the netlink port is by custom its process id."""

    port: int

    @property
    def name(self) -> str:
        """What to call it."""
        try:
            return f"process {self.port} ({Path('/proc', str(self.port), 'comm').read_text().strip()})"
        except OSError:
            return "another program"


def owner(number: int, table: Path = _QUEUES) -> Owner | None:
    """Return who is bound to a queue, None if nobody is. Raises OSError: PermissionError, and no such queues at all."""
    for line in table.read_text().splitlines():
        fields = line.split()
        if fields and fields[0] == str(number):
            return Owner(int(fields[1]))
    return None

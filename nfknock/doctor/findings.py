"""What a check finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nfknock.config import Config
from nfknock.core.plan import ReaderKind

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how things stand, and what mends it where something is wrong."""

    check: str
    level: Level
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.mend}" if self.mend else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """The configuration that this host is looked at for; without one, what every configuration needs."""

    path: Path
    config: Config | None = None
    error: str = ""
    """Why there is no configuration, if there should be one."""

    @property
    def queue(self) -> int:
        """The configured queue, else the default one."""
        return self.config.plan.queue if self.config else 5

    @property
    def backend(self) -> str:
        """The configured backend, else the default one."""
        return self.config.backend.name if self.config else "iptables"

    @property
    def writes_legacy(self) -> bool:
        """Whether that one writes legacy x_tables."""
        return self.backend != "nftables"

    @property
    def reader(self) -> ReaderKind:
        """The configured kind of reader, else the default one."""
        return self.config.plan.reader if self.config else "nfqueue"

    @property
    def watches_strays(self) -> bool:
        """Whether packets to closed ports are to be seen, as they are by default."""
        return self.config is None or self.config.plan.strays is not None

    @property
    def limits_knocks(self) -> bool:
        """Whether the kernel is to count the knocks of each source."""
        return self.config is not None and self.config.plan.knocks_a_second > 0


Check = Callable[[str, Patient], Iterator[Finding]]

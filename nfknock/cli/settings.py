"""What the global options say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from nfknock.config import Config, load
from nfknock.config.durations import parse_duration
from nfknock.core.model import Door
from nfknock.core.plan import Plan
from nfknock.errors import ConfigError, NfknockError


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    path: Path
    is_chosen: bool
    """Whether somebody named the configuration, or it is only where it would be."""
    is_verbose: bool

    def load(self, content: bytes | None = None, *, needs_sequences: bool = True) -> Config:
        """Read the configuration, or `content` in its place, and say what was tolerated. Raises ConfigError."""
        config = load(self.path, content, needs_sequences=needs_sequences)
        for line in config.warnings:
            warn(line)
        return config

    @property
    def backend(self) -> str:
        """The configured backend; without a configuration where one would be, the default one."""
        if not self._is_there:
            return "iptables"
        return self.load(needs_sequences=False).backend

    def plan(self) -> Plan | None:
        """What the firewall should hold, None without a configuration where one would be."""
        return load(self.path, needs_sequences=False).plan if self._is_there else None

    def doors(self) -> tuple[Door, ...]:
        """The doors, none without a configuration where one would be."""
        return load(self.path, needs_sequences=False).doors if self._is_there else ()

    @property
    def _is_there(self) -> bool:
        return self.is_chosen or self.path.exists()


pass_settings = click.make_pass_decorator(Settings)


def warn(line: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"warning: {line}", err=True)


def write_secret(path: Path, text: str) -> None:
    """Create a file that only its owner can read. Raises ConfigError if there is one already, or none can be."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise NfknockError(f"{path} exists already and stays as it is; choose another with --output FILE") from None
    except OSError as exc:
        raise NfknockError(f"writing {path}: {(exc.strerror or str(exc)).lower()}") from exc
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def duration_of(option: str, text: str, longest: float) -> float:
    """Parse what an option says: seconds, 0 or from 1 to `longest`. Raises ConfigError."""
    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise ConfigError(f"{option}: {exc}") from exc
    if seconds and not 1 <= seconds <= longest:
        limit = f"{longest / 86400:g} days" if longest >= 86400 else f"{longest:g} s"
        raise ConfigError(f"{option}: {seconds:g} s is out of range (0, or 1 s to {limit})")
    return seconds

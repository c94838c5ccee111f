"""What the global options say."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nfknock.errors import ConfigError, NfknockError

if TYPE_CHECKING:
    from nfknock.config import Config
    from nfknock.config.doors import Tolerated
    from nfknock.core.model import Door
    from nfknock.core.plan import BackendChoice, Plan


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    chosen: Path | None
    """The configuration that somebody named."""
    is_verbose: bool

    @property
    def path(self) -> Path:
        """The configuration: the one that somebody named, else where it would be."""
        # Reading TOML and checking it is half the time that the client would need to start, and it has no use for it.
        from nfknock.config import DEFAULT_PATH

        return self.chosen or DEFAULT_PATH

    @property
    def is_chosen(self) -> bool:
        """Whether somebody named the configuration, or it is only where it would be."""
        return self.chosen is not None

    def load(self, content: bytes | None = None, *, tolerates: Tolerated = "nothing") -> Config:
        """Read the configuration, or `content` in its place, and say what was tolerated. Raises ConfigError."""
        from nfknock.config import load

        config = load(self.path, content, tolerates=tolerates)
        for line in config.warnings:
            warn(line)
        return config

    @property
    def backend(self) -> BackendChoice:
        """The configured backend; without a configuration where one would be, the one that stands in the firewall."""
        from nfknock.core.plan import BackendChoice

        config = self._load_quietly()
        return config.backend if config else BackendChoice(name="auto")

    def plan(self) -> Plan | None:
        """What the firewall should hold, None without a configuration where one would be."""
        config = self._load_quietly()
        return config.plan if config else None

    def doors(self) -> tuple[Door, ...]:
        """The doors, none without a configuration where one would be."""
        config = self._load_quietly()
        return config.doors if config else ()

    def _load_quietly(self) -> Config | None:
        from nfknock.config import load

        if not (self.is_chosen or self.path.exists()):
            return None
        return load(self.path, tolerates="anything")


pass_settings = click.make_pass_decorator(Settings)


def warn(line: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"warning: {line}", err=True)


def write_secret(path: Path, text: str) -> None:
    """Create a file that only its owner can read. Raises NfknockError if there is one already, or none can be.

    The daemon may be another user. What root writes in the daemon's own directory is the daemon's, and what root
    writes in a directory with the setgid bit, as the package's /etc/nfknock is, its group can read.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise NfknockError(f"{path} exists already and stays as it is; choose another with --output FILE") from None
    except OSError as exc:
        raise NfknockError(f"writing {path}: {(exc.strerror or str(exc)).lower()}") from exc
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if sys.platform != "win32" and os.geteuid() == 0:
            _share(descriptor, path.parent)
        file.write(text)


def _share(descriptor: int, directory: Path) -> None:
    from nfknock import files
    from nfknock.daemon.journal import state_directory

    if directory.resolve() == state_directory().resolve():
        files.give_away(descriptor, directory)
    elif files.is_for_group(directory):
        os.fchmod(descriptor, 0o640)


def duration_of(option: str, text: str, longest: float) -> float:
    """Parse what an option says: seconds, 0 or from 1 to `longest`. Raises ConfigError."""
    from nfknock.config.durations import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise ConfigError(f"{option}: {exc}") from exc
    if seconds and not 1 <= seconds <= longest:
        limit = f"{longest / 86400:g} days" if longest >= 86400 else f"{longest:g} s"
        raise ConfigError(f"{option}: {seconds:g} s is out of range (0, or 1 s to {limit})")
    return seconds

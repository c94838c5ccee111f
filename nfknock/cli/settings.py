"""What the global options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from nfknock.config import Config, load


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    path: Path
    is_chosen: bool
    """Whether somebody named the configuration, or it is only where it would be."""
    is_verbose: bool

    def load(self, *, needs_sequences: bool = True) -> Config:
        """Read the configuration, and say what was tolerated. Raises ConfigError."""
        config = load(self.path, needs_sequences=needs_sequences)
        for line in config.warnings:
            warn(line)
        return config

    @property
    def backend(self) -> str:
        """The configured backend; without a configuration where one would be, the default one."""
        if not (self.is_chosen or self.path.exists()):
            return "iptables"
        return self.load(needs_sequences=False).backend


pass_settings = click.make_pass_decorator(Settings)


def warn(line: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"warning: {line}", err=True)

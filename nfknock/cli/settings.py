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

    def load(self) -> Config:
        """Read the configuration. Raises ConfigError."""
        return load(self.path)


pass_settings = click.make_pass_decorator(Settings)


def warn(line: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"warning: {line}", err=True)

"""What the global options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nfknock.config import Config


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

    def load(self) -> Config:
        """Read the configuration. Raises ConfigError."""
        from nfknock.config import load

        return load(self.path)


pass_settings = click.make_pass_decorator(Settings)


def warn(line: str) -> None:
    """Say something on stderr that is no error."""
    click.echo(f"warning: {line}", err=True)

"""`sequences`: a file of one-time sequences."""

from __future__ import annotations

from pathlib import Path

import click

from nfknock import files
from nfknock.cli.settings import write_secret
from nfknock.config.template import fresh_sequence
from nfknock.core import onetime
from nfknock.core.model import LONGEST_SEQUENCE, Port
from nfknock.errors import ConfigError


@click.command()
@click.option("-n", "--count", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many.")
@click.option(
    "--length", type=click.IntRange(3, LONGEST_SEQUENCE), default=5, show_default=True, help="Knocks in each."
)
@click.option("--avoid", multiple=True, metavar="PORT", help="A port that none may use: what the host serves.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The same as FILE.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
def sequences(count: int, length: int, avoid: tuple[str, ...], output: Path | None, file: Path | None) -> None:
    """Write random one-time sequences to FILE, for both ends; without FILE to stdout."""
    if output and file:
        raise click.UsageError("name one file", click.get_current_context())
    try:
        taken = [Port.parse(text) for text in avoid]
    except ValueError as exc:
        raise ConfigError(f"--avoid: {exc}") from exc
    made: dict[tuple[Port, ...], None] = {}
    while len(made) < count:
        made[fresh_sequence(avoid=taken, knocks=length)] = None
    text = onetime.render(made)
    if len(text) > files.LARGEST:
        raise ConfigError(f"{count} sequences of {length} knocks are more than one file may hold; make fewer")
    path = output or file
    if path is None or str(path) == "-":
        click.echo(text, nl=False)
        return
    write_secret(path, text)
    click.echo(f"wrote {count} sequences to {path}; copy it to the other end, and keep both secret", err=True)

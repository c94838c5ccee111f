"""`import`: a knockd.conf becomes a configuration, and a report says what became of each line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import click

from nfknock.cli.settings import write_secret
from nfknock.errors import ConfigError
from nfknock.files import read_regular
from nfknock.knockd import KnockdError, Note, convert
from nfknock.knockd.report import Kind


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write it there; else to stdout.")
@click.option("--exact", is_flag=True, help="Keep tcpflags that no client can satisfy, and every TCP packet a knock.")
def import_(file: Path, output: Path | None, exact: bool) -> None:
    """Turn FILE, a knockd.conf, into a configuration, and say what became of its lines."""
    try:
        conversion = convert(read_regular(file), is_exact=exact)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}") from None
    except OSError as exc:
        raise ConfigError(f"the file {file} cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
    except KnockdError as exc:
        raise ConfigError(f"{file}: {exc}") from exc
    if output is None or str(output) == "-":
        # As bytes: the file is UTF-8 whatever the terminal is.
        click.echo(conversion.text.encode(), nl=False)
    else:
        write_secret(output, conversion.text)
    _report(file, conversion.notes)


def _report(file: Path, notes: tuple[Note, ...]) -> None:
    for note in notes:
        click.echo(f"{file}:{note.line}: {note.kind}: {note.text}", err=True)
    counts = Counter(note.kind for note in notes)
    click.echo(f"{file}: " + ", ".join(f"{counts[kind]} {kind}" for kind in get_args(Kind)), err=True)

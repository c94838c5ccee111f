"""`connect`: for ssh's ProxyCommand."""

from __future__ import annotations

from pathlib import Path

import click

from nfknock.cli.options import one_time, route, route_options, sequence, timeout
from nfknock.client.connect import NextSequence, Target
from nfknock.client.connect import connect as connect_to
from nfknock.client.knock import silent
from nfknock.client.pipe import pipe


@click.command()
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--sequence", "knocks", metavar="PORT[/PROTO],...", help="What to knock: 7101,8203/udp.")
@click.option("--one-time", "file", type=click.Path(path_type=Path), metavar="FILE", help="Knock its next sequence.")
@click.option("--timeout", "patience", metavar="TIME", help="Give up after so long.  [default: 10s]")
@route_options
@click.option("-d", "--delay", type=click.IntRange(0, 600_000), metavar="MS", help="Wait so long between knocks.")
@click.option("-v", "--verbose", is_flag=True, help="Say each knock on stderr.")
def connect(
    host: str,
    port: int,
    knocks: str | None,
    file: Path | None,
    patience: str | None,
    only4: bool,
    only6: bool,
    source: str | None,
    delay: int | None,
    verbose: bool,
) -> None:
    """Connect standard input and output to PORT of HOST, knocking if it does not answer.

    For ssh: ProxyCommand nfknock connect %h %p --sequence 7101,8203/udp,9307
    """
    family, origin = route(only4, only6, source)
    next_sequence = _next_sequence(knocks, file)
    target = Target(
        host=host,
        port=port,
        timeout=10.0 if patience is None else timeout(patience),
        family=family,
        source=origin,
        delay=None if delay is None else delay / 1000,
    )
    with connect_to(target, next_sequence, tell=_say if verbose else silent) as connection:
        pipe(connection)


def _next_sequence(knocks: str | None, file: Path | None) -> NextSequence:
    if (knocks is None) == (file is None):
        raise click.UsageError("give --sequence, or --one-time with a file", click.get_current_context())
    if file is not None:
        return one_time(file)
    once = sequence((knocks or "").split(","))
    return lambda: once


def _say(line: str) -> None:
    """Standard output is the connection's."""
    click.echo(line, err=True)

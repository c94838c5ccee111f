"""`knock`: the client."""

from __future__ import annotations

from pathlib import Path

import click

from nfknock.cli.options import one_time, route, route_options, sequence, timeout
from nfknock.client.hosts import resolve
from nfknock.client.knock import send_knocks, silent
from nfknock.errors import ConfigError


@click.command()
@click.argument("host")
@click.argument("ports", nargs=-1, metavar="PORT[:PROTO]...")
@click.option("-u", "--udp", is_flag=True, help="Knock with UDP where PROTO is not given.")
@click.option("-d", "--delay", type=click.IntRange(0, 600_000), metavar="MS", help="Wait between knocks.")
@route_options
@click.option("--one-time", "file", type=click.Path(path_type=Path), metavar="FILE", help="Knock its next sequence.")
@click.option("--wait", "awaited", metavar="PORT", help="Knock until this TCP port answers.")
@click.option("--timeout", "patience", metavar="TIME", help="How long --wait waits.  [default: 10s]")
@click.option("-v", "--verbose", is_flag=True, help="Print each knock.")
def knock(
    host: str,
    ports: tuple[str, ...],
    udp: bool,
    delay: int | None,
    only4: bool,
    only6: bool,
    source: str | None,
    file: Path | None,
    awaited: str | None,
    patience: str | None,
    verbose: bool,
) -> None:
    """Knock at HOST: 7101 and 7101:tcp are TCP, 7101:udp is UDP.

    With --one-time it is the next unused sequence of FILE, which is marked there first.
    """
    family, origin = route(only4, only6, source)
    if bool(ports) == bool(file):
        missing = "missing argument 'PORT[:PROTO]...'; or give --one-time with a file"
        raise click.UsageError(
            "ports and --one-time exclude each other" if file else missing, click.get_current_context()
        )
    knocks = sequence(ports, udp=udp)
    next_sequence = one_time(file) if file else lambda: knocks
    tell = click.echo if verbose else silent
    if awaited is None:
        if patience is not None:
            raise click.UsageError("--timeout is for --wait", click.get_current_context())
        # The name first: a sequence is not to be spent on a host that there is not.
        hosts = resolve(host, family)
        send_knocks(hosts, next_sequence(), delay=(delay or 0) / 1000, source=origin, tell=tell)
        return
    # Only here: a client that does not wait starts the faster for it.
    from nfknock.client.connect import Target, knock_and_wait

    target = Target(
        host=host,
        port=_tcp_port(awaited),
        timeout=10.0 if patience is None else timeout(patience),
        family=family,
        source=origin,
        delay=None if delay is None else delay / 1000,
    )
    knock_and_wait(target, next_sequence, tell=tell)
    tell(f"{host} port {target.port} answers")


def _tcp_port(text: str) -> int:
    [port] = sequence([text])
    if port.protocol != "tcp":
        raise ConfigError(f"--wait: {port} does not answer to a connection; name a TCP port")
    return port.number

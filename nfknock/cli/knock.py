"""`knock`: the client."""

from __future__ import annotations

import click

from nfknock.cli.options import route, route_options, sequence, timeout
from nfknock.client.hosts import resolve
from nfknock.client.knock import send_knocks, silent
from nfknock.errors import ConfigError


@click.command()
@click.argument("host")
@click.argument("ports", nargs=-1, required=True, metavar="PORT[:PROTO]...")
@click.option("-u", "--udp", is_flag=True, help="Knock with UDP where PROTO is not given.")
@click.option("-d", "--delay", type=click.IntRange(0, 600_000), metavar="MS", help="Wait between knocks.")
@route_options
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
    awaited: str | None,
    patience: str | None,
    verbose: bool,
) -> None:
    """Knock at HOST: 7101 and 7101:tcp are TCP, 7101:udp is UDP."""
    family, origin = route(only4, only6, source)
    knocks = sequence(ports, udp=udp)
    tell = click.echo if verbose else silent
    if awaited is None:
        if patience is not None:
            raise click.UsageError("--timeout is for --wait", click.get_current_context())
        send_knocks(resolve(host, family), knocks, delay=(delay or 0) / 1000, source=origin, tell=tell)
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
    knock_and_wait(target, lambda: knocks, tell=tell)
    tell(f"{host} port {target.port} answers")


def _tcp_port(text: str) -> int:
    [port] = sequence([text])
    if port.protocol != "tcp":
        raise ConfigError(f"--wait: {port} does not answer to a connection; name a TCP port")
    return port.number

"""`knock`: the client."""

from __future__ import annotations

import socket

import click

from nfknock.client.knock import send_knocks
from nfknock.core.model import Port
from nfknock.errors import ConfigError


@click.command()
@click.argument("host")
@click.argument("ports", nargs=-1, required=True, metavar="PORT[:PROTO]...")
@click.option("-u", "--udp", is_flag=True, help="Knock with UDP where PROTO is not given.")
@click.option("-d", "--delay", type=click.IntRange(0, 600_000), default=0, metavar="MS", help="Wait between knocks.")
@click.option("-4", "only4", is_flag=True, help="IPv4 only.")
@click.option("-6", "only6", is_flag=True, help="IPv6 only.")
@click.option("-v", "--verbose", is_flag=True, help="Print each knock.")
def knock(host: str, ports: tuple[str, ...], udp: bool, delay: int, only4: bool, only6: bool, verbose: bool) -> None:
    """Knock at HOST: 7101 and 7101:tcp are TCP, 7101:udp is UDP."""
    if only4 and only6:
        raise click.UsageError("-4 and -6 exclude each other", click.get_current_context())
    family = socket.AF_INET if only4 else socket.AF_INET6 if only6 else socket.AF_UNSPEC
    try:
        sequence = [Port.parse(f"{text}/udp" if udp and text.isdigit() else text) for text in ports]
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    send_knocks(host, sequence, delay=delay / 1000, family=family, tell=click.echo if verbose else lambda _line: None)

"""`open` and `close`: holes by hand."""

from __future__ import annotations

import time

import click

from nfknock.backends import make_backend
from nfknock.cli.settings import Settings, duration_of, pass_settings, warn
from nfknock.config.durations import format_duration
from nfknock.core.model import Hole, IPAddress, as_source
from nfknock.core.sources import is_possible_source
from nfknock.daemon import control
from nfknock.errors import ConfigError


@click.command("open")
@click.argument("door")
@click.argument("source")
@click.option("--for", "duration", metavar="TIME", help="30s, 2m, 1h; 0: until it is closed. Else the door's own.")
@pass_settings
def open_(settings: Settings, door: str, source: str, duration: str | None) -> None:
    """Open DOOR for the address SOURCE, without a knock."""
    config = settings.load(tolerates="anything")
    chosen = config.door(door)
    if not chosen.opens:
        raise ConfigError(f"the door {door} opens no port; its commands are run by a knock alone")
    address = _source(source)
    if not (opens := chosen.opens_for(address)):
        raise ConfigError(f"the door {door} opens nothing for IPv{address.version} addresses")
    seconds = chosen.open_timeout if duration is None else duration_of("--for", duration, 366 * 86400)
    now = time.time()
    hole = Hole(
        door=chosen.name,
        source=address,
        opens=opens,
        opened_at=now,
        closes_at=now + seconds if seconds else None,
    )
    [standing] = make_backend(config.backend).open([hole])
    begins_at = max(now, standing.opened_at)
    end = (
        "until it is closed" if standing.closes_at is None else f"for {format_duration(standing.closes_at - begins_at)}"
    )
    click.echo(f"{address}: {door}: opened {', '.join(map(str, standing.opens))} {end}")


@click.command()
@click.argument("names", nargs=-1, metavar="[DOOR] SOURCE")
@click.option("--all", "everything", is_flag=True, help="Close every hole.")
@pass_settings
def close(settings: Settings, names: tuple[str, ...], everything: bool) -> None:
    """Close what is open for the address SOURCE, at DOOR or at every door.

    Established sessions go on, but at doors with cut_sessions.
    """
    if everything == bool(names) or len(names) > 2:
        raise click.UsageError("give an address, a door and an address, or --all", click.get_current_context())
    backend = make_backend(settings.backend)
    source = _source(names[-1]) if names else None
    door = names[0] if len(names) == 2 else None
    keys = [hole.key for hole in backend.holes() if source in (None, hole.source) and door in (None, hole.door)]
    closed = backend.close(keys)
    control.note_closed()
    _cut(settings, closed)
    for hole in closed:
        click.echo(f"{hole.source}: {hole.door}: closed")
    if not closed:
        warn("nothing was open there")


def _cut(settings: Settings, closed: list[Hole]) -> None:
    """End the sessions that came through these holes, at doors where that is wished."""
    cutting = {door.name for door in settings.doors() if door.cut_sessions}
    meant = [hole for hole in closed if hole.door in cutting]
    if meant:
        from nfknock.backends.tracking import cut_sessions

        count = cut_sessions(meant)
        click.echo(f"{count} {'session was' if count == 1 else 'sessions were'} cut")


def _source(text: str) -> IPAddress:
    try:
        address = as_source(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if not is_possible_source(address.packed):
        raise ConfigError(f"{text} is nobody's address; a hole is for one host")
    return address

"""`apply`, `remove`, `open`, `close`: the firewall by hand."""

from __future__ import annotations

import json
import time

import click

from nfknock.backends import Change, make_backend
from nfknock.cli.settings import Settings, pass_settings, warn
from nfknock.config.durations import format_duration, parse_duration
from nfknock.core.model import Hole, IPAddress, as_source
from nfknock.core.sources import is_possible_source
from nfknock.daemon import control
from nfknock.errors import ConfigError, NfknockError


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the difference in iptables-save notation; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_settings
def apply(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Bring the firewall to what the configuration says, all at once."""
    # A guard with a door that stays shut is better than no guard.
    config = settings.load(needs_sequences=False)
    backend = make_backend(config.backend)
    warnings = backend.probe()
    if settings.is_verbose and not (dry_run or as_json):
        for line in backend.apply(config.plan, dry_run=True).difference:
            click.echo(line)
    change = backend.apply(config.plan, dry_run=dry_run)
    if not dry_run:
        control.note_removed(removed=False)
    _report(change, as_json=as_json, warnings=warnings)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_settings
def remove(settings: Settings, as_json: bool) -> None:
    """Take everything that nfknock put in out again, and restore the INPUT policy that it found."""
    backend = make_backend(settings.backend)
    # Before, or the daemon would put back what it finds missing.
    control.note_removed(removed=True)
    try:
        change = backend.remove()
    except NfknockError:
        control.note_removed(removed=False)
        raise
    _report(change, as_json=as_json, warnings=[])


@click.command("open")
@click.argument("door")
@click.argument("source")
@click.option("--for", "duration", metavar="TIME", help="30s, 2m, 1h; 0: until it is closed. Else the door's own.")
@pass_settings
def open_(settings: Settings, door: str, source: str, duration: str | None) -> None:
    """Open DOOR for the address SOURCE, without a knock."""
    config = settings.load(needs_sequences=False)
    chosen = config.door(door)
    if not chosen.opens:
        raise ConfigError(f"the door {door} opens no port; its commands are run by a knock alone")
    address = _source(source)
    if not (opens := chosen.opens_for(address)):
        raise ConfigError(f"the door {door} opens nothing for IPv{address.version} addresses")
    seconds = chosen.open_timeout if duration is None else _duration(duration)
    now = time.time()
    hole = Hole(
        door=chosen.name,
        source=address,
        opens=opens,
        opened_at=now,
        closes_at=now + seconds if seconds else None,
    )
    [standing] = make_backend(config.backend).open([hole])
    end = "until it is closed" if standing.closes_at is None else f"for {format_duration(standing.closes_at - now)}"
    click.echo(f"{address}: {door}: opened {', '.join(map(str, standing.opens))} {end}")


@click.command()
@click.argument("names", nargs=-1, metavar="[DOOR] SOURCE")
@click.option("--all", "everything", is_flag=True, help="Close every hole.")
@pass_settings
def close(settings: Settings, names: tuple[str, ...], everything: bool) -> None:
    """Close what is open for the address SOURCE, at DOOR or at every door. Established sessions go on."""
    if everything == bool(names) or len(names) > 2:
        raise click.UsageError("give an address, a door and an address, or --all", click.get_current_context())
    backend = make_backend(settings.backend)
    source = _source(names[-1]) if names else None
    door = names[0] if len(names) == 2 else None
    keys = [hole.key for hole in backend.holes() if source in (None, hole.source) and door in (None, hole.door)]
    closed = backend.close(keys)
    control.note_closed()
    for hole in closed:
        click.echo(f"{hole.source}: {hole.door}: closed")
    if not closed:
        warn("nothing was open there")


def _report(change: Change, *, as_json: bool, warnings: list[str]) -> None:
    for line in (*warnings, *change.warnings):
        warn(line)
    if as_json:
        report = {"changed": change.changed, "difference": change.difference, "warnings": [*warnings, *change.warnings]}
        click.echo(json.dumps(report))
        return
    for line in change.difference:
        click.echo(line)
    click.echo("changed" if change.changed else "unchanged")


def _source(text: str) -> IPAddress:
    try:
        address = as_source(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if not is_possible_source(address.packed):
        raise ConfigError(f"{text} is nobody's address; a hole is for one host")
    return address


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise ConfigError(f"--for: {exc}") from exc
    if seconds and not 1 <= seconds <= 366 * 86400:
        raise ConfigError(f"--for: {seconds:g} s is out of range (0, or 1 s to 366 days)")
    return seconds

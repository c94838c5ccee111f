"""`status`: open holes, straight from the kernel, and the daemon's counters."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import click

from nfknock.backends import make_backend
from nfknock.cli.settings import Settings, pass_settings, warn
from nfknock.core.model import Hole, IPAddress
from nfknock.errors import NfknockError

_NARROWEST_TABLE = 76


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON (docs/status.schema.json).")
@pass_settings
def status(settings: Settings, as_json: bool) -> None:
    """Show what is open, for whom, and for how long."""
    report = collect(settings, time.time())
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def collect(settings: Settings, now: float) -> dict[str, Any]:
    """Return the report that docs/status.schema.json describes, as of `now` (epoch seconds)."""
    name = settings.load().backend if settings.is_chosen or settings.path.exists() else "iptables"
    backend = make_backend(name)
    state = backend.state()
    holes = sorted(
        (hole for hole in backend.holes() if not hole.is_expired(now)),
        key=lambda hole: (hole.door, hole.source.version, hole.source),
    )
    sessions = _sessions(holes)
    return {
        "version": 1,
        "firewall": {"backend": backend.name, "applied": state.applied, "policy": dict(state.policy)},
        "daemon": _daemon(),
        "holes": [_hole(hole, now, sessions.get(hole.key)) for hole in holes],
    }


def _daemon() -> dict[str, Any]:
    from nfknock.daemon.control import ask_daemon

    try:
        return ask_daemon() or {"running": False}
    except NfknockError as exc:
        warn(str(exc))
        return {"running": False}


def _sessions(holes: list[Hole]) -> dict[tuple[str, IPAddress], int]:
    from nfknock.backends.tracking import count_sessions

    try:
        return count_sessions(holes)
    except NfknockError as exc:
        warn(f"sessions are not counted: {exc}")
        return {}


def _hole(hole: Hole, now: float, sessions: int | None) -> dict[str, Any]:
    return {
        "door": hole.door,
        "source": str(hole.source),
        "open": [str(port) for port in hole.ports],
        "opened_at": _instant(hole.opened_at),
        "closes_at": None if hole.closes_at is None else _instant(hole.closes_at),
        "remaining": None if hole.closes_at is None else round(hole.closes_at - now, 3),
        "packets": hole.packets,
        "bytes": hole.bytes,
        "sessions": sessions,
    }


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    firewall, daemon = report["firewall"], report["daemon"]
    policy = ", ".join(f"{family} {value or 'absent'}" for family, value in firewall["policy"].items())
    place = "in place" if firewall["applied"] else "[red]NOT in place[/]: run `nfknock apply`"
    console.print(f"firewall  {place} ({firewall['backend']}; INPUT policy {policy})")
    if daemon["running"]:
        counts = ", ".join(f"{daemon[key]} {key}" for key in ("knocks", "strays", "opened", "closed", "lost"))
        console.print(f"daemon    runs as process {daemon['pid']} ({counts})")
    else:
        console.print("daemon    [red]does not run[/]: knocks are dropped; start it with `nfknock run`")
    if not report["holes"]:
        console.print("holes     none")
        return
    if console.width < _NARROWEST_TABLE:
        for hole in report["holes"]:
            console.print(f"{hole['door']}  {hole['source']}", soft_wrap=True, markup=False)
            console.print(
                f"  {', '.join(hole['open'])}, {_remaining(hole)}, {_sessions_of(hole)} sessions", markup=False
            )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("door", overflow="fold")
    # An address is there to be copied: whole, or not at all.
    table.add_column("source", no_wrap=True)
    table.add_column("open", overflow="fold")
    for heading in ("closes in", "sessions", "packets"):
        table.add_column(heading, justify="right", overflow="fold")
    for hole in report["holes"]:
        words = [hole["door"], hole["source"], ", ".join(hole["open"])]
        table.add_row(*words, _remaining(hole), _sessions_of(hole), str(hole["packets"]))
    console.print(table)


def _remaining(hole: dict[str, Any]) -> str:
    return "no end" if hole["remaining"] is None else f"{hole['remaining']:.0f} s"


def _sessions_of(hole: dict[str, Any]) -> str:
    return "?" if hole["sessions"] is None else str(hole["sessions"])

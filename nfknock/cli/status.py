"""`status`: open holes, straight from the kernel, and the daemon's counters."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from nfknock.backends import Backend, FirewallState, make_backend
from nfknock.cli.settings import Settings, pass_settings, warn
from nfknock.core.lint import FEW_LEFT
from nfknock.core.model import Hole
from nfknock.core.plan import Plan
from nfknock.errors import NfknockError

if TYPE_CHECKING:
    from rich.console import Console

# As iptables-save has them, and as nft.
_PORTS = re.compile(r"(dports? )(?:\{[^}]*\}|[\d,]+)")
_HEADINGS = ("door", "source", "open", "closes", "sessions", "packets")
_TEXT_COLUMNS = 3


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
    plan = settings.plan()
    backend = make_backend(settings.backend)
    state = backend.state(plan)
    holes = sorted(
        (hole for hole in backend.holes() if not hole.is_expired(now)),
        key=lambda hole: (hole.door, hole.source.version, hole.source.packed),
    )
    return {
        "version": 1,
        "firewall": _firewall(backend, state, plan),
        "daemon": _daemon(),
        "holes": [_hole(hole, now, sessions) for hole, sessions in zip(holes, _sessions(holes), strict=True)],
    }


def _firewall(backend: Backend, state: FirewallState, plan: Plan | None) -> dict[str, Any]:
    report = {"backend": backend.name, "applied": state.applied, "policy": dict(state.policy)}
    if state.applied:
        return report
    difference = backend.apply(plan, dry_run=True).difference if plan else ()
    return {**report, "damage": list(state.damage), "difference": [_without_ports(line) for line in difference]}


def _without_ports(line: str) -> str:
    """Keep the knock ports out of a rule: what `status` says ends up in monitoring, and they are secret."""
    return _PORTS.sub(r"\1…", line) if "nfknock: knocks" in line else line


def _daemon() -> dict[str, Any]:
    from nfknock.daemon.control import ask_daemon

    try:
        return ask_daemon() or {"running": False}
    except NfknockError as exc:
        warn(str(exc))
        return {"running": False}


def _sessions(holes: list[Hole]) -> Sequence[int | None]:
    from nfknock.backends.tracking import count_sessions

    try:
        return count_sessions(holes)
    except NfknockError as exc:
        warn(f"sessions are not counted: {exc}")
        return [None] * len(holes)


def _hole(hole: Hole, now: float, sessions: int | None) -> dict[str, Any]:
    forwarded = [{"port": str(each.port), "to": str(each.to)} for each in hole.opens if each.to]
    report = {
        "door": hole.door,
        "source": str(hole.source),
        "open": [str(opening.port) for opening in hole.opens],
        "opened_at": _instant(hole.opened_at),
        "closes_at": None if hole.closes_at is None else _instant(hole.closes_at),
        "remaining": None if hole.closes_at is None else round(hole.closes_at - now, 3),
        "packets": hole.packets,
        "bytes": hole.bytes,
        "sessions": sessions,
    }
    return {**report, "forwarded": forwarded} if forwarded else report


def _instant(at: float) -> str:
    second, microseconds = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microseconds // 1000:03}Z"


@cache
def _second(at: int) -> str:
    """Return a whole second; thousands of holes begin and end within few."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    firewall, daemon = report["firewall"], report["daemon"]
    policy = ", ".join(f"{family} {value or 'absent'}" for family, value in firewall["policy"].items())
    place = "in place" if firewall["applied"] else "[red]NOT in place[/]: run `nfknock apply`"
    console.print(f"firewall  {place} ({firewall['backend']}; INPUT policy {policy})")
    for line in firewall.get("damage", ()):
        console.print(f"          {line}", markup=False)
    if daemon["running"]:
        counts = ", ".join(f"{daemon[key]} {key}" for key in ("knocks", "strays", "opened", "closed", "lost"))
        console.print(f"daemon    process {daemon['pid']}: {counts}")
        _print_doors(console, daemon)
    else:
        effect = ": knocks are dropped" if firewall["applied"] else ""
        console.print(f"daemon    [red]does not run[/]{effect}; start it with `nfknock run`")
    if not report["holes"]:
        console.print("holes     none")
        return
    rows = [_words(hole) for hole in report["holes"]]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > console.width:
        # An address is there to be copied: whole, or there is no table.
        for door, source, ports, remaining, sessions, packets in rows:
            console.print(f"{door}  {source}", soft_wrap=True, markup=False)
            console.print(f"  {ports}; closes {remaining}; sessions {sessions}; packets {packets}", markup=False)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if index < _TEXT_COLUMNS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_doors(console: Console, daemon: dict[str, Any]) -> None:
    """Say who is kept from the doors, and what these have besides holes. An older daemon does not tell."""
    if trouble := daemon.get("strays_trouble"):
        console.print(f"guard     port scans are not seen: {trouble}", style="red", markup=False, soft_wrap=True)
    if ignored := daemon.get("sources_ignored", 0):
        packets = daemon["ignored"]
        console.print(
            f"guard     {ignored} {'source' if ignored == 1 else 'sources'} ignored, {packets} of their knocks"
        )
    for door, left in daemon.get("one_time_left", {}).items():
        scarce = left <= FEW_LEFT
        console.print(f"one-time  {door}: {'[red]' if scarce else ''}{left} left{'[/]' if scarce else ''}")
    running, waiting = daemon.get("commands_running", 0), daemon.get("stop_commands_waiting", 0)
    if running or waiting:
        console.print(
            f"commands  {running} running, {waiting} stop {'command' if waiting == 1 else 'commands'} to come"
        )


def _words(hole: dict[str, Any]) -> tuple[str, ...]:
    """Return what the table has of a hole, in the order of its headings."""
    remaining = "never" if hole["remaining"] is None else f"in {hole['remaining']:.0f} s"
    sessions = "?" if hole["sessions"] is None else str(hole["sessions"])
    forwarded = hole.get("forwarded", [])
    # Those come last, in both.
    opens = hole["open"][: len(hole["open"]) - len(forwarded)]
    opens += [f"{each['port']} to {each['to']}" for each in forwarded]
    return hole["door"], hole["source"], ", ".join(opens), remaining, sessions, str(hole["packets"])

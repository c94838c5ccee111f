"""`simulate`: what the daemon would have said to a capture."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from nfknock import onetime
from nfknock.cli.settings import Settings, pass_settings
from nfknock.config.durations import format_duration
from nfknock.core.model import Hole
from nfknock.daemon.simulation import Line, Simulation
from nfknock.readers.capture import read_capture


@click.command()
@click.argument("capture", type=click.Path(path_type=Path))
@click.option("--times", is_flag=True, help="Put the instant of the capture (UTC) in front of each line.")
@pass_settings
def simulate(settings: Settings, capture: Path, times: bool) -> None:
    """Say what the daemon would have logged of the packets in CAPTURE (pcap or pcapng); change nothing.

    The clock is the capture's. What would be open at its end is said on stderr.
    """
    config = settings.load()
    files = {
        door.name: onetime.read(Path(door.one_time.path), closing=door.close_sequence)
        for door in config.doors
        if door.one_time
    }
    simulation = Simulation(config, files)
    for line in simulation.run(read_capture(capture)):
        click.echo(f"{_instant(line)} {line.text}" if times else line.text)
    for hole in simulation.holes:
        click.echo(_still_open(hole, simulation.now), err=True)


def _instant(line: Line) -> str:
    return datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _still_open(hole: Hole, now: float) -> str:
    ports = ", ".join(map(str, hole.opens))
    end = "until it is closed" if hole.closes_at is None else f"for {format_duration(hole.closes_at - now)} more"
    return f"{hole.source}: {hole.door}: at the end of the capture {ports} is open, {end}"

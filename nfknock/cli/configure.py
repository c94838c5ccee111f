"""`init` and `check`: a configuration, and whether it is right."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from nfknock import files
from nfknock.cli.settings import Settings, pass_settings, warn, write_secret
from nfknock.config import load
from nfknock.config.template import fresh_sequence, render
from nfknock.core.lint import lint
from nfknock.core.model import Door, Opening, Port
from nfknock.errors import ConfigError


@click.command()
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there; - is stdout.")
@click.option("--door", "name", default="ssh", show_default=True, metavar="NAME", help="The door's name.")
@click.option("--open", "opens", default=("22/tcp",), multiple=True, show_default=True, metavar="PORT")
@pass_settings
def init(settings: Settings, output: Path | None, name: str, opens: tuple[str, ...]) -> None:
    """Write a configuration with a fresh random door, and print the line that the client needs."""
    try:
        ports = tuple(Port.parse(text) for text in opens)
        sequence = fresh_sequence(avoid=ports)
        Door(name=name, sequence=sequence, opens=tuple(map(Opening, ports)))
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    path = output or settings.path
    text = render(name, sequence, ports)
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_secret(path, text)
    knocks = " ".join(str(port.number) if port.protocol == "tcp" else f"{port.number}:udp" for port in sequence)
    is_stdout = str(path) == "-"
    wrote = "" if is_stdout else f"wrote {path}; "
    click.echo(f"{wrote}to open the door {name}, run on the client:", err=True)
    click.echo(f"nfknock knock {socket.gethostname()} {knocks}", err=is_stdout)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@pass_settings
def check(settings: Settings, file: Path | None, strict: bool) -> int:
    """Say whether a configuration is right. What is unwise about it is said, too."""
    path = file or settings.path
    config = load(path)
    for note in config.notes:
        click.echo(note, err=True)
    warnings = list(lint(config.doors, config.allowed_ports, config.backend.longest))
    secrets = (path, *(Path(door.one_time.path) for door in config.doors if door.one_time))
    warnings += [
        f"others can read {secret}, and the sequence is a secret; run: chmod 600 {secret}"
        for secret in secrets
        if files.exposed(secret)
    ]
    warnings += _missing_programs(config.doors)
    for line in warnings:
        warn(line)
    if warnings and strict:
        return 2
    doors = len(config.doors)
    click.echo(f"{path}: fine, {doors} {'door' if doors == 1 else 'doors'}")
    return 0


def _missing_programs(doors: Iterable[Door]) -> Iterator[str]:
    """Yield a warning for each command that could not be started on this host."""
    for door in doors:
        if door.commands is None:
            continue
        for key in ("start", "start6", "stop", "stop6"):
            command = getattr(door.commands, key)
            # A command runs in /, so that is where a path begins that does not say where.
            if command and shutil.which(str(Path("/", command[0]) if "/" in command[0] else command[0])) is None:
                name = f"{key.removesuffix('6')}_command{'_6' if key.endswith('6') else ''}"
                yield f"doors.{door.name}.{name}: there is no program {command[0]} here that can be run"

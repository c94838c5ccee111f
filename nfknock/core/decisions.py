"""What the tracker decides: what has happened, and what is to be done about it."""

from __future__ import annotations

from dataclasses import dataclass

from nfknock.core.model import IPAddress, Sequence


@dataclass(frozen=True, slots=True)
class StageReached:
    """The source matched `stage` knocks of the door's sequence, or of the one that closes it."""

    door: str
    source: IPAddress
    stage: int
    is_closing: bool = False


@dataclass(frozen=True, slots=True)
class OpenDoor:
    """The source knocked a whole sequence of the door: let it in."""

    door: str
    source: IPAddress
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class CloseDoor:
    """The source knocked the closing sequence: shut what is open for it."""

    door: str
    source: IPAddress


@dataclass(frozen=True, slots=True)
class SequenceTimeout:
    """An attempt to open that had got as far as `stage` ran out of time."""

    door: str
    source: IPAddress
    stage: int


@dataclass(frozen=True, slots=True)
class SourceIgnored:
    """The source hit so many closed ports that it is ignored for a while; said once a minute at most."""

    source: IPAddress
    ports: int
    ignore_timeout: float


Command = StageReached | OpenDoor | CloseDoor | SequenceTimeout | SourceIgnored


def add_once(command: Command, commands: list[Command]) -> None:
    """Say a thing once, also where several one-time sequences of a door begin alike."""
    if command not in commands:
        commands.append(command)

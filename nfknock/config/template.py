"""A first configuration with a door that nobody can guess."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import pairwise

from nfknock.core.model import Port, Protocol

_KNOCKS = 5
# Above the ports that need root, below the ones that systems hand out by themselves (Linux: from 32768).
_LOWEST, _HIGHEST = 1024, 32767


def fresh_sequence(
    avoid: Sequence[Port] = (), randbelow: Callable[[int], int] = secrets.randbelow, *, knocks: int = _KNOCKS
) -> tuple[Port, ...]:
    """Return a random sequence: TCP and UDP mixed, no port twice, neither ascending nor descending."""
    taken = {port.number for port in avoid}
    while True:
        numbers = [_LOWEST + randbelow(_HIGHEST - _LOWEST + 1) for _ in range(knocks)]
        protocols: list[Protocol] = [("tcp", "udp")[randbelow(2)] for _ in range(knocks)]
        rises = [a < b for a, b in pairwise(numbers)]
        if len({*numbers, *taken}) == knocks + len(taken) and len(set(protocols)) == 2 and len(set(rises)) == 2:
            return tuple(Port(number, protocol) for number, protocol in zip(numbers, protocols, strict=True))


def render(name: str, sequence: Sequence[Port], opens: Sequence[Port]) -> str:
    """Return the text of a commented configuration file with this one door."""
    template = (resources.files("nfknock.rules") / "template.toml").read_text(encoding="utf-8")
    return (
        template.replace("@NAME@", f'"{name}"' if "." in name else name)
        .replace("@SEQUENCE@", json.dumps([str(port) for port in sequence]))
        .replace("@OPEN@", json.dumps([str(port) for port in opens]))
    )

"""What works but is unwise, in words for the administrator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise

from nfknock.core.model import Door, Port

_FEWEST_KNOCKS = 3
FEW_LEFT = 5
# Out of knockd's manual and the tutorials; 44 of 108 published configurations still have the first.
_FAMOUS = frozenset(
    (
        (7000, 8000, 9000),
        (9000, 8000, 7000),
        (1000, 2000, 3000),
        (1111, 2222, 3333),
        (1234, 2345, 3456),
        (2222, 3333, 4444),
        (7000, 7001, 7002),
        (5000, 6000, 7000),
        (10000, 20000, 30000),
    )
)


def lint(doors: Iterable[Door], allowed: Iterable[Port] = (), longest: int | None = None) -> Iterator[str]:
    """Yield one line for each thing that an administrator should know about these doors.

    `longest` is how many seconds the backend keeps a hole for at most that ends at all.
    """
    doors = tuple(doors)
    for door in doors:
        for text in _lint_sequence(door.sequence) if door.sequence else ():
            yield f"doors.{door.name}.sequence: {text}"
        if door.one_time and door.one_time.left <= FEW_LEFT:
            yield f"doors.{door.name}.one_time_sequences: {few_left(door.one_time.left)}"
        if door.opens and not door.open_timeout and not door.close_sequence:
            yield f"doors.{door.name}.open_timeout: 0 without a close_sequence leaves the door open for good"
        if door.opens and longest is not None and door.open_timeout > longest:
            days = longest // 86400
            yield f"doors.{door.name}.open_timeout: this backend shuts a hole after {days} days, be it meant for longer"
    yield from _lint_pairs(tuple(door for door in doors if door.sequence))
    yield from _lint_open_ports(doors, frozenset(allowed))


def few_left(count: int) -> str:
    """Say how many one-time sequences are left."""
    if not count:
        return "the last one is used; the door stays shut until the file has new ones and is read anew"
    are = "1 is left" if count == 1 else f"{count} are left"
    return f"{are}; `nfknock sequences` makes new ones, for both ends"


def _lint_sequence(sequence: tuple[Port, ...]) -> Iterator[str]:
    numbers = tuple(port.number for port in sequence)
    if numbers in _FAMOUS:
        yield "everybody knows this one; `nfknock init` makes a fresh one"
    if len(numbers) < _FEWEST_KNOCKS:
        yield f"fewer than {_FEWEST_KNOCKS} knocks are soon guessed"
    if len(numbers) > 1 and all(a < b for a, b in pairwise(numbers)):
        yield "ascending ports can be opened by a port scan"
    if len(numbers) > 1 and all(a > b for a, b in pairwise(numbers)):
        yield "descending ports can be opened by a port scan that runs downwards"
    if {port.protocol for port in sequence} == {"tcp"}:
        yield "TCP alone is easier to find than TCP and UDP mixed"


def _lint_pairs(doors: tuple[Door, ...]) -> Iterator[str]:
    for one, other in combinations(doors, 2):
        short, long = sorted((one, other), key=lambda door: len(door.sequence))
        if long.sequence[: len(short.sequence)] == short.sequence:
            yield f"doors.{short.name}.sequence: is the start of doors.{long.name}.sequence, so that opens both"
        elif one.sequence[:1] == other.sequence[:1]:
            yield f"doors.{one.name}.sequence: begins like doors.{other.name}.sequence"


def _lint_open_ports(doors: tuple[Door, ...], allowed: frozenset[Port]) -> Iterator[str]:
    opened = {port: door.name for door in doors for port in door.opens_here}
    for door in doors:
        for port in sorted(door.knock_ports):
            # Which one it is, is not said: the administrator can see it in the file, and nobody else is to know.
            if port in allowed:
                yield f"doors.{door.name}.sequence: one of its ports is allowed, so a knock there is never seen"
            elif port in opened:
                opener = opened[port]
                yield f"doors.{door.name}.sequence: one of its ports is opened by doors.{opener}, and then never seen"

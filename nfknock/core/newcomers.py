"""First knocks, when there are too many of them for each to have its own entry in a dictionary.

A table of fixed size, as a cache of a processor has it: the source's hash says in which row it stands, and when a row
is full its oldest goes. The hash has a key that no stranger knows, so nobody can aim at the row of somebody else. With
100,000 first knocks a second from made-up addresses one in 1,000 is gone after a second, one in 8 after five.
"""

from __future__ import annotations

import secrets
from array import array
from math import inf
from typing import NamedTuple

from nfknock.core.packet import code_of

# 28 bytes each.
MOST_NEWCOMERS = 1 << 20
_ROW = 4
_CODE_BITS = 24


class FirstKnock(NamedTuple):
    """One first knock: by which packet (`Packet.echo`), and when."""

    echo: int
    at: float


class Newcomers:
    """Remembers first knocks by their sources."""

    def __init__(self, size: int = MOST_NEWCOMERS) -> None:
        """Make room for `size` of them, a power of two."""
        self._key = secrets.token_bytes(8)
        self._rows = size // _ROW - 1
        self._marks = array("q", bytes(8 * size))
        self._times = array("d", [-inf]) * size
        self._highs = array("Q", bytes(8 * size))
        self._codes = array("I", bytes(4 * size))

    def add(self, source: bytes, echo: int, now: float, echo_timeout: float = inf) -> float:
        """Remember a first knock; return when that was knocked which had to go for it, -inf if nothing had to.

        After so many seconds the same packet is no echo any more: it is a knock of its own.
        """
        mark = hash(self._key + source) | 1  # an empty place has 0
        first = oldest = (mark >> 1 & self._rows) * _ROW
        marks, times = self._marks, self._times
        for at in range(first, first + _ROW):
            if marks[at] == mark and self._echo(at) == echo:
                if now - times[at] > echo_timeout:
                    times[at] = now
                return -inf
            if times[at] < times[oldest]:
                oldest = at
        gone = times[oldest]
        marks[oldest], times[oldest] = mark, now
        # A number of 72 bits has no array of its own.
        self._highs[oldest], self._codes[oldest] = echo >> _CODE_BITS, code_of(echo)
        return gone

    def take(self, source: bytes) -> list[FirstKnock]:
        """Return the first knocks of a source, oldest first, and forget them."""
        mark = hash(self._key + source) | 1
        first = (mark >> 1 & self._rows) * _ROW
        found = []
        for at in range(first, first + _ROW):
            if self._marks[at] == mark:
                found.append(FirstKnock(self._echo(at), self._times[at]))
                self._marks[at], self._times[at] = 0, -inf
        return sorted(found, key=lambda knock: knock.at)

    def _echo(self, at: int) -> int:
        return self._highs[at] << _CODE_BITS | self._codes[at]

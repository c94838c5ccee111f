"""What a hole is stored as: the one thing in which the backends iptables and ipset differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from nfknock.backends import Strange
from nfknock.backends.iptables.layout import FORWARD_HOLES, FORWARDED, HOLES, KNOCKS
from nfknock.backends.xtables.table import FilterTable
from nfknock.core.model import Family, Hole, IPAddress, Opening

Key = tuple[str, IPAddress]


class Store(Protocol):
    """Holes of one family at a time; the table is that family's, read under the xtables lock or edited in memory.

    Whether a verb edits the table or writes elsewhere is the store's business: `writing` makes it one change.
    """

    name: str

    def probe(self, family: Family) -> None:
        """Find out whether this host can do it. Raises BackendError."""

    def writing(self) -> AbstractContextManager[None]:
        """Take back what was written beside the tables if anything goes wrong meanwhile."""

    def is_in(self, table: FilterTable) -> bool:
        """Whether it is this store that the chains of holes are made for."""

    def settle(self, table: FilterTable, chains: Iterable[str]) -> bool:
        """Make these chains, which are there, this store's: what is another's goes. False if they were."""

    def holes(self, table: FilterTable) -> list[Hole]:
        """Return what is open."""

    def dig(self, table: FilterTable, wanted: Mapping[Key, Hole], now: float) -> list[Hole]:
        """Open these holes, or renew those that stand; return them as they then stand."""

    def fill_in(
        self, table: FilterTable, is_meant: Callable[[Hole], bool], keys: Collection[Key] | None = None
    ) -> list[Hole]:
        """Shut the parts of holes that are meant, among these alone if they are given; return what was shut.

        A part is a hole with one opening.
        """

    def lost(self, table: FilterTable, chains: Iterable[str]) -> Callable[[Hole, Opening], bool]:
        """Look, before a damaged table is put right, what is missing: return whether that part of a hole is."""

    def put_back(self, table: FilterTable, hole: Hole, now: float) -> None:
        """Open a hole that is missing."""

    def clear_out(
        self, table: FilterTable, doors: Mapping[str, frozenset[Opening]]
    ) -> tuple[list[Strange], list[Hole]]:
        """Take out whatever is no part of a hole of these doors, as it was written; return that, and what is left."""

    def damage(self, table: FilterTable, chains: Iterable[str]) -> list[str]:
        """Say what is wrong with these chains of holes, which are there, and with what they look at."""


def hole_chains(table: FilterTable) -> list[str]:
    """Return the chains of holes that are there."""
    chains = table.chains()
    return [chain for chain in (HOLES, FORWARD_HOLES) if chain in chains]


def has_rules_of_holes(table: FilterTable) -> bool:
    """Whether anything stands where holes do, be it holes or what looks at them."""
    return any(table.entries(chain) for chain in hole_chains(table))


def looks_at_sets(table: FilterTable) -> bool:
    """Whether the holes of this table are in sets."""
    return any("set" in entry.matches() for chain in hole_chains(table) for entry in table.entries(chain))


def is_flushed(table: FilterTable, chain: str) -> bool:
    """Whether somebody flushed a chain of holes; whoever flushes flushes everything.

    Where our other rules stand, what the chain has is what there is.
    """
    beside = KNOCKS if chain == HOLES else FORWARDED
    chains = table.chains()
    return chain not in chains or not any(table.entries(each) for each in (chain, beside) if each in chains)


def why_strange(hole: Hole, doors: Mapping[str, frozenset[Opening]]) -> str:
    """Say why this is no part of a hole of these doors, "" if it is."""
    if hole.door not in doors:
        return "there is no such door any more"
    return "" if doors[hole.door].issuperset(hole.opens) else "the door does not open that any more"

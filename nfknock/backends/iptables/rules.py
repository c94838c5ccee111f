"""Holes as rules of the chains of holes: one for each of a hole's openings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from ipaddress import ip_address

from nfknock.backends import Strange
from nfknock.backends.iptables import layout, record
from nfknock.backends.iptables.layout import HOLES
from nfknock.backends.iptables.store import Key, hole_chains, is_flushed, looks_at_sets, why_strange
from nfknock.backends.xtables.entry import Entry
from nfknock.backends.xtables.table import FilterTable
from nfknock.core.model import Family, Hole, Opening, Port


class RuleStore:
    """A rule for each opening, which ends by date. See `Store` for the verbs: all of them edit the table."""

    name = "iptables"

    def probe(self, family: Family) -> None:
        # Loads every extension that a hole needs: what is missing is found now, and the first knock is not slower.
        record.entries_of(_example(family))

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_in(self, table: FilterTable) -> bool:
        return HOLES in table.chains() and not looks_at_sets(table)

    def settle(self, table: FilterTable, chains: Iterable[str]) -> bool:
        others = [(chain, entry) for chain in chains for entry in table.entries(chain) if "set" in entry.matches()]
        for chain, entry in others:
            table.delete(chain, entry)
        return bool(others)

    def holes(self, table: FilterTable) -> list[Hole]:
        return record.read_holes(entry for chain in hole_chains(table) for entry in table.entries(chain))

    def dig(self, table: FilterTable, wanted: Mapping[Key, Hole], now: float) -> list[Hole]:
        standing = dict(wanted)
        sources = {hole.source.packed for hole in standing.values()}
        older: list[Entry] = []
        for chain in hole_chains(table):
            near = [entry for entry in table.entries(chain) if entry.packed_source in sources]
            same = [(entry, part) for entry, part in record.parts(near) if part.key in standing]
            for entry, _part in same:
                table.delete(chain, entry)
            older += [entry for entry, part in same if not part.is_expired(now)]
        for hole in record.read_holes(older):
            standing[hole.key] = standing[hole.key].renewed(hole)
        for hole in standing.values():
            self.put_back(table, hole, now)
        return list(standing.values())

    def fill_in(
        self, table: FilterTable, is_meant: Callable[[Hole], bool], keys: Collection[Key] | None = None
    ) -> list[Hole]:
        gone: list[Entry] = []
        for chain in hole_chains(table):
            parts = record.parts(table.entries(chain))
            mine = [entry for entry, part in parts if (keys is None or part.key in keys) and is_meant(part)]
            for entry in mine:
                table.delete(chain, entry)
            gone += mine
        return record.read_holes(gone)

    def lost(self, table: FilterTable, chains: Iterable[str]) -> Callable[[Hole, Opening], bool]:
        flushed = [chain for chain in chains if is_flushed(table, chain)]
        return lambda _hole, opening: layout.holes_chain(opening) in flushed

    def put_back(self, table: FilterTable, hole: Hole, now: float) -> None:  # noqa: ARG002  (rules end by date)
        for chain, entry in record.entries_of(hole):
            table.append(chain, entry)

    def clear_out(
        self, table: FilterTable, doors: Mapping[str, frozenset[Opening]]
    ) -> tuple[list[Strange], list[Hole]]:
        left: list[Hole] = []
        gone: dict[str, list[Entry]] = {}
        seen: set[object] = set()
        for chain in hole_chains(table):
            parts = {id(entry): hole for entry, hole in record.parts(table.entries(chain))}
            for entry in table.entries(chain):
                part = parts.get(id(entry))
                reason = _why_strange(chain, entry, part, doors, seen)
                if part and not reason:
                    left.append(part)
                else:
                    table.delete(chain, entry)
                    gone.setdefault(reason, []).append(entry)
        strange: list[Strange] = []
        for reason, entries in gone.items():
            holes = record.read_holes(entries)
            strange += [Strange(hole=hole, reason=reason) for hole in holes]
            strange += [] if holes else [Strange(hole=None, reason=f"{table.family}: {reason}")]
        return strange, record.join(left)

    def damage(self, table: FilterTable, chains: Iterable[str]) -> list[str]:  # noqa: ARG002
        # Which rules it should have is known to nobody but the chain itself.
        return ["the holes are in sets, by the backend ipset"] if looks_at_sets(table) else []


def _why_strange(
    chain: str, entry: Entry, hole: Hole | None, doors: Mapping[str, frozenset[Opening]], seen: set[object]
) -> str:
    """Say why a rule has no place in this chain of holes, "" if it has."""
    if hole is None:
        return f"a rule in {chain} that is no hole was taken out"
    if reason := why_strange(hole, doors):
        return reason
    [written] = record.encode(hole)
    if not written.equals(entry) or chain != layout.holes_chain(hole.opens[0]):
        return "its rule was edited"
    if (hole.key, hole.opens) in seen:
        return "its rule stood twice"
    seen.add((hole.key, hole.opens))
    return ""


def _example(family: Family) -> Hole:
    source = ip_address("192.0.2.2" if family == "ipv4" else "2001:db8::2")
    opens = (Opening(Port(1)), Opening(Port(1, "udp")))
    return Hole(door="example", source=source, opens=opens, opened_at=0.0, closes_at=1.0)

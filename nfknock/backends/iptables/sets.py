"""Holes as entries of sets: each chain of holes has one rule, which never changes and looks at a list of sets.

A door has a set of its own in that list, so holes of two doors to one port are two entries, each with its own end.
What stands where: docs/design/0015. A set is made when its door first opens, and before it is looked at; so nothing of
the tables has to be written for a hole, or for a new door.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import blake2s

from nfknock.backends import Strange
from nfknock.backends.ipset.entry import Entry
from nfknock.backends.ipset.kernel import Sets
from nfknock.backends.iptables import layout, record
from nfknock.backends.iptables.layout import FORWARD_HOLES, HOLES
from nfknock.backends.iptables.store import Key, hole_chains, is_flushed, looks_at_sets, why_strange
from nfknock.backends.labels import counted_end, label_of, read_label
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.table import FilterTable
from nfknock.core.model import Family, Hole, Opening
from nfknock.core.plan import LONGEST_IN_SET
from nfknock.errors import BackendError

_LISTS: dict[str, dict[Family, str]] = {
    HOLES: {"ipv4": "nfknock4", "ipv6": "nfknock6"},
    FORWARD_HOLES: {"ipv4": "nfknock4f", "ipv6": "nfknock6f"},
}
_TYPES = {HOLES: "hash:ip,port", FORWARD_HOLES: "hash:ip,port,ip"}
# Of the kernel's 31 bytes for a set's name, what is left for a door's.
_LONGEST_NAME = 20
# So many holes are opened without a look at what else is there.
_FEW = 16


class SetStore:
    """An entry for each opening, which ends by the kernel's own count. See `Store` for the verbs."""

    name = "ipset"

    def __init__(self, sets: Sets, clock: Callable[[], float]) -> None:
        self._sets = sets
        self._clock = clock

    def probe(self, family: Family) -> None:
        with self._sets.rehearsing():
            for kind in ("list:set", *_TYPES.values()):
                if not self._sets.supports(kind):
                    raise BackendError(f"this kernel has no sets of type {kind}; use the backend iptables")
            listed = _LISTS[HOLES][family]
            self._sets.ensure_list(listed)
            # Finds out about the extension as well.
            binding.encode(family, layout.sets_spec(HOLES, self._sets.stand_ins.get(listed, listed)))

    def writing(self) -> AbstractContextManager[None]:
        return self._sets.writing()

    def is_in(self, table: FilterTable) -> bool:
        return looks_at_sets(table)

    def settle(self, table: FilterTable, chains: Iterable[str]) -> bool:
        is_changed = False
        for chain in chains:
            listed = _LISTS[chain][table.family]
            self._sets.ensure_list(listed)
            spec = layout.sets_spec(chain, self._sets.stand_ins.get(listed, listed))
            rules = [binding.encode(table.family, spec)]
            if not table.holds(chain, rules):
                table.fill(chain, (rule.entry for rule in rules))
                is_changed = True
            members = self._sets.members(listed)
            heads = self._sets.heads()
            # What is missing by now is made when it is needed.
            self._sets.used -= {name for name in self._sets.used - heads.keys() if name.startswith(f"{listed}-")}
            for name, head in heads.items():
                if not name.startswith(f"{listed}-"):
                    continue
                if name not in members:
                    is_changed |= self._sets.join(listed, name)
                if head.size != self._sets.size:
                    self._sets.resize(name, table.family, _TYPES[chain])
                    is_changed = True
        return is_changed

    def holes(self, table: FilterTable) -> list[Hole]:
        return _join(part for _name, _entry, part in self._parts(table, _looked_at(table)) if part)

    def dig(self, table: FilterTable, wanted: Mapping[Key, Hole], now: float) -> list[Hole]:
        mark = self._sets.mark()
        standing = self._dig(table, wanted, now)
        if standing is None:
            # Another process had opened there since we looked.
            self._sets.take_back(mark)
            self._sets.forget()
            standing = self._dig(table, wanted, now)
        assert standing is not None  # whatever is there was read, and written over
        return standing

    def fill_in(
        self, table: FilterTable, is_meant: Callable[[Hole], bool], keys: Collection[Key] | None = None
    ) -> list[Hole]:
        gone = [
            (name, entry, part)
            for name, entry, part in self._parts(table, _looked_at(table), keys)
            if entry and part and (keys is None or part.key in keys) and is_meant(part)
        ]
        for name, entries in _grouped((name, entry) for name, entry, _part in gone).items():
            self._sets.take(name, entries)
        return _join(part for _name, _entry, part in gone)

    def lost(self, table: FilterTable, chains: Iterable[str]) -> Callable[[Hole, Opening], bool]:
        flushed = {chain for chain in chains if is_flushed(table, chain)}
        intact = {name for chain in chains for name in self._sets.members(_LISTS[chain][table.family])}
        # What a set that nobody touched has is what there is; whoever flushes flushes everything.
        candidates = {name: self._openings(name) for chain in chains for name in self._names(table.family, chain)}

        def is_lost(hole: Hole, opening: Opening) -> bool:
            name = _set_name(hole, opening)
            if name in intact and layout.holes_chain(opening) not in flushed:
                return False
            return (hole.source, opening) not in candidates.get(name, ())

        return is_lost

    def put_back(self, table: FilterTable, hole: Hole, now: float) -> None:
        for name, entry in _entries(hole, now):
            self._ensure(name, table.family, entry.opening)
            self._sets.add(name, [entry])

    def clear_out(
        self, table: FilterTable, doors: Mapping[str, frozenset[Opening]]
    ) -> tuple[list[Strange], list[Hole]]:
        strange: list[Strange] = []
        left: list[Hole] = []
        closed: dict[str, list[Hole]] = {}
        for name, entry, part in list(self._parts(table, hole_chains(table))):
            reason = _why_strange(name, entry, part, doors)
            if entry and reason:
                self._sets.take(name, [entry])
                closed.setdefault(reason, []).extend([part] if part else [])
            elif part:
                left.append(part)
        for reason, parts in closed.items():
            strange += [Strange(hole=hole, reason=reason) for hole in _join(parts)]
            strange += [] if parts else [Strange(hole=None, reason=f"{table.family}: {reason}")]
        strange += self._clear_chains(table) + self._clear_lists(table) + self._retire(table, doors)
        return strange, _join(left)

    def damage(self, table: FilterTable, chains: Iterable[str]) -> list[str]:
        found: list[str] = []
        heads = self._sets.heads()
        for chain in chains:
            listed = _LISTS[chain][table.family]
            if listed not in heads or not any(_rule(chain, table.family).equals(each) for each in table.entries(chain)):
                found.append(f"{chain} does not look at the set {listed}")
                continue
            members = self._sets.members(listed)
            there = {name for name in heads if name.startswith(f"{listed}-")}
            used = {name for name in self._sets.used if name.startswith(f"{listed}-")}
            # One that is empty and new is what somebody left who was killed before it was put into the list.
            missing = [name for name in sorted(there.difference(members)) if name in used or self._sets.entries(name)]
            found += [f"{listed} does not look at the set {name}" for name in missing]
            found += [f"the set {name} is gone" for name in sorted(used - there)]
        return found

    def _dig(self, table: FilterTable, wanted: Mapping[Key, Hole], now: float) -> list[Hole] | None:
        """Open these holes; None if a set had what it was not known to have, and then some may be open."""
        due = [key for key in wanted if self._may_stand(table, key)]
        # What is read under the lock is all there is; reading for one costs what reading for all costs.
        is_known = bool(due) or len(wanted) > _FEW
        older = self._older(table, wanted) if is_known else {}
        parts = [part for _name, _entry, part in older.values() if not part.is_expired(now)]
        standing = dict(wanted)
        for hole in _join(parts):
            standing[hole.key] = standing[hole.key].renewed(hole)
        standing = {key: _limited(hole, now) for key, hole in standing.items()}
        entries = _grouped(each for hole in standing.values() for each in _entries(hole, now))
        for name, some in entries.items():
            self._ensure(name, table.family, some[0].opening)
            replaced = [
                older.pop(key)[1] for key in [(name, each.source, each.opening) for each in some] if key in older
            ]
            # One after the other where it is not known what is there, all in one where it is.
            if not self._sets.add(name, some, older=replaced, exclusive=not is_known):
                return None
        for name, others in _grouped((name, entry) for name, entry, _part in older.values()).items():
            self._sets.take(name, others)
        return list(standing.values())

    def _older(self, table: FilterTable, wanted: Collection[Key]) -> dict[object, tuple[str, Entry, Hole]]:
        """Return the parts of these holes that stand, each by its set and what it is there."""
        return {
            (name, entry.source, entry.opening): (name, entry, part)
            for name, entry, part in self._parts(table, hole_chains(table), wanted)
            if entry and part and part.key in wanted
        }

    def _may_stand(self, table: FilterTable, key: Key) -> bool:
        door, source = key
        names = (_name(_LISTS[chain][table.family], door) for chain in hole_chains(table))
        return any(self._sets.may_have(name, source) for name in names)

    def _parts(
        self, table: FilterTable, chains: Iterable[str], keys: Collection[Key] | None = None
    ) -> Iterator[tuple[str, Entry | None, Hole | None]]:
        """Yield every entry, or those that may belong to some holes, with its set and that hole as far as it tells."""
        sources = None if keys is None else {source for _door, source in keys}
        doors = None if keys is None else {door for door, _source in keys}
        for chain in chains:
            listed = _LISTS[chain][table.family]
            names = self._names(table.family, chain) if doors is None else [_name(listed, door) for door in doors]
            for name in names:
                yield from ((name, entry, _part(entry, self._clock())) for entry in self._sets.entries(name, sources))

    def _names(self, family: Family, chain: str) -> list[str]:
        """Return the doors' sets in a list. What else somebody put there has no holes."""
        listed = _LISTS[chain][family]
        heads = self._sets.heads()
        return [name for name in self._sets.members(listed) if name in heads and name.startswith(f"{listed}-")]

    def _openings(self, name: str) -> set[tuple[object, Opening]]:
        return {(entry.source, entry.opening) for entry in self._sets.entries(name) if entry}

    def _ensure(self, name: str, family: Family, opening: Opening) -> None:
        chain = layout.holes_chain(opening)
        self._sets.ensure(name, family, _TYPES[chain], _LISTS[chain][family])

    def _clear_chains(self, table: FilterTable) -> list[Strange]:
        """Take out the rules that stand beside those that look at sets."""
        strange = []
        for chain in _looked_at(table):
            rule = _rule(chain, table.family)
            others = [entry for entry in table.entries(chain) if not rule.equals(entry)]
            for entry in others:
                table.delete(chain, entry)
            reason = f"{table.family}: a rule in {chain} that is no hole was taken out"
            strange += [Strange(hole=None, reason=reason)] if others else []
        return strange

    def _clear_lists(self, table: FilterTable) -> list[Strange]:
        """Take somebody else's sets out of the lists, where they let in whoever is in them; the sets stay."""
        strange = []
        for chain in hole_chains(table):
            listed = _LISTS[chain][table.family]
            own = self._names(table.family, chain)
            for name in self._sets.members(listed):
                if name not in own:
                    self._sets.leave(listed, name)
                    reason = f"the set {name}, which is no door's, was taken out of {listed}"
                    strange.append(Strange(hole=None, reason=reason))
        return strange

    def _retire(self, table: FilterTable, doors: Iterable[str]) -> list[Strange]:
        """Destroy the sets of doors that are gone; the log has said what was shut in them."""
        for chain in hole_chains(table):
            listed = _LISTS[chain][table.family]
            for name in set(self._names(table.family, chain)) - {_name(listed, door) for door in doors}:
                self._sets.destroy(name, listed)
        return []


def _rule(chain: str, family: Family) -> Encoded:
    """Return the rule that looks at the list of this chain, which has to be there."""
    return binding.encode(family, layout.sets_spec(chain, _LISTS[chain][family]))


def _looked_at(table: FilterTable) -> list[str]:
    """Return the chains whose sets count."""
    return [chain for chain in hole_chains(table) if any("set" in entry.matches() for entry in table.entries(chain))]


def _name(listed: str, door: str) -> str:
    """Return the name of a door's set: what does not fit is told apart by its hash, and "~" is in no door's name."""
    if len(door) > _LONGEST_NAME:
        door = f"{door[:11]}~{blake2s(door.encode(), digest_size=4).hexdigest()}"
    return f"{listed}-{door}"


def _grouped(entries: Iterable[tuple[str, Entry]]) -> dict[str, list[Entry]]:
    """Return entries by the set that they are in."""
    found: dict[str, list[Entry]] = {}
    for name, entry in entries:
        found.setdefault(name, []).append(entry)
    return found


def _set_name(hole: Hole, opening: Opening) -> str:
    family: Family = "ipv4" if hole.source.version == 4 else "ipv6"
    return _name(_LISTS[layout.holes_chain(opening)][family], hole.door)


def _entries(hole: Hole, now: float) -> Iterator[tuple[str, Entry]]:
    """Yield each entry of a hole with its set.

    The kernel counts whole seconds, and the last of them begins before the hole's end: it is shut by then at the
    earliest, and within a second after it if nobody takes the entry away before.
    """
    timeout = 0 if hole.closes_at is None else min(max(1, math.floor(hole.closes_at - now) + 1), LONGEST_IN_SET)
    comment, counters = label_of(hole), (hole.packets, hole.bytes)
    for opening in hole.opens:
        yield (
            _set_name(hole, opening),
            Entry(
                source=hole.source,
                opening=opening,
                comment=comment,
                timeout=timeout,
                packets=counters[0],
                bytes=counters[1],
            ),
        )
        # A renewed hole goes on counting; which of its entries had counted what is not worth a line.
        counters = (0, 0)


def _limited(hole: Hole, now: float) -> Hole:
    """Return a hole that lasts no longer than the kernel counts."""
    if hole.closes_at is None or hole.closes_at - now <= LONGEST_IN_SET:
        return hole
    return replace(hole, closes_at=now + LONGEST_IN_SET)


def _part(entry: Entry | None, now: float) -> Hole | None:
    """Return a hole as far as one entry tells; None if it is none of ours."""
    told = read_label(entry.comment) if entry else None
    if entry is None or told is None:
        return None
    door, opened_at, closes_at = told
    return Hole(
        door=door,
        source=entry.source,
        opens=(entry.opening,),
        opened_at=opened_at,
        closes_at=counted_end(closes_at, entry.timeout or None, now),
        packets=entry.packets,
        bytes=entry.bytes,
    )


def _join(parts: Iterable[Hole]) -> list[Hole]:
    """Return the holes that these parts make up; a set keeps no order, so that of a hole's ports is by number."""
    ordered = sorted(parts, key=lambda part: (part.opens[0].to is not None, part.opens[0].port.code))
    return record.join(ordered)


def _why_strange(name: str, entry: Entry | None, hole: Hole | None, doors: Mapping[str, frozenset[Opening]]) -> str:
    """Say why an entry has no place in this set, "" if it has."""
    if entry is None or hole is None:
        return f"an entry in {name} that is no hole was taken out"
    if reason := why_strange(hole, doors):
        return reason
    is_edited = name != _set_name(hole, entry.opening) or (hole.closes_at is None) != (entry.timeout == 0)
    return "its entry was edited" if is_edited else ""

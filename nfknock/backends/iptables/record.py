"""How a hole stands in a chain: one rule for each of its openings, all with one comment.

    nfknock hole ssh opened 2026-11-21T04:00:00.123Z closes 2026-11-21T04:00:30.123Z

The source, the ports, the hosts behind and the counters are read from the rules themselves, the rest from the comment.
The rule's own end is a whole second that still counts (`--datestop T` ends at T + 1), so it is the last one that begins
before the hole's end: the kernel closes by itself within the second after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from nfknock.backends.iptables import layout
from nfknock.backends.labels import instant, label_of, read_label
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.entry import Entry
from nfknock.core.model import Hole, IPAddress, Opening, Port, family_of


def entries_of(hole: Hole) -> list[tuple[str, Entry]]:
    """Return the rules of a hole, each with the chain of its family's table that it is to be added to."""
    first, *others = [rule.entry for rule in encode(hole)]
    # A renewed hole goes on counting; which of its rules had counted what is not worth a line.
    entries = [first.with_counters(hole.packets, hole.bytes), *others]
    return [(layout.holes_chain(opening), entry) for opening, entry in zip(hole.opens, entries, strict=True)]


def encode(hole: Hole) -> list[Encoded]:
    """Return the rules of a hole, ready for comparing."""
    family, source, last_second = family_of(hole.source), str(hole.source), _last_second(hole.closes_at)
    specs = [layout.hole_spec(opening, source, label_of(hole), last_second) for opening in hole.opens]
    return [binding.encode(family, spec) for spec in specs]


def read_holes(entries: Iterable[Entry]) -> list[Hole]:
    """Return the holes that these rules make up; rules that are none of ours are passed over."""
    return join(hole for _entry, hole in parts(entries))


def join(parts: Iterable[Hole]) -> list[Hole]:
    """Return the holes that these parts make up."""
    found: dict[tuple[str, IPAddress], Hole] = {}
    for part in parts:
        key = part.key
        known = found.setdefault(key, part)
        if known is not part:
            found[key] = _joined(known, part)
    return list(found.values())


def parts(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Hole]]:
    """Yield each rule that belongs to a hole, with that hole as far as this one rule tells."""
    for entry in entries:
        told = read_label(entry.comment())
        number, protocol = entry.destination_port(), entry.protocol
        if told is None or number is None or protocol is None or entry.jump != "ACCEPT":
            continue
        door, opened_at, closes_at = told
        packets, octets = entry.counters
        yield (
            entry,
            Hole(
                door=door,
                source=entry.source,
                opens=(Opening(Port(number, protocol), entry.destination),),
                opened_at=opened_at,
                closes_at=closes_at,
                packets=packets,
                bytes=octets,
            ),
        )


def _joined(known: Hole, other: Hole) -> Hole:
    opens = known.opens + tuple(opening for opening in other.opens if opening not in known.opens)
    return replace(known, opens=opens, packets=known.packets + other.packets, bytes=known.bytes + other.bytes)


def _last_second(closes_at: float | None) -> str | None:
    if closes_at is None:
        return None
    # Of the instant as the comment has it, to the millisecond: what is read back must make the same rule again.
    written_at = datetime.fromisoformat(instant(closes_at)).timestamp()
    return datetime.fromtimestamp(math.ceil(written_at) - 1, UTC).strftime("%Y-%m-%dT%H:%M:%S")

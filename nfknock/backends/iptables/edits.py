"""What the verbs do to one table in memory: nothing is written here, so an edit can be made, looked at and dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nfknock.backends.iptables import layout, record
from nfknock.backends.iptables.layout import FOUND, HOLES, INPUT, KNOCKS, MAIN, is_own
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.entry import Entry
from nfknock.backends.xtables.table import FilterTable
from nfknock.core.model import Family, Hole, Opening
from nfknock.core.plan import Plan
from nfknock.errors import BackendError


@dataclass(frozen=True, slots=True)
class Wanted:
    """Our part of one family's table, as a plan has it, but for holes."""

    chains: dict[str, list[Encoded]]
    jump: Encoded
    digest: str

    @classmethod
    def of(cls, plan: Plan, family: Family) -> Wanted:
        """Encode what the plan asks for in this family's table."""
        chains = layout.chains(plan, family)
        encoded = {chain: [binding.encode(family, spec) for spec in specs] for chain, specs in chains.items()}
        digest = layout.digest(plan, family)
        return cls(encoded, binding.encode(family, layout.jump(digest)), digest)


def bring_to(table: FilterTable, wanted: Wanted) -> bool:
    """Edit a table so that it holds our part; False if it did already."""
    chains = table.chains()
    new = [name for name in (MAIN, HOLES, KNOCKS) if name not in chains]
    if not set(FOUND.values()) & set(chains):
        new.append(FOUND[table.policy(INPUT)])
    for chain in new:
        table.create_chain(chain)
    outdated = [chain for chain, rules in wanted.chains.items() if not table.holds(chain, rules)]
    for chain in outdated:
        table.fill(chain, (rule.entry for rule in wanted.chains[chain]))
    entries = table.entries(INPUT)
    misplaced = [entry.jump for entry in entries].count(MAIN) != 1 or not wanted.jump.equals(entries[0])
    if misplaced:
        table.set_jumps(INPUT, MAIN, [(0, wanted.jump.entry)])
    is_open = table.policy(INPUT) != "DROP"
    if is_open:
        table.set_policy(INPUT, "DROP")
    return bool(new or outdated or misplaced or is_open)


def take_out(table: FilterTable) -> tuple[bool, str]:
    """Edit a table so that nothing of ours is left; say whether there was anything, and what to warn of."""
    own = [name for name in table.chains() if is_own(name)]
    if not own:
        return False, ""
    warning = _restore_policy(table, [policy for policy, chain in FOUND.items() if chain in own])
    table.set_jumps(INPUT, MAIN, ())
    for chain in own:
        table.fill(chain, ())
    for chain in own:
        table.delete_chain(chain)
    return True, warning


def _restore_policy(table: FilterTable, found: list[str]) -> str:
    """Give INPUT its policy back; return a warning where it is not known, or shuts the host off."""
    if len(found) == 1:
        table.set_policy(INPUT, found[0])
        if found == ["DROP"] and is_bare(table):
            return f"{table.family}: INPUT has policy DROP and no rule again, as it was found: nothing new comes in"
        return ""
    if is_bare(table):
        # Nothing says what it was. DROP without a rule would lock everybody out, and there is no rule to be undone.
        table.set_policy(INPUT, "ACCEPT")
        return f"{table.family}: nothing tells which policy INPUT had; it is ACCEPT now, since no rule is there"
    return f"{table.family}: nothing tells which policy INPUT had; it stays {table.policy(INPUT)}"


def is_bare(table: FilterTable) -> bool:
    """Whether INPUT has no rule but ours."""
    return all(entry.jump == MAIN for entry in table.entries(INPUT))


def dig(table: FilterTable, holes: Iterable[Hole], now: float) -> list[Hole]:
    """Edit a table so that these holes are open; return them as they then stand."""
    if damage(table, None):
        raise BackendError("the firewall is not in place; run `nfknock apply` first")
    wanted = {hole.key: hole for hole in holes}
    sources = {hole.source.packed for hole in wanted.values()}
    near = [entry for entry in table.entries(HOLES) if entry.packed_source in sources]
    same = [(entry, part) for entry, part in record.parts(near) if part.key in wanted]
    for entry, _part in same:
        table.delete(HOLES, entry)
    for older in record.read_holes(entry for entry, part in same if not part.is_expired(now)):
        wanted[older.key] = wanted[older.key].renewed(older)
    for hole in wanted.values():
        for entry in record.entries_of(hole):
            table.append(HOLES, entry)
    return list(wanted.values())


def fill_in(table: FilterTable, is_meant: Callable[[Hole], bool]) -> list[Hole]:
    """Edit a table so that the holes that are meant are gone; return them."""
    if HOLES not in table.chains():
        return []
    mine = [entry for entry, hole in record.parts(table.entries(HOLES)) if is_meant(hole)]
    for entry in mine:
        table.delete(HOLES, entry)
    return record.read_holes(mine)


def damage(table: FilterTable, wanted: Wanted | None) -> list[str]:
    """Say what somebody did to our part, in words; with `wanted` also to single rules, if that is what was put here.

    Where another plan stands than the one that is asked about, it is nobody's damage.
    """
    found = []
    jumps = [entry for entry in table.entries(INPUT) if entry.jump == MAIN]
    if not jumps:
        found.append(f"{INPUT} does not jump to {MAIN}")
    if table.policy(INPUT) != "DROP":
        found.append(f"the policy of {INPUT} is {table.policy(INPUT)}")
    chains = set(table.chains())
    found += [f"the chain {chain} is gone" for chain in (MAIN, HOLES, KNOCKS) if chain not in chains]
    is_other = any(layout.read_digest(entry.comment()) != (wanted.digest if wanted else None) for entry in jumps)
    if wanted is not None and not is_other:
        changed = (chain for chain, rules in wanted.chains.items() if chain in chains and not table.holds(chain, rules))
        found += [f"the rules of {chain} were changed" for chain in changed]
    elif MAIN in chains and not any(entry.jump == KNOCKS for entry in table.entries(MAIN)):
        found.append(f"the rules of {MAIN} were changed")
    return [f"{table.family}: {what}" for what in found]


def put_back(table: FilterTable, wanted: Wanted, holes: Iterable[Hole]) -> list[Hole]:
    """Edit a damaged table so that our part stands again, and of these holes those that are missing; return those."""
    # Whoever flushes flushes everything. Where our rules stand, what the chain of the holes has is what there is.
    is_flushed = HOLES not in table.chains() or not any(table.entries(chain) for chain in (HOLES, KNOCKS))
    bring_to(table, wanted)
    if not is_flushed:
        return []
    standing = {hole.key for hole in record.read_holes(table.entries(HOLES))}
    missing = [hole for hole in holes if hole.key not in standing]
    for hole in missing:
        for entry in record.entries_of(hole):
            table.append(HOLES, entry)
    return missing


def clear_out(table: FilterTable, doors: Mapping[str, frozenset[Opening]]) -> list[str]:
    """Edit a table so that every hole's rule is one that nfknock wrote for one of these doors; name those that go."""
    if HOLES not in table.chains():
        return []
    parts = {id(entry): hole for entry, hole in record.parts(table.entries(HOLES))}
    gone: dict[str, None] = {}
    seen: set[object] = set()
    for entry in table.entries(HOLES):
        hole = parts.get(id(entry))
        reason = _why_strange(entry, hole, doors, seen)
        if reason:
            table.delete(HOLES, entry)
            gone[f"{hole.source}: {hole.door}: closed: {reason}" if hole else f"{table.family}: {reason}"] = None
    return list(gone)


def _why_strange(entry: Entry, hole: Hole | None, doors: Mapping[str, frozenset[Opening]], seen: set[object]) -> str:
    """Say why a rule has no place among the holes, "" if it has."""
    if hole is None:
        return f"a rule in {HOLES} that is no hole was taken out"
    if hole.door not in doors:
        return "there is no such door any more"
    if not set(hole.opens) <= doors[hole.door]:
        return "the door does not open that any more"
    [written] = record.encode(hole)
    if not written.equals(entry):
        return "its rule was edited"
    if (hole.key, hole.opens) in seen:
        return "its rule stood twice"
    seen.add((hole.key, hole.opens))
    return ""


def saved(table: FilterTable) -> list[str]:
    """Our part of a table, and INPUT, in iptables-save notation without counters."""
    chains = [name for name in table.chains() if is_own(name)]
    heads = [f":{INPUT} {table.policy(INPUT)}", *(f":{name} -" for name in chains)]
    return heads + [line for chain in (INPUT, *chains) for line in table.describe(chain)]

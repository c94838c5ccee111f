"""What the verbs do to one table in memory: nothing is written here, so an edit can be made, looked at and dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nfknock.backends.iptables import layout
from nfknock.backends.iptables.layout import (
    AT_ONCE,
    COPIES,
    ENTRANCES,
    FORWARD,
    FORWARD_HOLES,
    FORWARDED,
    FOUND,
    HOLES,
    INPUT,
    KNOCKS,
    LAST,
    MAIN,
    STRAYS,
    is_own,
)
from nfknock.backends.iptables.store import Key, Store, hole_chains
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.entry import Entry
from nfknock.backends.xtables.table import FilterTable, Snapshot
from nfknock.core.model import Family, Hole, Opening
from nfknock.core.plan import Plan
from nfknock.errors import BackendError

# Where a packet's way through a chain ends.
_ENDS = frozenset(("ACCEPT", "DROP", "REJECT"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Our part of one family's table, as a plan has it, but for holes."""

    chains: dict[str, list[Encoded]]
    jumps: dict[str, Encoded]
    """By the chain of ours that they lead to."""
    forwarded: frozenset[Opening]
    digest: str

    @classmethod
    def of(cls, plan: Plan, family: Family) -> Wanted:
        """Encode what the plan asks for in this family's table."""
        chains = layout.chains(plan, family)
        encoded = {chain: [binding.encode(family, spec) for spec in specs] for chain, specs in chains.items()}
        digest = layout.digest(plan, family)
        jumps = {chain: binding.encode(family, layout.jump(chain, digest)) for chain in ENTRANCES if chain in chains}
        return cls(encoded, jumps, frozenset(layout.forwarded(plan, family)), digest)

    @property
    def hole_chains(self) -> tuple[str, ...]:
        """The chains that holes stand in."""
        return (HOLES, FORWARD_HOLES) if self.forwarded else (HOLES,)

    def guards(self, opening: Opening) -> bool:
        """Whether the rules lead to holes with this opening."""
        return opening.to is None or opening in self.forwarded


def bring_to(table: FilterTable, wanted: Wanted, store: Store) -> bool:
    """Edit a table so that it holds our part; False if it did already."""
    is_stale = _retire(table, wanted, store)
    chains = table.chains()
    new = [name for name in (*wanted.chains, *wanted.hole_chains) if name not in chains]
    if not set(FOUND.values()) & set(chains):
        new.append(FOUND[table.policy(INPUT)])
    for chain in new:
        table.create_chain(chain)
    is_settled = store.settle(table, wanted.hole_chains)
    outdated = [chain for chain, rules in wanted.chains.items() if not table.holds(chain, rules)]
    for chain in outdated:
        table.fill(chain, (rule.entry for rule in wanted.chains[chain]))
    # Another reader's. Nothing jumps there any more.
    unused = [name for name in (COPIES, AT_ONCE) if name in chains and name not in wanted.chains]
    _delete_chains(table, unused)
    misplaced = [chain for chain, jump in wanted.jumps.items() if not _is_in_place(table, chain, jump)]
    for chain in misplaced:
        table.set_jumps(ENTRANCES[chain], chain, [(-1 if chain in LAST else 0, wanted.jumps[chain].entry)])
    is_open = table.policy(INPUT) != "DROP"
    if is_open:
        table.set_policy(INPUT, "DROP")
    return bool(is_stale or new or is_settled or outdated or unused or misplaced or is_open)


def _retire(table: FilterTable, wanted: Wanted, store: Store) -> bool:
    """Take out strays that are watched, and what is forwarded, no more; False if there was nothing."""
    is_watched = STRAYS in table.chains() and STRAYS not in wanted.chains
    if is_watched:
        table.set_jumps(INPUT, STRAYS, ())
        _delete_chains(table, [STRAYS])
    return _retire_forwarded(table, wanted, store) or is_watched


def _retire_forwarded(table: FilterTable, wanted: Wanted, store: Store) -> bool:
    own = [name for name in (FORWARDED, FORWARD_HOLES) if name in table.chains()]
    if own and not wanted.forwarded:
        table.set_jumps(FORWARD, FORWARDED, ())
        _delete_chains(table, own)
        return True
    if not own:
        return False
    # Nothing leads to them any more, so nobody is to read there that they are open.
    return bool(store.fill_in(table, lambda part: not wanted.guards(part.opens[0])))


def _is_in_place(table: FilterTable, chain: str, jump: Encoded) -> bool:
    """Whether a built-in chain has this jump to our chain first of all, or last, and no other."""
    entries = table.entries(ENTRANCES[chain])
    return len(_jumps(table, chain)) == 1 and jump.equals(entries[-1 if chain in LAST else 0])


def _jumps(table: FilterTable, chain: str) -> list[Entry]:
    """Return the jumps to a chain of ours from the built-in chain that they belong in."""
    return [entry for _at, entry in table.jumps(ENTRANCES[chain], chain)]


def take_out(table: FilterTable) -> tuple[bool, str]:
    """Edit a table so that nothing of ours is left; say whether there was anything, and what to warn of."""
    own = [name for name in table.chains() if is_own(name)]
    if not own:
        return False, ""
    warning = _restore_policy(table, [policy for policy, chain in FOUND.items() if chain in own])
    for target, chain in ENTRANCES.items():
        table.set_jumps(chain, target, ())
    _delete_chains(table, own)
    return True, warning


def _delete_chains(table: FilterTable, chains: Iterable[str]) -> None:
    """Delete chains of ours, which may jump to each other."""
    for chain in chains:
        table.fill(chain, ())
    for chain in chains:
        table.delete_chain(chain)


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


def is_entered(table: FilterTable) -> bool:
    """Whether INPUT jumps to our chain."""
    return bool(_jumps(table, MAIN))


def is_bare(table: FilterTable) -> bool:
    """Whether INPUT has no rule but ours."""
    return all(entry.jump in (MAIN, STRAYS) for entry in table.entries(INPUT))


def hides_strays(table: FilterTable) -> bool:
    """Whether a rule of the host's own takes whatever would come to the jump that is the last of INPUT."""
    return any(entry.is_for_everything and entry.jump in _ENDS for entry in table.entries(INPUT))


def dig(table: FilterTable, store: Store, holes: Iterable[Hole], now: float) -> list[Hole]:
    """Open these holes in a table that is, or will be, in place; return them as they then stand."""
    if damage(table, None, store):
        raise BackendError("the firewall is not in place; run `nfknock apply` first")
    wanted: dict[Key, Hole] = {hole.key: hole for hole in holes}
    _check_guarded(table, {opening for hole in wanted.values() for opening in hole.opens if opening.to})
    return store.dig(table, wanted, now)


def _check_guarded(table: FilterTable, openings: set[Opening]) -> None:
    """Raise BackendError where holes would lead to ports that the firewall does not guard: nothing leads to them."""
    if not openings:
        return
    shut = [entry for entry in table.entries(FORWARDED) if entry.jump == "DROP"] if FORWARDED in table.chains() else []
    known = {(entry.protocol, entry.destination_port(), entry.destination) for entry in shut}
    for opening in sorted(openings, key=str):
        if (opening.port.protocol, opening.port.number, opening.to) not in known:
            raise BackendError(f"the firewall does not guard {opening} yet; run `nfknock apply` first")


def damage(table: FilterTable, wanted: Wanted | None, store: Store) -> list[str]:
    """Say what somebody did to our part, in words; with `wanted` also to single rules, if that is what was put here.

    Where another plan stands than the one that is asked about, it is nobody's damage.
    """
    chains = set(table.chains())
    if not any(chain.startswith(MAIN) for chain in chains):
        return [f"{table.family}: nothing of nfknock is there"]
    jumps = _jumps(table, MAIN)
    if any(layout.read_digest(entry.comment()) != (wanted.digest if wanted else None) for entry in jumps):
        wanted = None
    found = [f"{INPUT} does not jump to {MAIN}"] if not jumps else []
    if table.policy(INPUT) != "DROP":
        found.append(f"the policy of {INPUT} is {table.policy(INPUT)}")
    is_forwarding = bool(wanted.forwarded if wanted else chains & {FORWARDED, FORWARD_HOLES})
    if is_forwarding:
        found += _damaged_entrance(table, wanted)
    if wanted and STRAYS in wanted.chains and not _is_in_place(table, STRAYS, wanted.jumps[STRAYS]):
        found.append(f"{INPUT} does not jump to {STRAYS} last of all")
    forwarding = (FORWARDED, FORWARD_HOLES) if is_forwarding else ()
    own = dict.fromkeys((MAIN, HOLES, KNOCKS, *(wanted.chains if wanted else ()), *forwarding))
    found += [f"the chain {chain} is gone" for chain in own if chain not in chains]
    found += [
        f"the rules of {chain} were changed" for chain in own if chain in chains and _differs(table, chain, wanted)
    ]
    found += store.damage(table, [chain for chain in own if chain in hole_chains(table)])
    return [f"{table.family}: {what}" for what in found]


def _damaged_entrance(table: FilterTable, wanted: Wanted | None) -> list[str]:
    """Say what is wrong with the jump from FORWARD; its place counts where it is known what stands behind it.

    A ban in front of INPUT's jump does no harm, as INPUT drops what nobody takes. FORWARD need not: what Docker puts
    in front of our jump, whenever it starts, lets everybody in.
    """
    jumps = _jumps(table, FORWARDED)
    if not any(wanted is None or wanted.jumps[FORWARDED].equals(entry) for entry in jumps):
        return [f"{FORWARD} does not jump to {FORWARDED}"]
    if wanted and not wanted.jumps[FORWARDED].equals(table.entries(FORWARD)[0]):
        return [f"{FORWARD} has rules in front of its jump to {FORWARDED}"]
    return []


def _differs(table: FilterTable, chain: str, wanted: Wanted | None) -> bool:
    """Whether a chain does not have the rules that it should, as far as it is known which."""
    if chain in (HOLES, FORWARD_HOLES):
        return False
    if wanted is not None:
        return not table.holds(chain, wanted.chains[chain])
    needed = {MAIN: KNOCKS, FORWARDED: FORWARD_HOLES}.get(chain)
    return needed is not None and not any(entry.jump == needed for entry in table.entries(chain))


def put_back(table: FilterTable, wanted: Wanted, store: Store, holes: Iterable[Hole], now: float) -> list[Hole]:
    """Put our part of a damaged table right, and of these holes what is missing; return those."""
    is_lost = store.lost(table, wanted.hole_chains)
    bring_to(table, wanted, store)
    missing: list[Hole] = []
    for hole in holes:
        due = [each for each in hole.opens if wanted.guards(each)]
        lost = tuple(opening for opening in due if is_lost(hole, opening))
        if lost:
            # What is left of it has its counters still.
            part = hole if lost == hole.opens else replace(hole, opens=lost, packets=0, bytes=0)
            store.put_back(table, part, now)
            missing.append(hole)
    return missing


def take_back(table: FilterTable, before: Snapshot, store: Store | None, stores: Iterable[Store], now: float) -> None:
    """Edit a table so that our part is as it was; holes that were dug or filled in meanwhile are as they are now.

    `store` is what held the holes before, None if nothing did; one of `stores` may hold them now.
    """
    current = next((each for each in stores if each.is_in(table)), None)
    holes = current.holes(table) if current else []
    chains = dict(before.chains)
    for chain in hole_chains(table):
        if chain in chains and current is store:
            chains[chain] = tuple(table.entries(chain))
    table.restore(replace(before, chains=chains), is_own, INPUT, ENTRANCES)
    if store is None or current is store:
        return
    for chain in hole_chains(table):
        table.fill(chain, ())
    store.settle(table, hole_chains(table))
    if current:
        guarded = [_guarded(table, hole) for hole in holes if not hole.is_expired(now)]
        store.dig(table, {hole.key: hole for hole in guarded if hole.opens}, now)


def _guarded(table: FilterTable, hole: Hole) -> Hole:
    """Return a hole without what its chain is not there for."""
    chains = hole_chains(table)
    return replace(hole, opens=tuple(each for each in hole.opens if layout.holes_chain(each) in chains))


def saved(table: FilterTable, entrances: Iterable[str]) -> list[str]:
    """Our part of a table, and these built-in chains, in iptables-save notation without counters."""
    chains = [name for name in table.chains() if is_own(name)]
    heads = [*(f":{name} {table.policy(name)}" for name in entrances), *(f":{name} -" for name in chains)]
    return heads + [line for chain in (*entrances, *chains) for line in table.describe(chain)]


def entrances(table: FilterTable, wanted: Wanted) -> list[str]:
    """Return the built-in chains that have, or are to have, a jump of ours: of the others nothing need be read."""
    chains = table.chains()
    found = [chain for target, chain in ENTRANCES.items() if target in wanted.jumps or target in chains]
    return list(dict.fromkeys(found))

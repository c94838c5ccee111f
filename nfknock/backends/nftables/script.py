"""What is written when the rules change, as commands in nft's language: each list is one transaction."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from nfknock.backends.nftables import elements, layout, library, standing
from nfknock.backends.nftables.elements import Name
from nfknock.backends.nftables.layout import ENTRANCES, FORWARD_HOLES, HOLES, PLACE, Stand
from nfknock.backends.nftables.standing import Found
from nfknock.core.model import Hole, Opening
from nfknock.core.plan import Plan


class Past:
    """Our part as it was, but for the sets of holes: those that stand when it comes back stay, with what they hold."""

    def __init__(self, found: Found) -> None:
        self._table = library.run(f"list table {PLACE}") if found.is_there else ""
        self._entrances = found.entrances
        self._hooks = _hooks(found)
        self._is_limited = is_limited(found)
        self._sets = frozenset(elements.names())
        self._guarded = frozenset(rule.comment for rule in found.rules(layout.FORWARDED))

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing of ours."""
        return not self._table

    def bring_back(self, found: Found, sets: Collection[Name]) -> str:
        """Return the commands that put it in the place of what is there, with these sets of holes.

        Holes are not written again: thousands are more than an ordinary user's socket has room for.
        """
        there = _hooks(found)
        commands = delete_entrances(found, ())
        # Emptied first, so that nothing leads to what is deleted.
        commands += [f"flush chain {PLACE} {name}" for name in there]
        commands += [f"delete set {PLACE} {name}" for name in sets if not self._looked_at(name)]
        if is_limited(found) and not self._is_limited:
            commands += delete_limits()
        commands += [f"delete chain {PLACE} {name}" for name, hook in there.items() if self._hooks.get(name) != hook]
        commands += [self._table, *self._enter(found)]
        new = {name for name in sets if self._looked_at(name)} - self._sets
        return "\n".join((*commands, *map(look_at, sorted(new, key=str))))

    def guards(self, opening: Opening) -> bool:
        """Whether this opening to a host behind was guarded."""
        return layout.guard_comment(opening) in self._guarded

    def _looked_at(self, name: Name) -> bool:
        return chain_of(name) in self._hooks

    def _enter(self, found: Found) -> list[str]:
        """Return the commands for the entrances: where one's chain is gone, also for those that may stand in for it.

        As far as that is to be seen without the plan; whoever has it finds out what fits.
        """
        there = tuple(place for place in self._entrances if found.has(place))
        if there == self._entrances:
            return [layout.entrance(place) for place in there]
        now = (place for place in found.entrances if found.has(place))
        places = dict.fromkeys((*there, *now, *standing.shutting(found)))
        record = [f"add rule {PLACE} {ENTRANCES} {each}" for each in layout.record(places)]
        return [f"flush chain {PLACE} {ENTRANCES}", *record, *map(layout.entrance, places)]


def _hooks(found: Found) -> dict[str, tuple[object, int]]:
    """Return our chains, each with what it cannot get another one of: its hook, if it has one, and priority."""
    return {name: (chain.hook, chain.priority) for name in found.chains if (chain := found.chain(name))}


def is_limited(found: Found) -> bool:
    """Whether knocks are limited by their source."""
    return any(rule.comment.endswith(layout.TOO_MANY) for rule in found.rules(layout.KNOCKS))


def delete_limits() -> list[str]:
    """Return the commands that delete the sets of limited sources."""
    return [f"delete set {PLACE} {name}" for name, _head in layout.limited_sets()]


def make_set(name: Name, size: int) -> list[str]:
    """Return the commands that make a set and have it looked at."""
    return [add_set(name, size), look_at(name)]


def add_set(name: Name, size: int) -> str:
    """Return the command that makes a set."""
    return f"add set {PLACE} {name} {{ type {name.type}; flags timeout; size {size}; counter; }}"


def remake_set(found: Found, name: Name, size: int, parts: Iterable[Hole], now: float) -> list[str]:
    """Return the commands that make a set anew, with these parts of holes in it."""
    content = ", ".join(elements.words(part, part.opens[0], now, is_counted=True) for part in parts)
    fill = [f"add element {PLACE} {name} {{ {content} }}"] if content else []
    return [*delete_set(found, name), *make_set(name, size), *fill]


def delete_set(found: Found, name: Name) -> list[str]:
    """Return the commands that delete a set and what looks at it."""
    comment = standing.rule_comment(name)
    rules = [(chain, rule) for chain in (HOLES, FORWARD_HOLES) for rule in found.rules(chain)]
    return [
        *(f"delete rule {PLACE} {chain} handle {rule.handle}" for chain, rule in rules if rule.comment == comment),
        f"delete set {PLACE} {name}",
    ]


def look_at(name: Name) -> str:
    """Return the command that has a set looked at; what is in it is let in."""
    comment = standing.rule_comment(name)
    return f'add rule {PLACE} {chain_of(name)} {name.match} @{name} goto {layout.ADMIT} comment "{comment}"'


def chain_of(name: Name) -> str:
    """Return the chain that looks at a set."""
    return FORWARD_HOLES if name.is_behind else HOLES


def take_in(found: Found, names: Iterable[Name]) -> list[str]:
    """Return the commands that have sets looked at, where they are not yet; one without a chain for it is deleted."""
    commented = {rule.comment for chain in (HOLES, FORWARD_HOLES) for rule in found.rules(chain)}
    return [
        look_at(name) if found.chain(chain_of(name)) else f"delete set {PLACE} {name}"
        for name in sorted(names, key=str)
        if standing.rule_comment(name) not in commented
    ]


def bring_up(found: Found, plan: Plan, stand: Stand, sets: Collection[Name]) -> str:
    """Return the commands that bring the host's ruleset to the plan; these sets of holes stay, and are looked at."""
    wanted = layout.chains(plan, stand)
    hole_chains = layout.hole_chains(plan)
    kept = {*wanted, *hole_chains}
    there = found.chains
    commands = [f"add table {PLACE}"]
    # Emptied first, so that nothing leads to what is deleted.
    commands += [f"flush chain {PLACE} {name}" for name in there if name not in (HOLES, FORWARD_HOLES)]
    commands += [f"flush chain {PLACE} {name}" for name in (HOLES, FORWARD_HOLES) if name in there]
    commands += [f"delete set {PLACE} {name}" for name in sets if name.is_behind and not plan.forwarded]
    commands += [f"delete chain {PLACE} {name}" for name in there if name not in kept or found.has_lost_hook(name)]
    for name in (*hole_chains, *wanted):
        head = layout.head(name, stand)
        commands.append(f"add chain {PLACE} {name}{f' {{ {head} }}' if head else ''}")
    if plan.knocks_a_second:
        commands += [f"add set {PLACE} {name} {{ {head} }}" for name, head in layout.limited_sets()]
    elif is_limited(found):
        commands += delete_limits()
    commands += [look_at(each) for each in sorted(sets, key=str) if plan.forwarded or not each.is_behind]
    for name, statements in wanted.items():
        commands += [f"add rule {PLACE} {name} {statement}" for statement in statements]
    commands += delete_entrances(found, stand.entrances)
    for place in stand.entrances:
        if [at for at, _rule in found.entrances_in(place)] != [0]:
            commands.append(layout.entrance(place))
    return "\n".join(commands)


def delete_entrances(found: Found, kept: Iterable[str]) -> list[str]:
    """Return the commands that take out entrances: all but those that stand alone and on top of a chain to be kept."""
    return [
        f"delete rule {place} handle {rule.handle}"
        for place, rule in found.all_entrances()
        if place not in kept or [at for at, _rule in found.entrances_in(place)] != [0]
    ]


def difference(found: Found, plan: Plan, stand: Stand) -> tuple[str, ...]:
    """Return what would change, in nft's language; rules of ours are told apart by what they say."""
    before = library.run(f"list table {PLACE}").splitlines() if found.is_there else []
    before = [" ".join(line.split()) for line in before if 'comment "' in line]
    after = [str(statement) for statements in layout.chains(plan, stand).values() for statement in statements]
    old, new = map(_comparable, before), map(_comparable, after)
    lines: list[str] = []
    for what, *where in difflib.SequenceMatcher(a=list(old), b=list(new), autojunk=False).get_opcodes():
        if what != "equal":
            lines += [f"- {line}" for line in before[where[0] : where[1]]]
            lines += [f"+ {line}" for line in after[where[2] : where[3]]]
    policies = ("accept", "drop")
    policy, base = policies[len(stand.shut) == 2], found.chain(layout.INPUT)
    head = f"# table {PLACE}, policy {policy}"
    if base and policies[base.drops] != policy:
        lines[:0] = [f"- {layout.INPUT}: policy {policies[base.drops]}", f"+ {layout.INPUT}: policy {policy}"]
    gates = [f"+ {layout.entrance(place)}" for place in stand.entrances if not found.entrances_in(place)]
    return (head, *lines, *gates)


def _comparable(line: str) -> str:
    """Return a rule without what one version of nft lists in other words than the next."""
    return re.sub(r"(?:meta l4proto tcp )?tcp flags .*? (?=limit |ct )", "", line)

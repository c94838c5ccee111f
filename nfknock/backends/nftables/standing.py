"""How we stand in the host: which of its chains need an entrance, what of ours is there, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nfknock.backends.nftables import elements, layout
from nfknock.backends.nftables.layout import ENTRANCES, INPUT, MAIN, PLACE, TABLE, Stand
from nfknock.core.model import Family
from nfknock.core.plan import Plan
from nfknock.errors import BackendError
from nfknock.host import nftread
from nfknock.host.conflicts import Opened, conflicts, opened_by
from nfknock.host.nftread import Chain, Key, Rule, Ruleset

_INET = 1
_NUMBERS = {"inet": 1, "ip": 2, "ip6": 10}
_GUARDS: dict[str, tuple[Family, ...]] = {"inet": ("ipv4", "ipv6"), "ip": ("ipv4",), "ip6": ("ipv6",)}
_FAMILIES: dict[int, Family] = {4: "ipv4", 6: "ipv6"}
_TWINS = {"ip": "ip6", "ip6": "ip"}


@dataclass(frozen=True, slots=True)
class Found:
    """The host's ruleset, ours in it."""

    ruleset: Ruleset

    @property
    def is_there(self) -> bool:
        """Whether any chain of ours is."""
        return any(nftread.is_own(key) for key in self.ruleset.chains)

    def chain(self, name: str) -> Chain | None:
        """Return a chain of ours."""
        return self.ruleset.chains.get((_INET, TABLE, name))

    def rules(self, name: str) -> list[Rule]:
        """Return the rules of a chain of ours."""
        return self.ruleset.rules.get((_INET, TABLE, name), [])

    @property
    def chains(self) -> list[str]:
        """The names of our chains."""
        return [key[2] for key in self.ruleset.chains if nftread.is_own(key)]

    @property
    def digest(self) -> str:
        """What tells the plan that was put here, "" if nothing does."""
        return next((found for rule in self.rules(INPUT) if (found := layout.read_digest(rule.comment))), "")

    @property
    def entrances(self) -> tuple[str, ...]:
        """In which of the host's chains an entrance was put."""
        return tuple(rule.comment for rule in self.rules(ENTRANCES))

    def entrances_in(self, place: str) -> list[tuple[int, Rule]]:
        """Return our rules in a chain of the host's, each with its position."""
        rules = self.ruleset.rules.get(_key(place), [])
        return [(at, rule) for at, rule in enumerate(rules) if nftread.is_entrance(rule)]

    def all_entrances(self) -> Iterator[tuple[str, Rule]]:
        """Yield every rule of ours in the host's chains, recorded or not."""
        for key, chain in self.ruleset.chains.items():
            if not nftread.is_own(key):
                for rule in self.ruleset.rules.get(key, ()):
                    if nftread.is_entrance(rule):
                        yield str(chain), rule


def read() -> Found:
    """Read the ruleset. Raises BackendError."""
    try:
        return Found(nftread.read() or Ruleset({}, {}, {}))
    except OSError as exc:
        raise BackendError(f"reading the nf_tables ruleset: {(exc.strerror or str(exc)).lower()}") from exc


def fitting(found: Found, plan: Plan, attach: str) -> Stand:
    """Find out how to stand in this host. Raises BackendError where `attach` names no chain that can be."""
    foreign = nftread.foreign(found.ruleset)
    try:
        entrances = dict.fromkeys((*_asked_for(foreign, attach), *_needed(foreign, plan)))
        guarded = frozenset(_guarded(foreign, plan, entrances))
    except OSError as exc:
        raise BackendError(f"reading the nf_tables ruleset: {(exc.strerror or str(exc)).lower()}") from exc
    return Stand(entrances=tuple(sorted(entrances)), shut=frozenset(_FAMILIES.values()) - guarded)


def _asked_for(foreign: Ruleset, attach: str) -> Iterator[str]:
    if not attach:
        return
    chain = foreign.chains.get(_key(attach))
    if chain is None or chain.hook not in ("input", "forward"):
        there = ", ".join(str(each) for each in foreign.chains.values() if each.hook == "input") or "none"
        raise BackendError(f"firewall.attach: {attach!r} is no chain with hook input or forward here; there is {there}")
    yield str(chain)
    family, rest = attach.split(maxsplit=1)
    twin = f"{_TWINS.get(family, '')} {rest}"
    if family in _TWINS and _key(twin) in foreign.chains:
        yield str(foreign.chains[_key(twin)])


def _needed(foreign: Ruleset, plan: Plan) -> Iterator[str]:
    """Yield the host's chains that would drop what we let in."""
    opened = [Opened(port=port, by="a door", interfaces=plan.interfaces) for port in plan.opens]
    for conflict in conflicts(foreign, (*opened, *opened_by(plan, ()))):
        if conflict.fate == "drops" and conflict.chain.priority > layout.PRIORITY:
            yield str(conflict.chain)
    if plan.forwarded:
        yield from (str(each) for each in foreign.chains.values() if each.hook == "forward" and each.drops)


def _guarded(foreign: Ruleset, plan: Plan, entrances: Iterable[str]) -> Iterator[Family]:
    """Yield the families for which one of these chains of the host's drops whatever it does not let in itself.

    By its policy or, like firewalld's, by its last rule: then it drops the knocks too, which nobody has a rule about.
    """
    knocks = [Opened(port=port, by="", interfaces=plan.interfaces) for port in plan.knock_ports]
    dropped: Counter[tuple[str, int]] = Counter()
    for conflict in conflicts(foreign, knocks):
        if conflict.fate == "drops":
            dropped.update((str(conflict.chain), version) for version in conflict.versions)
    for place in entrances:
        chain = foreign.chains[_key(place)]
        for version, family in _FAMILIES.items():
            is_last = bool(knocks) and dropped[place, version] == len(knocks)
            if chain.hook == "input" and family in _GUARDS[place.split()[0]] and (chain.drops or is_last):
                yield family


def shut_out(found: Found, plan: Plan) -> list[str]:
    """Return the host's chains that came after us and drop what we let in."""
    new = {
        str(chain)
        for chain in nftread.foreign(found.ruleset).chains.values()
        if chain.hook in ("input", "forward") and chain.drops and str(chain) not in found.entrances
    }
    # To find out takes long where there are many rules; nobody loads such a chain every day.
    return sorted(new.intersection(fitting(found, plan, "").entrances)) if new else []


def policies(found: Found, stand: Stand) -> dict[Family, str]:
    """Return what becomes of incoming packets that nobody lets in, by family."""
    policy: dict[Family, str] = {}
    for family in _FAMILIES.values():
        chains = nftread.foreign(found.ruleset).chains.values()
        input_chains = [chain for chain in chains if chain.hook == "input"]
        drops = any(chain.drops and family in _GUARDS[str(chain).split()[0]] for chain in input_chains)
        policy[family] = "DROP" if drops or (found.is_there and family in stand.shut) else "ACCEPT"
    return policy


def standing(found: Found) -> Stand:
    """Return how we stand now, as far as our chains tell."""
    chain = found.chain(INPUT)
    if chain is None:
        return Stand(shut=frozenset())
    if chain.drops:
        return Stand(entrances=found.entrances)
    last = {rule.comment for rule in found.rules(INPUT)}
    shut = [family for family in _FAMILIES.values() if f"nfknock: nothing else ({family})" in last]
    return Stand(entrances=found.entrances, shut=frozenset(shut))


def damage(found: Found, wanted: layout.Chains | None, digest: str, hole_chains: tuple[str, ...]) -> list[str]:
    """Say what somebody did to our part; to single rules only where `wanted` is the plan that was put here."""
    base = found.chain(INPUT)
    if base is None or base.hook != "input":
        return [f"the table {PLACE} is not there" if not found.is_there else f"the chain {INPUT} is gone"]
    if wanted is None or found.digest != digest:
        wanted, hole_chains = None, ()
    lines = []
    if not found.digest:
        lines.append(f"{INPUT} does not jump to {MAIN}")
    if wanted is not None:
        lines += [f"the chain {name} is gone" for name in (*wanted, *hole_chains) if found.chain(name) is None]
        for name, statements in wanted.items():
            comments = [rule.comment for rule in found.rules(name)]
            if found.chain(name) is not None and comments != [statement.comment for statement in statements]:
                lines.append(f"the rules of {name} were changed")
    sets = {str(name): name for name in elements.names()}
    ruled = {rule.comment for name in found.chains for rule in found.rules(name)}
    lines += [f"nothing looks at the set {name}" for name in sets if rule_comment(sets[name]) not in ruled]
    for place in found.entrances:
        if not any(at == 0 for at, _rule in found.entrances_in(place)):
            lines.append(f"{place} does not begin with the entrance")
    return lines


def rule_comment(name: elements.Name) -> str:
    """Return the comment of the rule that looks at a set."""
    return f"nfknock: holes in {name}"


def _key(place: str) -> Key:
    words = place.split()
    return (_NUMBERS.get(words[0], 0), words[1], words[2]) if len(words) == 3 else (0, "", "")

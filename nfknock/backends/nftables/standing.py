"""How we stand in the host: which of its chains need an entrance, what of ours is there, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from nfknock.backends.nftables import elements, layout, library
from nfknock.backends.nftables.layout import (
    ENTRANCES,
    FORWARD,
    FORWARD_HOLES,
    FORWARDED,
    HOLES,
    INPUT,
    KNOCKS,
    MAIN,
    PLACE,
    SERVICES,
    TABLE,
    Stand,
)
from nfknock.core.model import PROTOCOL_NUMBERS, Family, Port
from nfknock.core.plan import Plan
from nfknock.errors import BackendError
from nfknock.host import nftread
from nfknock.host.conflicts import Conflict, Opened, conflicts, opened_by
from nfknock.host.nftread import Chain, Key, Rule, Ruleset

_INET = 1
_NUMBERS = {"inet": 1, "ip": 2, "ip6": 10}
_GUARDS: dict[str, tuple[Family, ...]] = {"inet": ("ipv4", "ipv6"), "ip": ("ipv4",), "ip6": ("ipv6",)}
_FAMILIES: dict[int, Family] = {4: "ipv4", 6: "ipv6"}
_TWINS = {"ip": "ip6", "ip6": "ip"}
PROBE = f"{PLACE}_probe"


@dataclass(frozen=True, slots=True)
class Found:
    """The host's ruleset, ours in it."""

    ruleset: Ruleset

    @property
    def is_there(self) -> bool:
        """Whether any chain of ours is."""
        return any(nftread.is_own(key) for key in self.ruleset.chains)

    def has(self, place: str) -> bool:
        """Whether the host has a chain that packets come to, "FAMILY TABLE CHAIN"."""
        chain = self.ruleset.chains.get(_key(place))
        return chain is not None and _can_be_entered(chain)

    def chain(self, name: str) -> Chain | None:
        """Return a chain of ours."""
        return self.ruleset.chains.get((_INET, TABLE, name))

    def rules(self, name: str) -> list[Rule]:
        """Return the rules of a chain of ours."""
        return self.ruleset.rules.get((_INET, TABLE, name), [])

    def has_lost_hook(self, name: str) -> bool:
        """Whether a base chain of ours is there, but as one that no packet comes to by itself."""
        chain = self.chain(name)
        return chain is not None and chain.hook != layout.HOOKS.get(name)

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
        return tuple(layout.read_entrance(rule.comment) for rule in self.rules(ENTRANCES))

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
        raise library.unreadable("the nf_tables ruleset", exc) from exc


def fitting(found: Found, plan: Plan, attach: str) -> Stand:
    """Find out how to stand in this host, without the chain `attach` where that cannot be. Raises BackendError."""
    foreign = nftread.foreign(found.ruleset)
    try:
        last_words = list(_last_words(foreign, plan))
        entrances = dict.fromkeys((*asked_for(found, attach), *_needed(foreign, plan, last_words)))
        guarded = {family for chain, family in last_words if str(chain) in entrances}
    except OSError as exc:
        raise library.unreadable("the nf_tables ruleset", exc) from exc
    finds_services = bool(guarded and plan.strays) and _kernel_finds_services()
    shut = frozenset(_FAMILIES.values()) - guarded
    return Stand(entrances=tuple(sorted(entrances)), shut=shut, finds_services=finds_services)


def rehearse(*commands: str) -> None:
    """Have the kernel make something, in a table that is gone in the same transaction. Raises BackendError."""
    library.run("\n".join((f"add table {PROBE}", *commands, f"delete table {PROBE}")))


def _kernel_finds_services() -> bool:
    try:
        _look_for_service()
    except BackendError:
        return False
    return True


@cache  # what was raised is not kept: it may have been for another reason than the kernel's
def _look_for_service() -> None:
    rehearse(f"add chain {PROBE} c", f"add rule {PROBE} c socket wildcard 0 return")


def asked_for(found: Found, attach: str) -> list[str]:
    """Return the host's chains that `attach` means, as far as they are there and come after ours."""
    chains = [each for key in _attached(attach) if (each := found.ruleset.chains.get(key)) and _can_be_entered(each)]
    return [str(each) for each in chains] if chains and chains[0].key == _key(attach) else []


def why_not_attached(found: Found, attach: str) -> str:
    """Say why what is let in cannot pass the chain that is asked for, "" if it can or none is."""
    if not attach or asked_for(found, attach):
        return ""
    if _key(attach) in found.ruleset.chains:
        return f"firewall.attach: {attach!r} has no hook input or forward, or comes before nfknock"
    foreign = nftread.foreign(found.ruleset).chains.values()
    there = ", ".join(str(each) for each in foreign if each.hook == "input") or "none"
    return f"firewall.attach: {attach!r} is no chain with hook input or forward here; there is {there}"


def shutting(found: Found) -> list[str]:
    """Return the host's chains that drop, by their policy, whatever comes in that they do not know."""
    return [
        str(each)
        for each in found.ruleset.chains.values()
        if each.hook == "input" and each.drops and _can_be_entered(each)
    ]


def _can_be_entered(chain: Chain) -> bool:
    # In one that comes before ours nothing bears the mark yet, or what somebody else put it on does.
    return not nftread.is_own(chain.key) and chain.hook in ("input", "forward") and chain.priority > layout.PRIORITY


def _attached(attach: str) -> list[Key]:
    """Return the chain that is asked for, and the one for the other family by the same name."""
    if not attach:
        return []
    family, rest = attach.split(maxsplit=1)
    return [_key(attach), *([_key(f"{_TWINS[family]} {rest}")] if family in _TWINS else [])]


def _needed(foreign: Ruleset, plan: Plan, last_words: Iterable[tuple[Chain, Family]]) -> Iterator[str]:
    """Yield the host's chains that need an entrance: those that would drop what we let in, and any with the last word.

    Such a one knows what it lets in, and may not know ours. Another one that may drop it, as one with bans or limits
    does, is left to do so.
    """
    needed = {chain for chain, _family in last_words}
    # Also for what comes back from a host behind.
    needed |= {each for each in foreign.chains.values() if plan.forwarded and each.hook == "forward" and each.drops}
    behind = [
        Opened(port=each.port, by="a door", interfaces=plan.interfaces, behind=each.to) for each in plan.forwarded
    ]
    for conflict in conflicts(foreign, (*_opened_here(plan), *opened_by(plan, ()), *behind)):
        if conflict.fate == "drops":
            needed.add(conflict.chain)
    yield from (str(chain) for chain in needed if _can_be_entered(chain))


def _opened_here(plan: Plan) -> list[Opened]:
    return [Opened(port=port, by="a door", interfaces=plan.interfaces) for port in plan.opens]


def hidden(found: Found, plan: Plan, stand: Stand) -> list[Port]:
    """Return what doors open that the host's own chains let somebody in to, and that is shut nevertheless."""
    versions = [version for version, family in _FAMILIES.items() if family not in stand.shut]
    if not versions:
        return []
    shut = {
        (conflict.opened, version)
        for conflict in conflicts(nftread.foreign(found.ruleset), _opened_here(plan))
        if conflict.fate == "drops"
        for version in conflict.versions
    }
    return [each.port for each in _opened_here(plan) if any((each, version) not in shut for version in versions)]


def _last_words(foreign: Ruleset, plan: Plan) -> Iterator[tuple[Chain, Family]]:
    """Yield the host's chains that drop whatever they do not let in themselves, with each family that they do it to.

    That is what becomes of a port that no rule names: dropped by the policy or, as by firewalld, by the last rule.
    """
    unnamed = [
        Opened(port=Port(1, protocol), by="", interfaces=plan.interfaces, is_any_port=True)
        for protocol in PROTOCOL_NUMBERS
    ]
    dropped: Counter[tuple[Chain, int]] = Counter()
    for conflict in conflicts(foreign, unnamed):
        # What a rule that is not understood lets in is the host's business, where everything else is dropped.
        if conflict.fate == "drops" or conflict.chain.drops:
            dropped.update((conflict.chain, version) for version in conflict.versions)
    for (chain, version), count in dropped.items():
        if count == len(unnamed):
            yield chain, _FAMILIES[version]


def gets_by(conflict: Conflict, stand: Stand) -> bool:
    """Whether what stands in the way does so no more, standing like that."""
    if conflict.chain.priority <= layout.PRIORITY:
        return False
    return conflict.opened is None or str(conflict.chain) in stand.entrances


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
    finds_services = any(rule.comment == f"nfknock: {SERVICES}" for rule in found.rules(MAIN))
    return Stand(entrances=found.entrances, shut=frozenset(shut), finds_services=finds_services)


def damage(found: Found, plan: Plan | None) -> list[str]:
    """Say what somebody did to our part; to single rules only where this plan is what was put here.

    Where another plan stands than the one that is asked about, it is nobody's damage.
    """
    base = found.chain(INPUT)
    if base is None or base.hook != "input":
        return [f"the table {PLACE} is not there" if not found.is_there else f"the chain {INPUT} is gone"]
    stand = _put_here(found, plan) if plan else None
    lines = [] if found.digest else [f"{INPUT} does not jump to {MAIN}"]
    # Alone we drop whatever nobody lets in. Beside chains of the host's, the plan alone tells who does.
    if base.drops != (len(stand.shut) == len(_FAMILIES)) if stand else not (base.drops or found.entrances):
        lines.append(f"the policy of {INPUT} is {'drop' if base.drops else 'accept'}")
    lines += _changed_rules(found, plan, stand) if plan and stand else _missing_ways(found)
    lines += _damaged_holes(found)
    for place in (stand or found).entrances:
        if _key(place) not in found.ruleset.chains:
            lines.append(f"{place} is gone")
        elif not any(at == 0 for at, _rule in found.entrances_in(place)):
            lines.append(f"{place} does not begin with the entrance")
    return lines


def _put_here(found: Found, plan: Plan) -> Stand | None:
    """Return how we stood when this plan was put here, whatever was done since; None if it was another plan."""
    now = standing(found)
    actual = tuple(sorted(place for place, _rule in found.all_entrances()))
    shuts = [frozenset(each) for size in range(3) for each in combinations(_FAMILIES.values(), size)]
    stands = [Stand(entrances=each, shut=shut) for each in (now.entrances, actual) for shut in shuts]
    stands += [replace(each, finds_services=True) for each in stands]
    return next((stand for stand in (now, *stands) if layout.digest(plan, stand) == found.digest), None)


def _changed_rules(found: Found, plan: Plan, stand: Stand) -> Iterator[str]:
    wanted = layout.chains(plan, stand)
    for name in (*wanted, *layout.hole_chains(plan)):
        if found.chain(name) is None or found.has_lost_hook(name):
            yield f"the chain {name} is gone"
        elif name in wanted:
            comments = [rule.comment for rule in found.rules(name)]
            if comments != [statement.comment for statement in wanted[name]]:
                yield f"the rules of {name} were changed"


def _missing_ways(found: Found) -> Iterator[str]:
    """Say what nothing leads to, as far as that is to be seen without the plan."""
    ways = [(MAIN, HOLES), (MAIN, KNOCKS)]
    forwards = {FORWARDED, FORWARD_HOLES} if found.entrances else {FORWARD, FORWARDED, FORWARD_HOLES}
    if forwards.intersection(found.chains):
        ways += [(FORWARD, FORWARDED), (FORWARDED, FORWARD_HOLES)]
    for name, target in ways:
        if found.chain(target) is None:
            yield f"the chain {target} is gone"
        elif found.has_lost_hook(name):
            yield f"the chain {name} is gone"
        elif layout.JUMPS[target] not in {rule.comment for rule in found.rules(name)}:
            yield f"{name} does not jump to {target}"
    for name in (INPUT, FORWARD) if found.entrances else ():
        if [rule.comment for rule in found.rules(name)[:1]] != [layout.UNMARK_COMMENT]:
            yield f"{name} leaves marks from before"


def _damaged_holes(found: Found) -> Iterator[str]:
    wanted = {rule_comment(name): name for name in elements.names()}
    for chain in (HOLES, FORWARD_HOLES):
        if any(rule.comment not in wanted for rule in found.rules(chain)):
            yield f"{chain} has a rule that looks at no set of holes"
    ruled = {rule.comment for name in found.chains for rule in found.rules(name)}
    yield from (f"nothing looks at the set {name}" for comment, name in wanted.items() if comment not in ruled)


def rule_comment(name: elements.Name) -> str:
    """Return the comment of the rule that looks at a set."""
    return f"nfknock: holes in {name}"


def _key(place: str) -> Key:
    words = place.split()
    return (_NUMBERS.get(words[0], 0), words[1], words[2]) if len(words) == 3 else (0, "", "")

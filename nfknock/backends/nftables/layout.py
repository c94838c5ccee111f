"""What stands in the kernel: our own table `inet nfknock`, in nft's language.

Its base chain comes in front of everybody else's. Where none of the host's base chains drops what we let in, that is
all: policy DROP, and the order is that of the backend iptables. Where one would, what we let in gets a mark, and the
first rule of that chain, the *entrance*, accepts what bears it. docs/design/0014 says why that, and not a jump; and
why a packet that comes to a hook of ours with that mark loses it first.

Chains of holes have one rule for each door's set; they are written when a door is opened first, the others by `apply`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2s

from nfknock.backends.nftables.words import (
    ADDRESS,
    ICMP,
    Statement,
    coming_in_at,
    fitting,
    of_rule,
    statement,
    to_ports,
)
from nfknock.core.model import Family, Opening, family_of
from nfknock.core.plan import (
    ADMIT_MARK,
    KNOCKS_AT_ONCE,
    LIMITED_FOR,
    MOST_LIMITED,
    OWN_TABLE,
    REJECT_MARK,
    STRAYS_A_SECOND,
    Plan,
    Strays,
)

TABLE = OWN_TABLE
PLACE = f"inet {TABLE}"
# In front of chains at "filter" (0), so that the mark is there, and of nothing else.
PRIORITY = -5

INPUT, MAIN, HOLES, KNOCKS, ADMIT = "input", "main", "holes", "knocks", "admit"
COPIES, AT_ONCE = "copies", "at_once"
FORWARD, FORWARDED, FORWARD_HOLES = "forward", "forwarded", "forward_holes"
ENTRANCES = "entrances"
"""Nothing leads there: its rules' comments say in which of the host's chains an entrance is."""

STRAYS, SERVICES = "strays", "ports at which somebody listens"
LIMITED = {"ipv4": "limited4", "ipv6": "limited6"}
TOO_MANY = "knocks, too many of one source"

HOOKS = {INPUT: "input", FORWARD: "forward"}
"""Our base chains; nothing leads into the others but jumps."""
JUMPS = {
    HOLES: "nfknock: holes",
    KNOCKS: "nfknock: knocks",
    FORWARDED: "nfknock: forwarded services",
    FORWARD_HOLES: "nfknock: forwarded holes",
}
"""The comments of the jumps to chains."""

ENTRANCE_COMMENT = "nfknock: what it opens"
UNMARK_COMMENT = "nfknock: marks from before"

_FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
_JUMP_COMMENT = re.compile(r"nfknock: holes and knocks \(plan (?P<digest>[0-9a-f]{8})\)")
_PASSES = "passes "
# As the backend iptables does it (docs/design/0012-nflog.md).
_COPIES_AT_ONCE = "limit rate 1000/second burst 100 packets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """How we stand in the host.

    `entrances` are the host's base chains that have a rule of ours, as "FAMILY TABLE CHAIN". For the families in `shut`
    we drop whatever nobody lets in; for the others the host's own chain does, and we drop what doors open. There, if
    the kernel `finds_services`, a port at which nobody listens is known to be closed.
    """

    entrances: tuple[str, ...] = ()
    shut: frozenset[Family] = frozenset(_FAMILIES)
    finds_services: bool = False


Chains = dict[str, list[Statement]]


def chains(plan: Plan, stand: Stand) -> Chains:
    """Return the rules of every chain that `apply` writes."""
    own = _behind(plan, stand)
    return {INPUT: list(_entry(plan, stand)), **own}


def _behind(plan: Plan, stand: Stand) -> Chains:
    """Return every chain but the first, which says what is in the others."""
    own = {
        MAIN: list(_main(plan, stand)),
        KNOCKS: list(_knocks(plan)),
        ADMIT: list(_admit(stand)),
        ENTRANCES: record(stand.entrances),
    }
    if plan.reader == "nflog":
        own |= {COPIES: list(_copies(plan)), AT_ONCE: list(_copies_at_once(plan))}
    if plan.forwarded or stand.entrances:
        jumps = [Statement(f"jump {FORWARDED}", JUMPS[FORWARDED])] if plan.forwarded else []
        own[FORWARD] = [*_unmark(stand), *jumps]
    if plan.forwarded:
        own[FORWARDED] = list(_forwarded(plan))
    return own


def hole_chains(plan: Plan) -> tuple[str, ...]:
    """Return the chains whose rules are written when doors open."""
    return (HOLES, FORWARD_HOLES) if plan.forwarded else (HOLES,)


def digest(plan: Plan, stand: Stand) -> str:
    """Return what tells one plan from another."""
    told = (_behind(plan, stand), sorted(stand.shut), list(_hidden(plan, stand)))
    return blake2s(repr(told).encode(), digest_size=4).hexdigest()


def read_digest(comment: str) -> str:
    """Return what the comment of the base chain's jump says of the plan, "" if it says nothing."""
    match = _JUMP_COMMENT.fullmatch(comment)
    return match["digest"] if match else ""


def record(places: Iterable[str]) -> list[Statement]:
    """Return the rules of ENTRANCES."""
    return [statement("continue", f"{_PASSES}{place}") for place in places]


def read_entrance(comment: str) -> str:
    """Return the chain of the host's that a rule of ENTRANCES says there is an entrance in."""
    return comment.partition(_PASSES)[2]


def head(chain: str, stand: Stand) -> str:
    """Return what a chain is declared with, "" if nothing leads into it but jumps."""
    if chain == INPUT:
        policy = "drop" if len(stand.shut) == len(_FAMILIES) else "accept"
        return f"type filter hook input priority {PRIORITY}; policy {policy};"
    return f"type filter hook forward priority {PRIORITY}; policy accept;" if chain == FORWARD else ""


def entrance(place: str) -> str:
    """Return the command that puts an entrance on top of a chain of the host's."""
    return f'insert rule {place} meta mark {ADMIT_MARK:#x} counter accept comment "{ENTRANCE_COMMENT}"'


def _unmark(stand: Stand) -> Iterator[Statement]:
    # What comes out of a tunnel bears the mark that let the tunnel's own packet in.
    if stand.entrances:
        yield Statement(f"meta mark {ADMIT_MARK:#x} meta mark set 0x0", UNMARK_COMMENT)


def _entry(plan: Plan, stand: Stand) -> Iterator[Statement]:
    yield from _unmark(stand)
    yield statement(f"jump {MAIN}", f"holes and knocks (plan {digest(plan, stand)})")
    if len(stand.shut) == 1:
        [family] = stand.shut
        yield statement(f"meta nfproto {family} drop", f"nothing else ({family})")
    yield from _hidden(plan, stand)


def _hidden(plan: Plan, stand: Stand) -> Iterator[Statement]:
    """What doors open, where the host's chain has the last word, and may let in whoever has not knocked."""
    for family in _FAMILIES:
        if family in stand.shut:
            continue
        for interface in plan.interfaces or ("",):
            where = coming_in_at(interface) or 'iifname != "lo" '
            for match in to_ports(plan.opens):
                what = f"{where}meta nfproto {family} {match} ct state new,invalid,untracked"
                yield statement(f"{what} drop", f"shut without a knock ({family})")


def _main(plan: Plan, stand: Stand) -> Iterator[Statement]:
    yield from _cuts(plan)
    for family in _FAMILIES:
        if family not in stand.shut:
            yield statement(f'meta nfproto {family} iifname "lo" return', "what goes on in the host")
    yield from _rules(plan, stand)
    # What is no knock is dropped there too, as at the end of everything; or it is for the host's chain to decide on.
    knocks = [""] if len(stand.shut) == len(_FAMILIES) else [f"{match} " for match in to_ports(plan.knock_ports)]
    for chain, matches in ((HOLES, [""]), (KNOCKS, knocks)):
        for interface in plan.interfaces or ("",):
            for match in matches:
                yield Statement(f"{coming_in_at(interface)}{match}jump {chain}", JUMPS[chain])
    if plan.strays:
        yield from _strays(plan.strays, plan.interfaces, stand)


def _rules(plan: Plan, stand: Stand) -> Iterator[Statement]:
    for rule in plan.baseline:
        for family in _FAMILIES:
            # Where the host's chain has the last word, it also knows what the host needs.
            if family in stand.shut and rule.concerns(family):
                yield of_rule(rule, family, rule.verdict)
    for rule in plan.allowed:
        for family in _FAMILIES:
            if rule.concerns(family):
                yield of_rule(rule, family, f"goto {ADMIT}" if rule.verdict == "accept" else rule.verdict)


def _strays(strays: Strays, interfaces: Iterable[str], stand: Stand) -> Iterator[Statement]:
    limit = f"limit rate {STRAYS_A_SECOND}/second burst {STRAYS_A_SECOND} packets"
    flags = [f"tcp flags & {each.mask:#x} == {each.value:#x}" if each.mask else "" for each in strays.tcpflags]
    kinds = [*(each or "meta l4proto tcp" for each in flags), "meta l4proto udp"]
    for family in _FAMILIES:
        if family not in stand.shut:
            if not stand.finds_services:
                continue
            yield from _no_strays(family)
        for interface in tuple(interfaces) or ("",):
            for kind in kinds:
                match = f"{coming_in_at(interface)}meta nfproto {family} fib daddr type local {kind} {limit}"
                yield statement(f"{match} log group {strays.group} queue-threshold 1", STRAYS)


def _no_strays(family: Family) -> Iterator[Statement]:
    """What is still on its way to the host's chain, which has the last word, and may let it in."""
    yield statement(f"meta nfproto {family} ct state != new return", "sessions")
    for is_wildcard in (0, 1):
        yield statement(f"meta nfproto {family} socket wildcard {is_wildcard} return", SERVICES)


def _admit(stand: Stand) -> Iterator[Statement]:
    mark = f"meta mark set {ADMIT_MARK:#x} " if stand.entrances else ""
    yield statement(f"{mark}accept", "what is let in")


def _cuts(plan: Plan) -> Iterator[Statement]:
    # See the backend iptables: what a service goes on sending must not bring back what was cut.
    here = [opening.port for opening in plan.cut if opening.to is None]
    for match in to_ports(here):
        yield statement(f"{match} ct direction reply drop", "sessions that were cut")


def _knocks(plan: Plan) -> Iterator[Statement]:
    nobody = "nobody knocks from these addresses"
    yield statement("meta nfproto ipv4 fib saddr type { local, broadcast, multicast } drop", nobody)
    yield statement("meta nfproto ipv6 fib saddr type { local, multicast } drop", nobody)
    # The backend iptables has the reasons.
    everybody = "nobody knocks at these addresses"
    yield statement("meta nfproto ipv4 fib daddr type { broadcast, multicast } drop", everybody)
    yield statement("meta nfproto ipv6 fib daddr type multicast drop", everybody)
    bare_syn = "meta l4proto tcp tcp flags & 0x17 == 0x2"
    for match in (bare_syn, "meta l4proto udp"):
        yield statement(f"{match} ct state invalid drop", "damaged knocks")
    if plan.answer == "reject" and plan.reader == "nfqueue":
        yield from _rejections(f"meta mark {REJECT_MARK:#x} ")
    verdict = f"goto {COPIES}" if plan.reader == "nflog" else f"queue num {plan.queue}"
    for match in to_ports(plan.knock_ports):
        if plan.knocks_a_second:
            yield from (statement(f"{match} {limit} counter drop", TOO_MANY) for limit in _limits(plan.knocks_a_second))
        yield statement(f"{match} {verdict}", "knocks")


def limited_sets() -> Iterator[tuple[str, str]]:
    """Yield the sets in which sources are counted, each with what it is declared with."""
    for family, name in LIMITED.items():
        kind = f"type {family}_addr; size {MOST_LIMITED}; flags dynamic,timeout; timeout {LIMITED_FOR}s;"
        yield name, kind


def _limits(a_second: int) -> Iterator[str]:
    # The backend iptables has the reasons. When a set is full nobody new is limited.
    burst = max(a_second, KNOCKS_AT_ONCE)
    for family, source in (("ipv4", "ip saddr"), ("ipv6", "ip6 saddr & ffff:ffff:ffff:ffff::")):
        name = LIMITED[family]
        yield f"update @{name} {{ {source} limit rate over {a_second}/second burst {burst} packets }}"


def _copies(plan: Plan) -> Iterator[Statement]:
    yield statement(f"{_COPIES_AT_ONCE} goto {AT_ONCE}", "few knocks are heard at once")
    yield statement(f"log group {plan.queue}", "knocks")
    yield from _answers(plan)


def _copies_at_once(plan: Plan) -> Iterator[Statement]:
    yield statement(f"log group {plan.queue} queue-threshold 1", "knocks")
    yield from _answers(plan)


def _answers(plan: Plan) -> Iterator[Statement]:
    if plan.answer == "reject":
        yield from _rejections("")
    else:
        yield statement("drop", "knocks")


def _rejections(match: str) -> Iterator[Statement]:
    yield statement(f"{match}meta l4proto tcp reject with tcp reset", "answers to knocks")
    yield statement(f"{match}reject", "answers to knocks")


def _forwarded(plan: Plan) -> Iterator[Statement]:
    # The rules are those of the backend iptables, and so are the reasons (docs/design/0009).
    for opening in plan.forwarded:
        yield statement(
            f"{_sessions(opening, 'reply')} ct state established,related goto {ADMIT}", "forwarded sessions"
        )
        if opening in plan.cut:
            yield statement(f"{_sessions(opening, 'original')} drop", "sessions that were cut")
        else:
            known = f"{_sessions(opening, 'original')} ct state established,related"
            yield statement(f"{known} goto {ADMIT}", "forwarded sessions")
    # nft knows ports of a tracked session for packets of its own protocol alone; what ICMP says of one has none.
    for host in dict.fromkeys(opening.to for opening in plan.forwarded if opening.to):
        family = family_of(host)
        errors = f"meta l4proto {ICMP[family]} ct state related ct reply {ADDRESS[family]} saddr {host}"
        yield statement(f"{errors} goto {ADMIT}", "errors about forwarded sessions")
    for interface in plan.interfaces or ("",):
        for opening in plan.forwarded:
            yield Statement(f"{coming_in_at(interface)}{_towards(opening)} jump {FORWARD_HOLES}", JUMPS[FORWARD_HOLES])
    for interface in plan.interfaces or ("",):
        for opening in plan.forwarded:
            yield Statement(f"{coming_in_at(interface)}{_towards(opening)} drop", guard_comment(opening))


def guard_comment(opening: Opening) -> str:
    """Return the comment of the rule that shuts a port on a host behind to whoever has no hole."""
    return fitting(f"nfknock: shut without a knock: {opening}")


def _sessions(opening: Opening, direction: str) -> str:
    """Match sessions that a port on a host behind answers ("reply") or has begun ("original")."""
    assert opening.to is not None
    address, port = ADDRESS[family_of(opening.to)], opening.port
    ends = f"ct {direction} {address} saddr {opening.to} ct {direction} proto-src {port.number}"
    return f"meta l4proto {port.protocol} {ends}"


def _towards(opening: Opening) -> str:
    assert opening.to is not None
    port = opening.port
    return f"{ADDRESS[family_of(opening.to)]} daddr {opening.to} {port.protocol} dport {port.number}"

"""Which rules stand where.

INPUT jumps first of all to NFKNOCK: what every host needs, what is always open, then the holes, then the knocks.
What none of them takes goes back to INPUT, to the host's own rules and in the end to its policy.

Where a door opens a port on a host behind this one, FORWARD jumps first of all to NFKNOCK_FORWARD: sessions with these
ports, then the holes, and everything else to these ports is dropped. FORWARD's policy is the host's, and what concerns
none of these ports goes back there.

Where strays are watched, INPUT jumps last of all, behind the host's own rules, to NFKNOCK_STRAYS: what comes there hit
a closed port.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s
from ipaddress import ip_network

from nfknock.backends.iptables.limit import limit_by_source
from nfknock.backends.xtables.binding import Options, Spec
from nfknock.core.model import Family, IPNetwork, Opening, Protocol, Rule, TcpFlags, family_of
from nfknock.core.plan import REJECT_MARK, STRAYS_A_SECOND, Plan, Strays

INPUT = "INPUT"
MAIN = "NFKNOCK"
HOLES = "NFKNOCK_HOLES"
KNOCKS = "NFKNOCK_KNOCKS"
FORWARD = "FORWARD"
FORWARDED = "NFKNOCK_FORWARD"
FORWARD_HOLES = "NFKNOCK_FORWARD_HOLES"
STRAYS = "NFKNOCK_STRAYS"
# With the reader nflog knocks go on from there: to the first of these, and while there are few to the second.
COPIES = "NFKNOCK_COPIES"
AT_ONCE = "NFKNOCK_AT_ONCE"
# Which built-in chain jumps to each of ours; to `LAST` behind all of its rules, to the others in front of them.
ENTRANCES = {MAIN: INPUT, FORWARDED: FORWARD, STRAYS: INPUT}
LAST = frozenset((STRAYS,))
# An empty chain whose name keeps the policy that INPUT had before us. A rule's comment would be gone after `-F`, and
# then the next `apply` would take our own DROP for the host's, and `remove` would lock everybody out.
FOUND = {policy: f"NFKNOCK_FOUND_{policy}" for policy in ("ACCEPT", "DROP")}

# The multiport extension's limit.
_PORTS_A_RULE = 15
# So many knocks a second reach the reader one by one; more are gathered (docs/design/0012-nflog.md).
_COPIES_AT_ONCE: Options = (("limit", "1000/sec"), ("limit-burst", "100"))

_OWN = frozenset((MAIN, HOLES, KNOCKS, COPIES, AT_ONCE, FORWARDED, FORWARD_HOLES, STRAYS, *FOUND.values()))

_BEHIND = {MAIN: "holes and knocks", FORWARDED: "forwarded services", STRAYS: "strays"}
_JUMP_COMMENT = re.compile(r"nfknock: [a-z ]+ \(plan (?P<digest>[0-9a-f]{8})\)")


def digest(plan: Plan, family: Family) -> str:
    """Return what tells one plan's rules from another's."""
    return blake2s(repr(chains(plan, family)).encode(), digest_size=4).hexdigest()


def jump(chain: str, digest: str) -> Spec:
    """Return the jump to a chain of ours from a built-in one.

    It says which plan stands behind it: a rule that differs from that was changed.
    """
    return Spec(jump=chain, matches=(_comment(f"{_BEHIND[chain]} (plan {digest})"),))


def read_digest(comment: str) -> str:
    """Return which plan a jump's comment names, "" if none."""
    match = _JUMP_COMMENT.fullmatch(comment)
    return match["digest"] if match else ""


def is_own(chain: str) -> bool:
    """Whether a chain is ours by its name; what else begins with NFKNOCK is somebody's own."""
    return chain in _OWN


def chains(plan: Plan, family: Family) -> dict[str, list[Spec]]:
    """Return the rules of every chain but those of the holes."""
    own = {MAIN: list(_main(plan, family)), KNOCKS: list(_knocks(plan, family))}
    if plan.reader == "nflog":
        own |= {COPIES: list(_copies(plan, family)), AT_ONCE: list(_copies_at_once(plan, family))}
    if forwarded(plan, family):
        own[FORWARDED] = list(_forwarded(plan, family))
    if plan.strays:
        own[STRAYS] = list(_strays(plan.strays, plan.interfaces))
    return own


def forwarded(plan: Plan, family: Family) -> tuple[Opening, ...]:
    """Return the ports on hosts behind this one that are this family's to guard."""
    return tuple(opening for opening in plan.forwarded if opening.to and family_of(opening.to) == family)


def holes_chain(opening: Opening) -> str:
    """Return the chain that holes of this kind stand in."""
    return HOLES if opening.to is None else FORWARD_HOLES


def _main(plan: Plan, family: Family) -> Iterator[Spec]:
    yield from _cuts(plan)
    for rule in (*plan.baseline, *plan.allowed):
        if rule.concerns(family):
            yield _spec(rule, family)
    for chain, what in ((HOLES, "holes"), (KNOCKS, "knocks")):
        for interface in plan.interfaces or (None,):
            yield Spec(jump=chain, interface=interface, matches=(_comment(what),))


def _cuts(plan: Plan) -> Iterator[Spec]:
    """Keep sessions from being taken up again that were cut.

    A service that goes on sending makes the kernel track the session anew, with the service as the one who began it.
    What its client answers would then belong to an established session.
    """
    protocols: tuple[Protocol, ...] = ("tcp", "udp")
    for protocol in protocols:
        here = [opening.port for opening in plan.cut if opening.to is None and opening.port.protocol == protocol]
        numbers = sorted(port.number for port in here)
        for some in _portions(numbers):
            answers: tuple[str, Options] = ("conntrack", (("ctdir", "REPLY"),))
            yield Spec(
                jump="DROP",
                protocol=protocol,
                matches=(*_transport(protocol, None, some), answers, _comment("sessions that were cut")),
            )


def _knocks(plan: Plan, family: Family) -> Iterator[Spec]:
    # An address of the host itself cannot knock from outside, and must never be let in. The kernel knows them all. For
    # IPv6 it takes several types as an address that is all of them at once (match_type6 in xt_addrtype.c), which none
    # is; a multicast source does not get past the core.
    own = "LOCAL,BROADCAST,MULTICAST" if family == "ipv4" else "LOCAL"
    yield Spec(
        jump="DROP",
        matches=(("addrtype", (("src-type", own),)), _comment("nobody knocks from these addresses")),
    )
    # One packet to a whole net would knock at every host in it.
    everybody = "BROADCAST,MULTICAST" if family == "ipv4" else "MULTICAST"
    yield Spec(
        jump="DROP",
        matches=(("addrtype", (("dst-type", everybody),)), _comment("nobody knocks at these addresses")),
    )
    yield from _damaged()
    if plan.answer == "reject" and plan.reader == "nfqueue":
        yield from _rejections(family, ("mark", (("mark", hex(REJECT_MARK)),)))
    jump, options = (COPIES, ()) if plan.reader == "nflog" else ("NFQUEUE", (("queue-num", str(plan.queue)),))
    protocols: tuple[Protocol, ...] = ("tcp", "udp")
    for protocol in protocols:
        numbers = [port.number for port in plan.knock_ports if port.protocol == protocol]
        for some in _portions(numbers):
            ports = _transport(protocol, None, some)
            if plan.knocks_a_second:
                limit = (limit_by_source(plan.knocks_a_second, family), _comment("knocks, too many of one source"))
                yield Spec(jump="DROP", protocol=protocol, matches=(*ports, *limit))
            yield Spec(jump=jump, protocol=protocol, matches=(*ports, _comment("knocks")), options=options)


def _damaged() -> Iterator[Spec]:
    """Knocks that no service would get: connection tracking has looked at their checksums.

    Of TCP bare SYNs alone. Others that belong to no connection are invalid as well, and a door may ask for them with
    its `tcpflags`. What reads copies cannot look for itself: of a packet that was made on this very machine, by a guest
    of it, there is no checksum yet.
    """
    invalid: tuple[str, Options] = ("conntrack", (("ctstate", "INVALID"),))
    bare_syn: tuple[str, Options] = ("tcp", (("syn", ""),))
    yield Spec(jump="DROP", protocol="tcp", matches=(bare_syn, invalid, _comment("damaged knocks")))
    yield Spec(jump="DROP", protocol="udp", matches=(invalid, _comment("damaged knocks")))


def _copies(plan: Plan, family: Family) -> Iterator[Spec]:
    yield Spec(jump=AT_ONCE, matches=(("limit", _COPIES_AT_ONCE), _comment("few knocks are heard at once")))
    yield _copy(plan)
    yield from _answers(plan, family)


def _copies_at_once(plan: Plan, family: Family) -> Iterator[Spec]:
    yield _copy(plan, ("nflog-threshold", "1"))
    yield from _answers(plan, family)


def _copy(plan: Plan, *options: tuple[str, str]) -> Spec:
    # No prefix: the library frees its buffer too early.
    return Spec(jump="NFLOG", matches=(_comment("knocks"),), options=(("nflog-group", str(plan.queue)), *options))


def _answers(plan: Plan, family: Family) -> Iterator[Spec]:
    """What becomes of a knock of which there is a copy: NFLOG lets it go on, and nobody else may have it."""
    if plan.answer == "reject":
        yield from _rejections(family)
    else:
        yield Spec(jump="DROP", matches=(_comment("knocks"),))


def _rejections(family: Family, *matches: tuple[str, Options]) -> Iterator[Spec]:
    unreachable = "icmp-port-unreachable" if family == "ipv4" else "icmp6-port-unreachable"
    matches = (*matches, _comment("answers to knocks"))
    yield Spec(jump="REJECT", protocol="tcp", matches=matches, options=(("reject-with", "tcp-reset"),))
    yield Spec(jump="REJECT", matches=matches, options=(("reject-with", unreachable),))


def _forwarded(plan: Plan, family: Family) -> Iterator[Spec]:
    guarded = forwarded(plan, family)
    # By the tuple that is tracked and not by the packet's own head, so that what ICMP says of a session passes as well.
    # A session that began unseen is first heard of from whoever speaks next, which may be the host behind.
    for opening in guarded:
        yield _sessions_spec(opening, "ctreplsrc")
        # One that was cut would come back that way, as the host behind goes on sending.
        yield _cut_spec(opening) if opening in plan.cut else _sessions_spec(opening, "ctorigsrc")
    # Holes are looked at for packets to these ports alone: others that pass through here do not pay for them.
    for verdict, what in ((FORWARD_HOLES, "forwarded holes"), ("DROP", "shut without a knock")):
        for opening in guarded:
            for interface in plan.interfaces or (None,):
                yield Spec(
                    jump=verdict,
                    protocol=opening.port.protocol,
                    destination=_destination(opening),
                    interface=interface,
                    matches=(*_transport(opening.port.protocol, None, (opening.port.number,)), _comment(what)),
                )


def _strays(strays: Strays, interfaces: Iterable[str]) -> Iterator[Spec]:
    # What is sent to many (discovery in a LAN) is no scan.
    here: tuple[str, Options] = ("addrtype", (("dst-type", "LOCAL"),))
    # One limit for all sources: it needs no memory, and whoever scans sends much more than what has to come through.
    limit: tuple[str, Options] = ("limit", (("limit", f"{STRAYS_A_SECOND}/sec"), ("limit-burst", str(STRAYS_A_SECOND))))
    kinds: list[tuple[str, tuple[tuple[str, Options], ...]]] = [("tcp", _flags(flags)) for flags in strays.tcpflags]
    for protocol, matches in (*kinds, ("udp", ())):
        for interface in tuple(interfaces) or (None,):
            yield Spec(
                jump="NFLOG",
                protocol=protocol,
                interface=interface,
                matches=(*matches, here, limit, _comment("strays")),
                options=(("nflog-group", str(strays.group)), ("nflog-threshold", "1")),
            )


def _flags(flags: TcpFlags) -> tuple[tuple[str, Options], ...]:
    """The match for TCP packets with certain flags, none if any will do."""
    if not flags.mask:
        return ()
    looked_at, wanted = (
        ",".join(name.upper() for bit, name in enumerate(TcpFlags.NAMES) if number >> bit & 1) or "NONE"
        for number in (flags.mask, flags.value)
    )
    return (("tcp", (("tcp-flags", (looked_at, wanted)),)),)


def _sessions_spec(opening: Opening, end: str) -> Spec:
    options = (("ctstate", "ESTABLISHED,RELATED"), *_tracked(opening, end))
    return Spec(jump="ACCEPT", matches=(("conntrack", options), _comment("forwarded sessions")))


def _cut_spec(opening: Opening) -> Spec:
    return Spec(
        jump="DROP", matches=(("conntrack", _tracked(opening, "ctorigsrc")), _comment("sessions that were cut"))
    )


def _tracked(opening: Opening, end: str) -> Options:
    """The match for sessions that have a port on a host behind this one at an end of the tuple that is tracked."""
    port = opening.port
    return (("ctproto", port.protocol), (end, str(opening.to)), (f"{end}port", str(port.number)))


def _destination(opening: Opening) -> IPNetwork | None:
    return None if opening.to is None else ip_network(opening.to)


def _spec(rule: Rule, family: Family) -> Spec:
    matches: list[tuple[str, Options]] = []
    if rule.states:
        matches.append(("conntrack", (("ctstate", ",".join(rule.states)),)))
    if rule.protocol is not None and (rule.source_port is not None or rule.ports):
        matches += _transport(rule.protocol, rule.source_port, rule.ports)
    if rule.icmp_type is not None:
        name, option = ("icmp", "icmp-type") if family == "ipv4" else ("icmp6", "icmpv6-type")
        matches.append((name, ((option, str(rule.icmp_type)),)))
    if rule.hop_limit is not None:
        matches.append(("hl", (("hl-eq", str(rule.hop_limit)),)))
    return Spec(
        jump=rule.verdict.upper(),
        protocol=rule.protocol,
        source=rule.source,
        interface=rule.interface,
        matches=(*matches, _comment(rule.comment)),
    )


def hole_spec(opening: Opening, source: str, comment: str, last_second: str | None) -> Spec:
    """Return one rule of a hole: `opening` for `source`, through the second `last_second` (ISO, UTC; None: no end)."""
    port = opening.port
    ending: tuple[tuple[str, Options], ...] = (("time", (("datestop", last_second),)),) if last_second else ()
    return Spec(
        jump="ACCEPT",
        protocol=port.protocol,
        source=ip_network(source),
        destination=_destination(opening),
        matches=((port.protocol, (("dport", str(port.number)),)), *ending, ("comment", (("comment", comment),))),
    )


def sets_spec(chain: str, sets: str) -> Spec:
    """Return the one rule of a chain of holes that are entries of sets."""
    ends = {HOLES: "src,dst", FORWARD_HOLES: "src,dst,dst"}[chain]
    return Spec(jump="ACCEPT", matches=(("set", (("match-set", (sets, ends)),)), _comment("holes")))


def _portions(numbers: Iterable[int]) -> Iterator[Sequence[int]]:
    """Split ports into as many as one rule takes."""
    remaining = list(numbers)
    while remaining:
        yield remaining[:_PORTS_A_RULE]
        remaining = remaining[_PORTS_A_RULE:]


def _transport(protocol: str, source_port: int | None, ports: Sequence[int]) -> list[tuple[str, Options]]:
    """The matches for a port of the sender and one or more here."""
    options: list[tuple[str, str]] = []
    if source_port is not None:
        options.append(("sport", str(source_port)))
    if len(ports) == 1:
        options.append(("dport", str(ports[0])))
    several: tuple[str, Options] = ("multiport", (("dports", ",".join(map(str, ports))),))
    return [*([(protocol, tuple(options))] if options else []), *([several] if len(ports) > 1 else [])]


def _comment(text: str) -> tuple[str, Options]:
    return ("comment", (("comment", f"nfknock: {text}"),))

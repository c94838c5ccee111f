"""Where the host's nf_tables ruleset would drop what nfknock lets in, and how its owner mends that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nfknock.core.model import Door, IPAddress, IPNetwork, Port, Rule
from nfknock.core.plan import Plan
from nfknock.host import legacy
from nfknock.host.interfaces import LOOPBACK, entrances
from nfknock.host.nftables import Fate, judge
from nfknock.host.nftread import Chain, Ruleset
from nfknock.host.probe import Probe

# linux/netfilter_ipv4.h: NF_IP_PRI_FILTER, and that of IPv6.
_LEGACY_FILTER = 0

Owner = Literal["ufw", "firewalld", "iptables", "nft"]

_NAMES: dict[Owner, str] = {
    "ufw": "ufw",
    "firewalld": "firewalld",
    "iptables": "the nft variant of iptables",
    "nft": "the host's nf_tables ruleset",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A port that nfknock lets packets in to: from where, at which interfaces (none: at all), and by what.

    It is the port of a host behind this one if there is one; `is_any_port`: one that no rule names.
    """

    port: Port
    by: str
    source: IPNetwork | None = None
    interfaces: tuple[str, ...] = ()
    behind: IPAddress | None = None
    is_any_port: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A base chain that drops packets for these IP versions, or may: to a port that is opened, or knocks (None)."""

    opened: Opened | None
    chain: Chain
    owner: Owner
    fate: Fate
    versions: tuple[int, ...]

    @property
    def text(self) -> str:
        """What is wrong, in words. Knock ports are secrets, and are not named."""
        families = " and ".join(f"IPv{version}" for version in self.versions)
        where = f"{_NAMES[self.owner]} (chain {self.chain}) {self.fate}"
        if self.opened:
            return f"{where} new connections to {self.opened.port} over {families}, which {self.opened.by} opens"
        why = "" if self.fate == "drops" else ": of the two, what was loaded last comes first"
        return f"{where} knocks over {families} before nfknock sees them{why}"

    @property
    def mend(self) -> str:
        """What lets the packets pass there; nfknock guards them all the same."""
        if self.opened is None:
            return "accept the knock ports there too; nfknock drops their packets itself"
        port, protocol = self.opened.port.number, self.opened.port.protocol
        match self.owner:
            case "ufw":
                return f"run: ufw allow {port}/{protocol}"
            case "firewalld":
                return f"run: firewall-cmd --permanent --add-port={port}/{protocol} && firewall-cmd --reload"
            case "iptables":
                command = "ip6tables" if self.versions == (6,) else "iptables"
                return f"run: {command} -I {self.chain.key[2]} -p {protocol} --dport {port} -j ACCEPT"
            case "nft":
                return f"run: nft insert rule {self.chain} {protocol} dport {port} accept"


def owner_of(chain: Chain, ruleset: Ruleset) -> Owner:
    """Return who wrote a base chain, as far as its name, and those of its neighbours, tell."""
    family, table, name = chain.key
    if table == "firewalld":
        return "firewalld"
    if any(key[:2] == (family, table) and key[2].startswith(("ufw-", "ufw6-")) for key in ruleset.chains):
        return "ufw"
    return "iptables" if name == "INPUT" and table in ("filter", "mangle") else "nft"


def opened_by(plan: Plan, doors: Iterable[Door]) -> Iterator[Opened]:
    """Yield every port that a plan and its doors open to somebody who is not on this host."""
    for door in doors:
        for port in door.opens_here:
            yield Opened(port=port, by=f"the door {door.name}", interfaces=plan.interfaces)
    for rule in plan.allowed:
        if rule.interface != LOOPBACK and rule.verdict == "accept":
            yield from _opened_by_rule(rule)


def _opened_by_rule(rule: Rule) -> Iterator[Opened]:
    if rule.protocol not in ("tcp", "udp"):
        return
    interfaces = (rule.interface,) if rule.interface else ()
    for number in rule.ports:
        yield Opened(port=Port(number, rule.protocol), by="`allow`", source=rule.source, interfaces=interfaces)


def conflicts(ruleset: Ruleset, opened: Iterable[Opened]) -> Iterator[Conflict]:
    """Yield what stands in the way of these ports. Raises OSError."""
    for one in dict.fromkeys(opened):
        found: dict[tuple[Chain, Fate], list[int]] = {}
        for version in _versions(one):
            for chain, fate in _fates(ruleset, one, version).items():
                found.setdefault((chain, fate), []).append(version)
        for (chain, fate), versions in found.items():
            owner = owner_of(chain, ruleset)
            yield Conflict(opened=one, chain=chain, owner=owner, fate=fate, versions=tuple(versions))


def knock_conflicts(ruleset: Ruleset, plan: Plan) -> Iterator[Conflict]:
    """Yield what keeps knocks from coming to nfknock. Raises OSError.

    Chains are run by their priority. Among those with the one of the legacy filter table the last that was registered
    comes first: that is ours where `apply` made the table, until the others are loaded anew.
    """
    found: dict[Chain, list[int]] = {}
    for version in (4, 6):
        chains = {
            each.chain: None
            for port in plan.knock_ports
            for probe in _probes(Opened(port=port, by="", interfaces=plan.interfaces), version)
            for each in judge(ruleset, probe, last_priority=_LEGACY_FILTER)
            if each.fate == "drops"
        }
        for chain in chains:
            found.setdefault(chain, []).append(version)
    for chain, versions in found.items():
        fate: Fate = "drops" if chain.priority < _LEGACY_FILTER else "may drop"
        owner = owner_of(chain, ruleset)
        yield Conflict(opened=None, chain=chain, owner=owner, fate=fate, versions=tuple(versions))


def _versions(opened: Opened) -> tuple[int, ...]:
    known = opened.source or opened.behind
    return (4, 6) if known is None else (known.version,)


def _fates(ruleset: Ruleset, opened: Opened, version: int) -> dict[Chain, Fate]:
    """Return which base chains drop a port's packets: those that do so at every entrance do, others may."""
    judgements = [{each.chain: each.fate for each in judge(ruleset, probe)} for probe in _probes(opened, version)]
    fates: dict[Chain, Fate] = {}
    for chain in {chain: None for each in judgements for chain in each}:
        is_sure = all(each.get(chain) == "drops" for each in judgements)
        fates[chain] = "drops" if is_sure else "may drop"
    return fates


def _probes(opened: Opened, version: int) -> list[Probe]:
    """Return a packet for every entrance."""
    return [
        Probe(
            port=opened.port,
            version=version,
            interface=name,
            interface_number=number,
            source=opened.source,
            is_any_port=opened.is_any_port,
            behind=opened.behind,
        )
        for name, number in entrances(opened.interfaces)
    ]


def all_conflicts(ruleset: Ruleset, plan: Plan, doors: Iterable[Door]) -> Iterator[Conflict]:
    """Yield what stands in the way of what is opened, and of knocks. Raises OSError."""
    yield from conflicts(ruleset, opened_by(plan, doors))
    yield from knock_conflicts(ruleset, plan)


def legacy_conflicts(plan: Plan, doors: Iterable[Door]) -> Iterator[tuple[str, str]]:
    """Yield what the legacy tables drop of what nf_tables lets in, as text and mend. Raises OSError.

    nfknock's own part there is not looked at: it goes when the backend changes.
    """
    mend = 'accept it there too, or say backend = "iptables" or "ipset" under [firewall]'
    tables = {version: table for version in (4, 6) if (table := _legacy_filter(version))}
    for one in dict.fromkeys(opened_by(plan, doors)):
        dropped = [
            f"IPv{version}"
            for version in _versions(one)
            if version in tables
            and all(tables[version].ends_without_us(probe) == {"drop"} for probe in _probes(one, version))
        ]
        if dropped:
            families = " and ".join(dropped)
            yield f"the legacy tables drop new connections to {one.port} over {families}, which {one.by} opens", mend


def _legacy_filter(version: int) -> legacy.Table | None:
    return legacy.read("filter", 4 if version == 4 else 6)

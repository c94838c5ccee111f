"""Rules in nft's language, as nft lists them, so that a dry run shows what is different and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nfknock.core.model import Family, Port, Rule

ADDRESS: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}
ICMP: dict[Family, str] = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
_ICMP_TYPES: dict[Family, dict[int, str]] = {
    "ipv4": {0: "echo-reply", 3: "destination-unreachable", 8: "echo-request", 11: "time-exceeded"}
    | {12: "parameter-problem"},
    "ipv6": {1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem"}
    | {128: "echo-request", 129: "echo-reply", 130: "mld-listener-query", 131: "mld-listener-report"}
    | {132: "mld-listener-done", 133: "nd-router-solicit", 134: "nd-router-advert", 135: "nd-neighbor-solicit"}
    | {136: "nd-neighbor-advert", 137: "nd-redirect", 143: "mld2-listener-report"},
}
_LONGEST_COMMENT = 127


@dataclass(frozen=True, slots=True)
class Statement:
    """One rule: what nft reads, and the comment by which it is known again."""

    text: str
    comment: str

    def __str__(self) -> str:
        return f'{self.text} comment "{self.comment}"'


def of_rule(rule: Rule, family: Family, verdict: str) -> Statement:
    """Return what a rule of no backend's words says for one family."""
    is_told_by_more = rule.icmp_type is not None or rule.source is not None
    words = [] if is_told_by_more else [f"meta nfproto {family}"]
    if rule.interface:
        words.append(coming_in_at(rule.interface).strip())
    if rule.source is not None:
        source = rule.source.network_address if rule.source.num_addresses == 1 else rule.source
        words.append(f"{ADDRESS[family]} saddr {source}")
    if rule.icmp_type is not None:
        name = _ICMP_TYPES[family].get(rule.icmp_type, rule.icmp_type)
        words.append(f"{'icmp' if family == 'ipv4' else 'icmpv6'} type {name}")
    elif rule.source_port is not None or rule.ports:
        words += [f"{rule.protocol} sport {rule.source_port}"] if rule.source_port is not None else []
        words += [f"{rule.protocol} dport {_set(rule.ports)}"] if rule.ports else []
    elif rule.protocol:
        words.append(f"meta l4proto {ICMP['ipv6'] if rule.protocol == 'icmpv6' else rule.protocol}")
    if rule.hop_limit is not None:
        words.append(f"ip6 hoplimit {rule.hop_limit}")
    if rule.states:
        words.append(f"ct state {','.join(rule.states).lower()}")
    return statement(" ".join((*words, verdict)), rule.comment)


def to_ports(ports: Iterable[Port]) -> Iterator[str]:
    """Yield what matches packets to these ports: once for each protocol."""
    ports = tuple(ports)
    for protocol in ("tcp", "udp"):
        numbers = sorted({port.number for port in ports if port.protocol == protocol})
        if numbers:
            yield f"{protocol} dport {_set(numbers)}"


def _set(numbers: Iterable[int]) -> str:
    written = ", ".join(map(str, numbers))
    return f"{{ {written} }}" if "," in written else written


def coming_in_at(interface: str) -> str:
    """Return what matches packets at an interface, with a space behind it; nothing if none is named."""
    if not interface:
        return ""
    name = f"{interface[:-1]}*" if interface.endswith("+") else interface
    return f'iifname "{name}" '


def statement(text: str, comment: str) -> Statement:
    """Return a rule with the comment that begins like all of ours."""
    return Statement(text, fitting(f"nfknock: {comment}"))


def fitting(comment: str) -> str:
    """Make a comment fit into nft's language, which has no escapes, and into the kernel's record of it."""
    plain = comment.replace('"', "'").replace("\n", " ").replace("\\", "/")
    return plain.encode()[:_LONGEST_COMMENT].decode(errors="ignore")

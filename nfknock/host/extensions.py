"""What the extensions of x_tables say of a packet, in legacy tables and, as "compat" expressions, in nf_tables.

The structures are those of linux/netfilter/xt_*.h; numbers in them are in the host's order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from nfknock.host.probe import STATE_NEW, Answer, Probe, every

# linux/netfilter/xt_addrtype.h: what this host's own address is, and what a stranger's is.
_LOCAL, _UNICAST = 1 << 2, 1 << 1
_RECENT_SET = 1 << 1
# Whoever wrote `-m state` gets a conntrack match that says so.
_STATE_ALIAS = 1 << 13

REFUSING = frozenset(("REJECT", "DROP", "TARPIT"))
"""Targets that let nobody in."""
PASSING = frozenset(
    [
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNMARK",
        "CONNSECMARK",
        "CT",
        "DSCP",
        "HL",
        "IDLETIMER",
        "LED",
        "LOG",
        "MARK",
        "NFLOG",
        "NOTRACK",
        "RATEEST",
        "SECMARK",
        "SET",
        "TCPMSS",
        "TEE",
        "TOS",
        "TRACE",
        "TTL",
        "ULOG",
    ]
)
"""Targets after which the next rule has its turn."""


@dataclass(frozen=True, slots=True)
class Match:
    """An extension's question about a packet."""

    name: str
    revision: int
    info: bytes

    def answer(self, probe: Probe) -> Answer:
        """Return what it comes to, None for what is not understood."""
        ask = _ANSWERS.get(self.name)
        try:
            return ask(self, probe) if ask else None
        except struct.error:
            return None


def _tcp(match: Match, probe: Probe) -> Answer:
    *ports, option, mask, wanted, inverted = struct.unpack_from("=4H4B", match.info)
    flags = (probe.flags & mask == wanted) ^ bool(inverted & 4)
    return every(_ports(ports, inverted, probe), flags, None if option else True)


def _udp(match: Match, probe: Probe) -> Answer:
    *ports, inverted = struct.unpack_from("=4HB", match.info)
    return _ports(ports, inverted, probe)


def _ports(ports: list[int], inverted: int, probe: Probe) -> Answer:
    """Compare the sender's range and the one here."""
    sender_low, sender_high, low, high = ports
    own = probe.goes_to(low, high) ^ bool(inverted & 2)
    is_any_sender = (sender_low, sender_high) == (0, 65535) and not inverted & 1
    return every(own, True if is_any_sender else None)


def _multiport(match: Match, probe: Probe) -> Answer:
    flags, count, *ports = struct.unpack_from("=2B15H", match.info)
    if flags != 1:
        return None  # about the sender's port
    ranges, inverted = (match.info[32:47], match.info[47]) if match.revision >= 1 else (bytes(15), 0)
    found, at = False, 0
    while at < count:
        is_range = bool(ranges[at]) and at + 1 < count
        found |= probe.goes_to(ports[at], ports[at + is_range])
        at += 1 + is_range
    return found ^ bool(inverted)


def _conntrack(match: Match, _probe: Probe) -> Answer:
    if match.revision not in (1, 2, 3):
        return None
    flags, inverted, states = struct.unpack_from("=3H" if match.revision > 1 else "=2HB", match.info, 146)
    state = bool(states & STATE_NEW) ^ bool(inverted & 1)
    flags &= ~_STATE_ALIAS
    if not flags & 1:
        return None
    return every(state, True if flags == 1 else None)


def _state(match: Match, _probe: Probe) -> Answer:
    return bool(struct.unpack_from("=I", match.info)[0] & STATE_NEW)


def _addrtype(match: Match, probe: Probe) -> Answer:
    if match.revision == 1:
        source, here, flags = struct.unpack_from("=2HI", match.info)
        is_source_inverted, is_here_inverted = bool(flags & 1), bool(flags & 2)
    else:
        source, here, *inverted = struct.unpack_from("=2H2I", match.info)
        is_source_inverted, is_here_inverted = map(bool, inverted)
    target = _LOCAL if probe.behind is None else _UNICAST
    return every(
        bool(source & _UNICAST) ^ is_source_inverted if source else True,
        bool(here & target) ^ is_here_inverted if here else True,
    )


def _recent(match: Match, probe: Probe) -> Answer:
    _seconds, _hits, what, inverted = struct.unpack_from("=2I2B", match.info)
    if what & _RECENT_SET:
        return not inverted
    return bool(inverted) if probe.is_anybody else None


def _set(match: Match, probe: Probe) -> Answer:
    is_inverted = bool(struct.unpack_from("=H2B", match.info)[2] & 1)
    return is_inverted if probe.is_anybody else None


def _comment(_match: Match, _probe: Probe) -> Answer:
    return True


_ANSWERS: dict[str, Callable[[Match, Probe], Answer]] = {
    "addrtype": _addrtype,
    "comment": _comment,
    "conntrack": _conntrack,
    "multiport": _multiport,
    "recent": _recent,
    "set": _set,
    "state": _state,
    "tcp": _tcp,
    "udp": _udp,
}

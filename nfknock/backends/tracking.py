"""Connection tracking: sessions that stood before the firewall did, and sessions through holes.

A host without any rule tracks no connections. When the first rule appears, sessions that stand already are unknown to
the kernel: the next packet that comes in on one counts as NEW, and a policy of DROP would cut an idle SSH session, or
an upload in the middle. So before the firewall is put in place, tracking is told of every TCP session of this host.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from pathlib import Path
from typing import Any

from nfknock.core.model import Hole, IPAddress, Opening, Port, Protocol, as_source
from nfknock.errors import MissingDependencyError, TrackingError

# linux/netfilter/nf_conntrack_common.h, nf_conntrack_tcp.h
_SEEN_REPLY, _ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3
_TCP_ESTABLISHED = 3
# Window scales of a session that is joined in the middle are unknown, so windows must not be judged.
_BE_LIBERAL = 0x08
# What the kernel itself gives an established TCP session (nf_conntrack_tcp_timeout_established): five days.
_SESSION_TIMEOUT = 432_000
# net/tcp_states.h: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK; the state column of /proc/net/tcp.
_STANDING = frozenset(("01", "04", "05", "08", "09"))
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOL_NAMES: dict[int, Protocol] = {6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Session:
    """A TCP session of this host. Which side began it does not matter here."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int


def standing_sessions() -> Iterator[Session]:
    """Yield this host's TCP sessions with other hosts, as /proc/net/tcp and tcp6 have them."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _slot, local, remote, state, *_rest = line.split()
            if state in _STANDING:
                session = Session(*_endpoint(local), *_endpoint(remote))
                if not session.remote.is_loopback:
                    yield session


def adopt_sessions(sessions: Iterable[Session]) -> int:
    """Tell connection tracking of sessions that it does not know; return of how many. Raises TrackingError."""
    sessions = tuple(sessions)
    known = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        some = [session for session in sessions if session.remote.version == _VERSIONS[family]]
        if some:
            with _conntrack(family) as conntrack:
                known += sum(_adopt(conntrack, family, session) for session in some)
    return known


def adopt(known: frozenset[Session]) -> tuple[frozenset[Session], tuple[str, ...]]:
    """Let sessions live on that stand, but for those that are known; return them all, and warnings."""
    standing = frozenset(standing_sessions())
    try:
        adopt_sessions(standing - known)
    except TrackingError as exc:
        return standing, (f"sessions that stand already may be cut: {exc}",)
    return standing, ()


def count_sessions(holes: Sequence[Hole]) -> list[int]:
    """Return for each hole how many tracked sessions its source has with what it opens. Raises TrackingError."""
    counts = [0] * len(holes)
    holes_of: dict[IPAddress, list[int]] = {}
    for number, hole in enumerate(holes):
        holes_of.setdefault(hole.source, []).append(number)
    for family in {_FAMILIES[hole.source.version] for hole in holes}:
        with _conntrack(family) as conntrack:
            for flow in filter(attrgetter("is_up"), _flows(conntrack)):
                (source, behind), (_source, here) = next(flow.uses())
                own = holes_of.get(source, ())
                # A session with a host behind is none with this one, be it to the same port.
                for number in [each for each in own if behind in holes[each].opens] or own:
                    counts[number] += behind in holes[number].opens or here in holes[number].opens
    return counts


def cut_sessions(holes: Sequence[Hole]) -> int:
    """Forget the tracked sessions of each hole's source to what it opened, and return of how many.

    Their next packets are new to the kernel, and what nothing opens is dropped. Raises TrackingError.
    """
    meant = {(hole.source, opening) for hole in holes for opening in hole.opens}
    cut = 0
    for family in {_FAMILIES[hole.source.version] for hole in holes}:
        with _conntrack(family) as conntrack:
            flows = [flow for flow in _flows(conntrack) if any(meant.intersection(end) for end in flow.uses())]
            cut += sum(_forget(conntrack, family, flow) for flow in flows)
    return cut


@dataclass(frozen=True, slots=True)
class _Flow:
    """A tracked TCP or UDP session: both ends as the one who began it wrote them, and who answers, from which port.

    The two differ where addresses are translated on the way to a host behind this one.
    """

    source: IPAddress
    source_port: int
    target: IPAddress
    port: Port
    there: IPAddress
    port_there: Port
    is_up: bool
    """Whether it was answered, and is not closed."""

    def uses(self) -> Iterator[tuple[tuple[IPAddress, Opening], ...]]:
        """Yield which openings it can be a session of, seen as begun by either side; the forwarded one first."""
        back = Port(self.source_port, self.port.protocol)
        yield (self.source, Opening(self.port_there, self.there)), (self.source, Opening(self.port))
        yield (self.there, Opening(back, self.source)), (self.there, Opening(back))


def _flows(conntrack: Any) -> Iterator[_Flow]:
    for entry in conntrack.dump():
        original, reply = entry.get_attr("CTA_TUPLE_ORIG"), entry.get_attr("CTA_TUPLE_REPLY")
        if original is None or reply is None:
            continue
        transport, answers = original.get_attr("CTA_TUPLE_PROTO"), reply.get_attr("CTA_TUPLE_PROTO")
        protocol = _PROTOCOL_NAMES.get(transport.get_attr("CTA_PROTO_NUM"))
        source_port, number = transport.get_attr("CTA_PROTO_SRC_PORT"), transport.get_attr("CTA_PROTO_DST_PORT")
        number_there = answers.get_attr("CTA_PROTO_SRC_PORT")
        if not (protocol and source_port and number and number_there):
            continue
        is_answered = bool((entry.get_attr("CTA_STATUS") or 0) & _SEEN_REPLY)
        yield _Flow(
            source=_address(original, "SRC"),
            source_port=source_port,
            target=_address(original, "DST"),
            port=Port(number, protocol),
            there=_address(reply, "SRC"),
            port_there=Port(number_there, protocol),
            # One that was closed is remembered for a while.
            is_up=is_answered and (protocol != "tcp" or _tcp_state(entry) == _TCP_ESTABLISHED),
        )


def _address(direction: Any, end: str) -> IPAddress:
    addresses = direction.get_attr("CTA_TUPLE_IP")
    return as_source(addresses.get_attr(f"CTA_IP_V4_{end}") or addresses.get_attr(f"CTA_IP_V6_{end}"))


def _forget(conntrack: Any, family: int, flow: _Flow) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    meant = NFCTAttrTuple(
        family=family,
        saddr=str(flow.source),
        daddr=str(flow.target),
        proto={"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}[flow.port.protocol],
        sport=flow.source_port,
        dport=flow.port.number,
    )
    try:
        conntrack.entry("del", tuple_orig=meant)
    except NetlinkError as exc:
        if exc.code == errno.ENOENT:
            return False  # it ended meanwhile
        raise
    return True


def _tcp_state(entry: Any) -> int | None:
    info = entry.get_attr("CTA_PROTOINFO")
    tcp = info and info.get_attr("CTA_PROTOINFO_TCP")
    return tcp.get_attr("CTA_PROTOINFO_TCP_STATE") if tcp else None


def _adopt(conntrack: Any, family: int, session: Session) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    forth = NFCTAttrTuple(
        family=family,
        saddr=str(session.remote),
        daddr=str(session.local),
        proto=socket.IPPROTO_TCP,
        sport=session.remote_port,
        dport=session.local_port,
    )
    liberal = {"value": (_BE_LIBERAL, _BE_LIBERAL)}
    state = [
        ["CTA_PROTOINFO_TCP_STATE", _TCP_ESTABLISHED],
        ["CTA_PROTOINFO_TCP_FLAGS_ORIGINAL", liberal],
        ["CTA_PROTOINFO_TCP_FLAGS_REPLY", liberal],
    ]
    try:
        conntrack.entry(
            "add",
            tuple_orig=forth,
            tuple_reply=forth.reverse(),
            status=_SEEN_REPLY | _ASSURED | _CONFIRMED,
            timeout=_SESSION_TIMEOUT,
            protoinfo={"attrs": [["CTA_PROTOINFO_TCP", {"attrs": state}]]},
        )
    except NetlinkError as exc:
        if exc.code == errno.EEXIST:
            return False
        raise
    return True


@contextmanager
def _conntrack(family: int) -> Iterator[Any]:
    """Talk to connection tracking; whatever goes wrong there is a TrackingError."""
    try:
        from pyroute2 import NFCTSocket
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise MissingDependencyError("pyroute2") from None
    try:
        with NFCTSocket(nfgen_family=family) as conntrack:
            yield conntrack
    except NetlinkError as exc:
        raise TrackingError(f"asking connection tracking: {exc}") from exc
    except OSError as exc:
        raise TrackingError(f"reaching connection tracking: {(exc.strerror or str(exc)).lower()}") from exc


def _endpoint(text: str) -> tuple[IPAddress, int]:
    """Read `0202000C:0016`: the address in words of 4 bytes, each in the host's order, and the port."""
    address, port = text.split(":")
    words = bytes.fromhex(address)
    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    parsed = IPv6Address(packed)
    return parsed.ipv4_mapped or parsed, int(port, 16)

"""A host with nothing but the baseline stays on the network: what it needs is let in, each shown on a real kernel."""

from __future__ import annotations

import re
import socket
import struct

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Host, Lab, echo, wait_until

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'


@pytest.fixture
def host(lab: Lab) -> Lab:
    lab.configure(DOOR)
    lab.nfknock("apply")
    return lab


def test_loopback_works(host: Lab) -> None:
    host.serve(8080)
    for address, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), (BASTION4, socket.AF_INET)):
        with host.bastion.socket(family, socket.SOCK_STREAM) as connection:
            connection.connect((address, 8080))
            assert echo(connection) == b"hello\n"


@pytest.mark.parametrize(("asker", "server"), [(BASTION4, CLIENT4), (BASTION6, CLIENT6)])
def test_answers_to_questions_come_back(host: Lab, asker: str, server: str) -> None:
    """DNS and time: the host asks with UDP, the answer belongs to a known session."""
    family = socket.AF_INET6 if ":" in asker else socket.AF_INET
    with (
        host.client.socket(family, socket.SOCK_DGRAM) as resolver,
        host.bastion.socket(family, socket.SOCK_DGRAM) as ask,
    ):
        resolver.bind((server, 53))
        ask.sendto(b"where?", (server, 53))
        _question, asked_by = resolver.recvfrom(512)
        resolver.sendto(b"here", asked_by)
        assert ask.recv(512) == b"here"


@pytest.mark.parametrize(("bastion", "family"), [(BASTION4, "-4"), (BASTION6, "-6")])
def test_ping_is_answered(host: Lab, bastion: str, family: str) -> None:
    """An echo request gets its reply (sent raw, so that no ping program is needed)."""
    if family == "-4":
        kind, protocol, request, reply = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0
    else:
        kind, protocol, request, reply = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129
    with host.client.here():
        raw = socket.socket(kind, socket.SOCK_RAW, protocol)
    with raw:
        raw.settimeout(5)
        raw.sendto(_icmp(request, 0, b"\0\1\0\1"), (bastion, 0))
        while True:
            answer = raw.recv(2048)
            if answer[20 if family == "-4" else 0] == reply:
                return


def _icmp(kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP message; the checksum of ICMPv6 is the kernel's to fill in."""
    message = struct.pack("!BBH", kind, code, 0) + rest
    words = struct.unpack(f"!{len(message) // 2}H", message)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!BBH", kind, code, ~(total + (total >> 16)) & 0xFFFF) + rest


@pytest.mark.parametrize(("bastion", "client"), [(BASTION4, CLIENT4), (BASTION6, CLIENT6)])
def test_path_mtu_discovery_works(host: Lab, bastion: str, client: str) -> None:
    """The host learns of a narrower way from an ICMP error about a session of its own."""
    server = host.client.socket(socket.AF_INET6 if ":" in client else socket.AF_INET, socket.SOCK_STREAM)
    server.bind((client, 4000))
    server.listen()
    connection = host.bastion.socket(server.family, socket.SOCK_STREAM)
    with server, connection:
        connection.connect((client, 4000))
        accepted, _ = server.accept()
        with accepted:
            host.client.run("ip", "link", "set", "c0", "mtu", "1500")
            _tell_of_narrow_way(host.client, connection, bastion, client)
            command = ["ip", "-6" if ":" in client else "-4", "route", "get", client]
            wait_until(lambda: "mtu 1280" in host.bastion.run(*command).stdout, "the narrower way")


def _tell_of_narrow_way(host: Host, connection: socket.socket, bastion: str, client: str) -> None:
    """Send "fragmentation needed" or "packet too big" about that connection, as a router on the way would."""
    local, remote = connection.getsockname()[1], connection.getpeername()[1]
    segment = struct.pack("!HHIIBBHHH", local, remote, _next_sequence(connection), 0, 5 << 4, 0x10, 512, 0, 0)
    if ":" in bastion:
        addresses = socket.inet_pton(socket.AF_INET6, bastion) + socket.inet_pton(socket.AF_INET6, client)
        quoted = struct.pack("!IHBB", 6 << 28, len(segment) + 1400, 6, 64) + addresses + segment
        message, family, protocol = (
            _icmp(2, 0, struct.pack("!I", 1280) + quoted),
            socket.AF_INET6,
            socket.IPPROTO_ICMPV6,
        )
    else:
        addresses = socket.inet_aton(bastion) + socket.inet_aton(client)
        quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1500, 1, 0x4000, 64, 6, 0) + addresses + segment
        message, family, protocol = (
            _icmp(3, 4, struct.pack("!HH", 0, 1280) + quoted),
            socket.AF_INET,
            socket.IPPROTO_ICMP,
        )
    with host.here():
        raw = socket.socket(family, socket.SOCK_RAW, protocol)
    with raw:
        raw.sendto(message, (bastion, 0))


def _next_sequence(connection: socket.socket) -> int:
    """A sequence number in the connection's window: its next one, from the kernel that repairs connections."""
    TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, SEND_QUEUE = 19, 20, 21, 2  # noqa: N806  (linux/tcp.h)
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
        return connection.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF
    finally:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)


def test_neighbours_are_found_anew(host: Lab) -> None:
    """IPv6 without neighbour discovery is dead at once."""
    host.bastion.run("ip", "-6", "neigh", "flush", "dev", "b0")
    host.client.run("ip", "-6", "neigh", "flush", "dev", "c0")
    server = host.client.socket(socket.AF_INET6, socket.SOCK_STREAM)
    with server, host.bastion.socket(socket.AF_INET6, socket.SOCK_STREAM) as connection:
        server.bind((CLIENT6, 4000))
        server.listen()
        connection.connect((CLIENT6, 4000))


def _has_link_local(host: Host, device: str) -> bool:
    return "fe80" in host.run("ip", "-6", "addr", "show", "dev", device, "-tentative").stdout


def test_a_router_advertisement_gives_an_address(host: Lab) -> None:
    host.bastion.run("sysctl", "-qw", "net.ipv6.conf.b0.accept_ra=1", "net.ipv6.conf.b0.autoconf=1")
    prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:1::")
    option = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, prefix)
    advertisement = _icmp(134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option)
    with host.client.here():
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        index = socket.if_nametoindex("c0")
    with raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        wait_until(lambda: _has_link_local(host.client, "c0"), "c0")
        raw.sendto(advertisement, ("ff02::1", 0, 0, index))
    wait_until(lambda: "2001:db8:1:" in host.bastion.run("ip", "-6", "addr", "show", "dev", "b0").stdout, "an address")


def test_a_router_advertisement_from_afar_does_not(host: Lab) -> None:
    """What was forwarded on its way here has a lower hop limit; the firewall has it dropped."""
    with host.client.here():
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    # What is counted behind nfknock's rules has been let through by them.
    rule = "icmpv6 type nd-router-advert counter"
    behind = f"table inet behind {{ chain input {{ type filter hook input priority 10; {rule}; }}; }}"
    host.bastion.run("nft", "-f", "-", stdin=behind)
    with raw:
        for hop_limit in (64, 255):
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop_limit)
            raw.sendto(_icmp(134, 0, bytes(12)), (BASTION6, 0))
    assert "packets 1 " in host.bastion.run("nft", "list", "table", "inet", "behind").stdout


def test_a_dhcp_answer_comes_in(host: Lab) -> None:
    with host.bastion.socket(socket.AF_INET, socket.SOCK_DGRAM) as lease, host.client.here():
        lease.bind(("", 68))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            server.bind((CLIENT4, 67))
            server.sendto(b"offer", (BASTION4, 68))
            server.sendto(b"offer", ("192.0.2.255", 68))
            server.sendto(b"rubbish", (BASTION4, 69))
        assert lease.recv(512) == b"offer"


def test_a_dhcpv6_answer_comes_in(host: Lab) -> None:
    """From a link-local address, as servers and relays send it; from elsewhere it is dropped."""
    for side, device in ((host.bastion, "b0"), (host.client, "c0")):
        wait_until(lambda: _has_link_local(side, device), device)  # noqa: B023  (called at once)
    shown = host.bastion.run("ip", "-6", "-o", "addr", "show", "dev", "b0", "scope", "link").stdout
    address = shown.split()[3].split("/")[0]
    with host.client.here():
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        index = socket.if_nametoindex("c0")
    with host.bastion.socket(socket.AF_INET6, socket.SOCK_DGRAM) as lease, server:
        lease.bind(("::", 546))
        server.bind(("::", 547))
        server.sendto(b"from afar", (BASTION6, 546))
        server.sendto(b"reply", (address, 546, 0, index))
        assert lease.recv(512) == b"reply"


def test_everything_else_is_dropped(host: Lab) -> None:
    host.serve(8080)
    assert host.is_shut(BASTION4, 8080)
    assert host.is_shut(BASTION6, 8080)
    with host.client.here():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with raw:
        raw.settimeout(0.3)
        raw.sendto(_icmp(13, 0, bytes(16)), (BASTION4, 0))  # timestamp request
        with pytest.raises(TimeoutError):
            raw.recv(2048)


def test_rules_of_ones_own_take_their_place(host: Lab) -> None:
    rules = host.directory / "rules.toml"
    rules.write_text(
        '[[rule]]\ncomment = "lo"\ninterface = "lo"\n'
        '[[rule]]\ncomment = "no pings"\nprotocol = "icmp"\nverdict = "drop"\n'
    )
    host.configure(f'[firewall]\nrules = "{rules}"\n{DOOR}')
    host.nfknock("apply")
    comments = re.findall('comment "nfknock: (.*?)"', host.rules())
    assert comments.index("no pings") > comments.index("lo")
    assert "established sessions" not in comments
    host.serve(8080)
    with host.bastion.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect(("127.0.0.1", 8080))
        assert echo(connection) == b"hello\n"
    with host.client.here():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with raw:
        raw.settimeout(0.3)
        raw.sendto(_icmp(8, 0, b"\0\1\0\1"), (BASTION4, 0))
        with pytest.raises(TimeoutError):
            raw.recv(2048)

"""What comes out of a tunnel keeps the mark of the packet that it came in, and is let in by it nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.test_nftables import NFT, is_let_in, load
from tests.lab import BASTION4, CLIENT4, Host, Lab, Service

INSIDE_BASTION, INSIDE_CLIENT = "10.77.0.1", "10.77.0.2"
BEHIND, GATE = "198.51.100.5", "198.51.100.1"

HOST = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        udp dport 4789 accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
    }
}
"""
ALLOWED = NFT.replace("[firewall]", '[firewall]\nallow = ["4789/udp"]')
KNOCKED = NFT.replace('open = ["22/tcp"]', 'open = ["22/tcp", "4789/udp"]')
FORWARDED = NFT.replace('"22/tcp"', f'"22/tcp", {{ port = "5432/tcp", to = "{BEHIND}" }}')


@pytest.fixture
def tunnel(lab: Lab) -> Lab:
    """The lab, with a tunnel from the client to the bastion through which both have another address."""
    for host, device, own, other, inside in (
        (lab.bastion, "b0", BASTION4, CLIENT4, INSIDE_BASTION),
        (lab.client, "c0", CLIENT4, BASTION4, INSIDE_CLIENT),
    ):
        about = f"id 77 dstport 4789 local {own} remote {other} dev {device}"
        host.run("ip", "link", "add", "vx0", "type", "vxlan", *about.split())
        host.run("ip", "addr", "add", f"{inside}/24", "dev", "vx0")
        host.run("ip", "link", "set", "vx0", "up")
    load(lab, HOST)
    lab.serve(2222)
    return lab


@pytest.fixture
def behind(tunnel: Lab) -> Iterator[Host]:
    """A host behind the bastion, to which the client's packets go through the tunnel."""
    host = Host(tunnel.environment)
    bastion = tunnel.bastion
    bastion.run("ip", "link", "add", "b1", "type", "veth", "peer", "name", "h0", "netns", str(host.pid))
    for each, device, address in ((bastion, "b1", GATE), (host, "h0", BEHIND)):
        each.run("ip", "addr", "add", f"{address}/24", "dev", device)
        each.run("ip", "link", "set", device, "up")
    bastion.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    host.run("ip", "route", "add", "default", "via", GATE)
    tunnel.client.run("ip", "route", "add", BEHIND, "via", INSIDE_BASTION)
    with Service(host, 8080):
        yield host
    host.stop()


@pytest.mark.parametrize("text", [ALLOWED, KNOCKED], ids=["allowed", "knocked"])
def test_what_a_tunnel_brings_is_the_hosts_to_judge(tunnel: Lab, text: str) -> None:
    assert not is_let_in(tunnel, INSIDE_BASTION, 2222)
    tunnel.configure(text)
    tunnel.nfknock("apply")
    tunnel.nfknock("open", "ssh", CLIENT4)
    assert not is_let_in(tunnel, INSIDE_BASTION, 2222)
    load(tunnel, "insert rule inet filter input tcp dport 2222 accept")
    tunnel.nfknock("apply")
    assert tunnel.reaches(INSIDE_BASTION, 2222), "the tunnel is there"


@pytest.mark.parametrize("text", [ALLOWED, FORWARDED.replace("[firewall]", '[firewall]\nallow = ["4789/udp"]')])
@pytest.mark.parametrize("attach", ["", "inet filter forward"])
@pytest.mark.usefixtures("behind")
def test_what_a_tunnel_brings_is_not_forwarded_either(tunnel: Lab, text: str, attach: str) -> None:
    tunnel.configure(text.replace("[firewall]", f'[firewall]\nattach = "{attach}"'))
    tunnel.nfknock("apply")
    assert not is_let_in(tunnel, BEHIND, 8080)
    load(tunnel, "insert rule inet filter forward tcp dport 8080 accept")
    tunnel.nfknock("apply")
    assert tunnel.reaches(BEHIND, 8080), "the tunnel and the way are there"

"""What a reader says of its packets as a whole, whichever it is."""

from __future__ import annotations

import socket

import pytest

from nfknock.core.plan import Plan, ReaderKind
from nfknock.readers import PACKETS_AT_ONCE, make_reader
from tests.lab import BASTION4, Lab, wait_until
from tests.setting import only_for

NUMBER = 7
TARGETS: dict[ReaderKind, tuple[str, ...]] = {
    "nfqueue": ("NFQUEUE", "--queue-num", str(NUMBER)),
    "nflog": ("NFLOG", "--nflog-group", str(NUMBER)),
}
# An ICMP echo request: no knock can be read from it.
PING = bytes.fromhex("0800f7fe00000001")


def counted(lab: Lab) -> int:
    """Return how many packets came by the rule."""
    listing = lab.bastion.run("iptables-legacy", "-nvxL", "INPUT").stdout
    return int(listing.splitlines()[2].split()[0])


@only_for("iptables")
@pytest.mark.parametrize("kind", ["nfqueue", "nflog"])
def test_a_reading_says_whether_it_found_all_there_was(lab: Lab, kind: ReaderKind) -> None:
    """Also where none of it could be read, so that there is nothing to count."""
    reader = make_reader(Plan(baseline=(), allowed=(), knock_ports=(), reader=kind, queue=NUMBER))
    with lab.bastion.here():
        reader.open()
    try:
        lab.bastion.run("iptables-legacy", "-A", "INPUT", "-p", "icmp", "-j", *TARGETS[kind])
        with lab.client.here(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinging:
            for _ in range(PACKETS_AT_ONCE + 40):
                pinging.sendto(PING, (BASTION4, 0))
        wait_until(lambda: counted(lab) == PACKETS_AT_ONCE + 40, "all to be there")
        assert reader.read() == []
        assert not reader.is_drained

        def is_drained() -> bool:
            assert reader.read() == []
            return reader.is_drained and reader.counters.unreadable == PACKETS_AT_ONCE + 40

        wait_until(is_drained, "the rest to be read")
    finally:
        reader.close()

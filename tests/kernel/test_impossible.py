"""What cannot be real opens nothing, and what is merely odd is read as the kernel reads it.

Everything goes over the cable as it is written here; the knock of an honest address, sent behind all the others, shows
that they have been through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nfknock.core.model import Port
from tests.kernel.wire import Datagram, Wire
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Daemon, Lab
from tests.setting import with_every_reader

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\nopen_timeout = "60s"\n'
KNOCKS = (Port(7101), Port(8203, "udp"), Port(9307))
BASTIONS = {4: BASTION4, 6: BASTION6}
HONEST = {4: CLIENT4, 6: CLIENT6}
STRANGERS = {4: "192.0.2.9", 6: "2001:db8::9"}
NOBODY = {
    4: {
        "unspecified": "0.0.0.0",
        "this network": "0.1.2.3",
        "loopback": "127.0.0.1",
        "multicast": "224.0.0.1",
        "reserved": "240.0.0.1",
        "broadcast": "255.255.255.255",
        "broadcast of the net": "192.0.2.255",
        "the host itself": BASTION4,
    },
    6: {
        "unspecified": "::",
        "loopback": "::1",
        "multicast": "ff02::1",
        "IPv4-mapped": "::ffff:192.0.2.2",
        "IPv4-compatible": "::192.0.2.2",
        "6to4 of a private address": "2002:a00:1::1",
        "6to4 of loopback": "2002:7f00:1::1",
        "the host itself": BASTION6,
    },
}
NOWHERE = {4: ["192.0.2.255", "255.255.255.255", "224.0.0.1"], 6: ["ff02::1"]}
"""Addresses that the host hears, and that are not its own."""
ROUTED_ON = (43, bytes([2, 0, 1]) + bytes(20))
"""A routing header of which an address is left to go to."""
OPTIONS, HOP_BY_HOP, ROUTED = (60, bytes(7)), (0, bytes(7)), (43, bytes(7))
AUTHENTICATED = (51, bytes([4]) + bytes(22))

Sent = Callable[[Datagram], list[bytes]]


def _whole(datagram: Datagram) -> list[bytes]:
    return [datagram.packet()]


def _without_the_first(datagram: Datagram) -> list[bytes]:
    """Later pieces, the last of which begins as a knock does."""
    segment = datagram.segment()
    longer = replace(datagram, data=datagram.data + bytes(-len(segment) % 8) + segment)
    return longer.fragments(8, len(longer.segment()) - len(segment), wanted=(1, 2))


def _overlapping(datagram: Datagram) -> list[bytes]:
    """A harmless first piece, and one that puts another port over it."""
    harmless = replace(datagram, port=replace(datagram.port, number=1))
    first = harmless.fragments(8, wanted=(0,))
    return [*first, *datagram.fragments(8)]


def _extended(*extensions: tuple[int, bytes]) -> Sent:
    return lambda datagram: [replace(datagram, extensions=extensions).packet()]


NOTHING: dict[int, dict[str, Sent]] = {
    4: {
        "a wrong checksum": lambda datagram: [replace(datagram, checksum_error=0x1234).packet()],
        "the first fragment alone": lambda datagram: replace(datagram, data=bytes(20)).fragments(8, wanted=(0,)),
        "later fragments alone": _without_the_first,
        "fragments that overlap": _overlapping,
        "a header that is cut off": lambda datagram: [_cut(datagram)],
    },
    6: {
        "a wrong checksum": lambda datagram: [replace(datagram, checksum_error=0x1234).packet()],
        "the first fragment alone": lambda datagram: replace(datagram, data=bytes(20)).fragments(8, wanted=(0,)),
        "later fragments alone": _without_the_first,
        "fragments that overlap": _overlapping,
        "fragments that hide the port": lambda datagram: replace(datagram, data=bytes(20)).fragments(8, 16),
        "a chain without an end": _extended(*[OPTIONS] * 9),
        "a packet that is to go on": _extended(ROUTED_ON),
        "hop-by-hop options in the middle": _extended(OPTIONS, HOP_BY_HOP),
        "a seal that nobody has checked": _extended(AUTHENTICATED),
    },
}
ODD: dict[int, dict[str, Sent]] = {
    4: {
        "data in the SYN": lambda datagram: [replace(datagram, data=b"hello").packet()],
        "fragments that hide the port": lambda datagram: replace(datagram, data=bytes(20)).fragments(8, 16),
        "fragments, the last first": lambda datagram: replace(datagram, data=bytes(20)).fragments(8, 16)[::-1],
    },
    6: {
        "data in the SYN": lambda datagram: [replace(datagram, data=b"hello").packet()],
        "fragments": lambda datagram: replace(datagram, data=bytes(20)).fragments(24),
        "fragments, the last first": lambda datagram: replace(datagram, data=bytes(20)).fragments(24)[::-1],
        "hop-by-hop options": _extended(HOP_BY_HOP),
        "a chain of options": _extended(HOP_BY_HOP, OPTIONS, ROUTED, OPTIONS),
    },
}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def _cut(datagram: Datagram) -> bytes:
    packet = datagram.packet()[:28]
    return packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]


def knock(wire: Wire, version: int, source: str, *, target: str = "", sent: Sent = _whole) -> None:
    for port in KNOCKS:
        wire.send(*sent(Datagram(source=source, target=target or BASTIONS[version], port=port)))


def honest(version: int, names: dict[str, Sent]) -> Iterator[tuple[str, Sent, str]]:
    """Give every kind of packet an address of its own, by which the log tells it."""
    for number, (name, sent) in enumerate(names.items(), 50):
        yield name, sent, f"192.0.2.{number}" if version == 4 else f"2001:db8::{number}"


def ready(lab: Lab) -> Daemon:
    lab.configure(DOOR)
    lab.nfknock("apply")
    return lab.daemon()


def only_the_honest_one_got_in(lab: Lab, daemon: Daemon, wire: Wire, version: int) -> None:
    client = HONEST[version]
    knock(wire, version, client)
    daemon.wait_for(f"{client}: ssh: opened")
    said = [line for line in daemon.lines if ": ssh: " in line]
    assert [line for line in said if not line.startswith(f"{client}: ")] == []
    assert lab.nfknock("status", "--json").stdout.count('"source"') == 1


@with_every_reader
@FAMILIES
def test_addresses_that_nobody_has_open_nothing(lab: Lab, version: int) -> None:
    daemon = ready(lab)
    with Wire(lab) as wire:
        for source in NOBODY[version].values():
            knock(wire, version, source)
        # A land packet has both ends alike, the port too.
        wire.send(
            Datagram(source=BASTIONS[version], target=BASTIONS[version], port=KNOCKS[0], source_port=7101).packet()
        )
        only_the_honest_one_got_in(lab, daemon, wire, version)


@with_every_reader
@FAMILIES
def test_knocks_to_everybody_open_nothing(lab: Lab, version: int) -> None:
    """One packet to a whole net would knock at every bastion in it."""
    daemon = ready(lab)
    with Wire(lab) as wire:
        for target in NOWHERE[version]:
            knock(wire, version, STRANGERS[version], target=target)
        only_the_honest_one_got_in(lab, daemon, wire, version)


@with_every_reader
@FAMILIES
def test_what_no_service_would_get_opens_nothing(lab: Lab, version: int) -> None:
    daemon = ready(lab)
    with Wire(lab) as wire:
        for _name, sent, source in honest(version, NOTHING[version]):
            knock(wire, version, source, sent=sent)
        only_the_honest_one_got_in(lab, daemon, wire, version)


@with_every_reader
@FAMILIES
def test_what_a_service_would_get_is_a_knock(lab: Lab, version: int) -> None:
    """However it is wrapped: a filter that reads a packet in another way than the kernel can be led round."""
    daemon = ready(lab)
    with Wire(lab) as wire:
        for _name, sent, source in honest(version, ODD[version]):
            knock(wire, version, source, sent=sent)
            daemon.wait_for(f"{source}: ssh: opened")

"""Captures of every kind, whole and cut: what is read of them, and what is said of the rest."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.core.packet import Packet
from nfknock.errors import MissingDependencyError, ReaderError
from nfknock.readers import link
from nfknock.readers.capture import read_capture
from tests.captures import (
    BSD,
    BSD_LOOP,
    COOKED,
    COOKED2,
    ETHERNET,
    RAW,
    block,
    enhanced,
    frame,
    interface,
    packet,
    pcap,
    section,
    simple,
)

AT = 1_700_000_000.25
LINK_TYPES = [ETHERNET, RAW, 12, 14, COOKED, COOKED2, BSD, BSD_LOOP]


def read(path: Path, content: bytes) -> list[tuple[float, Packet | None]]:
    path.write_bytes(content)
    return list(read_capture(path))


def ports(path: Path, content: bytes) -> list[int | None]:
    return [found and found.port for _at, found in read(path, content)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pcap"


@pytest.mark.parametrize("link_type", LINK_TYPES)
@pytest.mark.parametrize(("source", "target"), [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")])
def test_every_link_layer_in_both_formats(path: Path, link_type: int, source: str, target: str) -> None:
    content = frame(link_type, packet("8203/udp", source=source, target=target))
    [(at, found)] = read(path, pcap([(AT, content)], link_type=link_type))
    assert found
    assert (at, found.port, found.protocol) == (AT, 8203, 17)
    assert read(path, section() + interface(link_type) + enhanced(AT, content)) == [(AT, found)]


@pytest.mark.parametrize(("link_type", "source"), [(228, "192.0.2.2"), (229, "2001:db8::2")])
def test_raw_packets_of_one_family(path: Path, link_type: int, source: str) -> None:
    target = "2001:db8::1" if ":" in source else "192.0.2.1"
    assert ports(path, pcap([(AT, packet("7101", source=source, target=target))], link_type=link_type)) == [7101]


@pytest.mark.parametrize("link_type", [ETHERNET, COOKED, COOKED2])
@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8, 0x8100), (0x9100, 0x8100)])
def test_tags_of_networks_are_passed_over(path: Path, link_type: int, tags: tuple[int, ...]) -> None:
    assert ports(path, pcap([(AT, frame(link_type, packet("7101"), tags=tags))], link_type=link_type)) == [7101]


@pytest.mark.parametrize("link_type", [COOKED, COOKED2])
@pytest.mark.parametrize(("kind", "found"), [(0, 7101), (1, 7101), (2, 7101), (3, None), (4, None)])
def test_what_the_host_sends_is_no_packet_to_it(path: Path, link_type: int, kind: int, found: int | None) -> None:
    assert ports(path, pcap([(AT, frame(link_type, packet("7101"), kind=kind))], link_type=link_type)) == [found]


def test_pcapng_says_of_a_packet_that_the_host_sent_it(path: Path) -> None:
    assert ports(path, section() + interface(RAW) + enhanced(AT, packet("7101"), outbound=True)) == [None]


def test_what_is_no_ip_packet(path: Path) -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    frames = [(AT, content) for content in (arp, b"", b"\0", bytes(13), frame(ETHERNET, packet("7101"))[:-18])]
    assert ports(path, pcap(frames, link_type=ETHERNET)) == [None] * len(frames)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("clock", ["micro", "nano"])
def test_clocks_and_byte_orders_of_pcap(path: Path, order: str, clock: str) -> None:
    found = read(path, pcap([(AT, packet("7101")), (AT + 1.5, packet("7102"))], order=order, nano=clock == "nano"))
    assert [(at, p and p.port) for at, p in found] == [(AT, 7101), (AT + 1.5, 7102)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("resolution", "per_second"), [(None, 1e6), (6, 1e6), (9, 1e9), (3, 1e3), (0x80 | 10, 1024)])
def test_clocks_and_byte_orders_of_pcapng(path: Path, order: str, resolution: int | None, per_second: float) -> None:
    content = section(order) + interface(RAW, order, resolution)
    content += enhanced(AT, packet("7101"), order=order, per_second=per_second)
    [(at, found)] = read(path, content)
    assert found
    assert at == pytest.approx(AT, abs=1e-6)
    assert found.port == 7101


def test_interfaces_of_several_link_types_in_one_file(path: Path) -> None:
    content = section() + interface(ETHERNET) + interface(COOKED, resolution=9) + interface(RAW)
    content += enhanced(AT, frame(ETHERNET, packet("1001")))
    content += enhanced(AT + 1, frame(COOKED, packet("1002")), interface=1, per_second=1e9)
    content += block(5, bytes(20)) + enhanced(AT + 2, packet("1003"), interface=2)
    content += section(">") + interface(RAW, ">") + enhanced(AT + 3, packet("1004"), order=">")
    found = read(path, content)
    assert [(round(at - AT, 3), p and p.port) for at, p in found] == [(0, 1001), (1, 1002), (2, 1003), (3, 1004)]


def test_a_packet_without_an_instant_has_that_of_the_one_before(path: Path) -> None:
    content = block(1, struct.pack("<HHI", RAW, 0, 65535))
    found = read(path, section() + content + enhanced(AT, packet("7101")) + simple(packet("7102")))
    assert [(at, p and p.port) for at, p in found] == [(AT, 7101), (AT, 7102)]


def test_an_instant_that_is_none(path: Path) -> None:
    late = enhanced(2.0**63, packet("7101"), per_second=1)
    [(at, _packet)] = read(path, section() + interface(RAW, resolution=0) + late)
    assert at == 253_402_300_799


THREE = [(AT + i, packet("7101")) for i in range(3)]
BLOCKS = [block(5, bytes(24)), *(enhanced(at, content) for at, content in THREE), block(5, bytes(20))]
WHOLE = {
    "pcap": pcap(THREE),
    "pcap of the other order": pcap(THREE, order=">"),
    "pcapng": section() + interface(RAW) + b"".join(BLOCKS),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_anywhere(path: Path, name: str) -> None:
    """Whatever is whole is read; and only where a record ends is the end no error."""
    whole = WHOLE[name]
    ends = _ends_of_records(whole)
    for size in range(1, len(whole) + 1):
        path.write_bytes(whole[:size])
        found: list[object] = []
        try:
            found.extend(read_capture(path))
        except ReaderError as exc:
            assert size not in ends, size
            assert str(exc).startswith(f"reading {path}: it is ")
        else:
            assert size in ends, size
        assert len(found) == ends.get(max((end for end in ends if end <= size), default=0), 0)


def _ends_of_records(whole: bytes) -> dict[int, int]:
    """Where a file may end, and how many packets stand before."""
    if whole.startswith(b"\x0a\x0d\x0d\x0a"):
        offset = count = 0
        ends = {}
        while offset < len(whole):
            kind, size = struct.unpack_from("<II", whole, offset)
            offset += size
            count += kind == 6
            ends[offset] = count
        return ends
    size = 16 + len(packet("7101"))
    return {24 + size * count: count for count in range(4)}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"hello, this is some text, and no capture at all", "it is no capture that can be read"),
        (b"\x1f\x8b\x08\x00rubbish", "it is compressed; run gunzip first"),
        (pcap([])[:20], "it is cut off in its header"),
        (section()[:20], "it is cut off in its header"),
        (pcap([], link_type=105), "link type 105 is not one that can be read"),
        (section() + interface(147) + enhanced(AT, b"x"), "link type 147 is not one that can be read"),
        (
            pcap([(AT, packet("7101"))]) + struct.pack("<IIII", 1, 1, 0xFFFFFFFF, 1),
            "cut off or damaged behind packet 1;",
        ),
    ],
)
def test_what_cannot_be_read(path: Path, content: bytes, why: str) -> None:
    with pytest.raises(ReaderError, match=why) as caught:
        read(path, content)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="no such file or directory"):
        list(read_capture(tmp_path / "missing"))
    with pytest.raises(ReaderError, match="is a directory"):
        list(read_capture(tmp_path))


def test_a_capture_that_comes_through_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    writing = threading.Thread(target=path.write_bytes, args=(WHOLE["pcapng"],))
    writing.start()
    assert len(list(read_capture(path))) == 3
    writing.join()


@given(st.sampled_from(list(WHOLE.values())), st.data())
def test_damage_is_never_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pcap"
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(path, bytes(damaged))
    except ReaderError as exc:
        assert "\n" not in str(exc)


@given(st.sampled_from(LINK_TYPES), st.binary(max_size=60))
def test_any_frame_can_be_stripped(link_type: int, content: bytes) -> None:
    assert link.is_known(link_type)
    link.strip(link_type, content)


def test_without_the_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scapy", None)
    with pytest.raises(MissingDependencyError) as caught:
        read(path, pcap([]))
    assert str(caught.value) == "scapy is not installed; run: pip install 'nfknock[simulate]'"


def test_it_leaves_nothing_in_the_home_directory(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path.write_bytes(WHOLE["pcap"])
    code = "import sys, pathlib, nfknock.readers.capture as c; list(c.read_capture(pathlib.Path(sys.argv[1])))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env={**environment, "HOME": str(home)}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(home.iterdir()) == []

"""Rubbish, wherever nfknock reads: what comes out is an answer, or the one error that belongs there, and it comes soon.

Each kind begins from small files in tests/corpus, which are damaged in every way.
`script/fuzz` does the same for longer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nfknock import netlink
from nfknock.apart import logged, records
from nfknock.config import load
from nfknock.core import onetime
from nfknock.core.packet import TCP, UDP, parse
from nfknock.core.sources import is_possible_source
from nfknock.daemon import control
from nfknock.errors import ConfigError, ReaderError
from nfknock.host import nftread
from nfknock.knockd import KnockdError, convert
from nfknock.readers.capture import read_capture

CORPUS = Path(__file__).parent / "corpus"
MOST_EDITS = 6


@cache
def originals(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())]


@st.composite
def damaged(draw: st.DrawFn, kind: str) -> bytes:
    """A file of the corpus with pieces cut out, put in, doubled, or taken over from another one."""
    files = originals(kind)
    # Each choice by itself would be Hypothesis's to shrink, and take ten times as long.
    chance = draw(st.randoms(use_true_random=True))
    raw = chance.choice(files)
    for _ in range(chance.randint(0, MOST_EDITS)):
        at = chance.randint(0, len(raw))
        end = min(len(raw), at + chance.choice([0, 1, 2, 4, 8, len(raw)]))
        other = chance.choice(files)
        start = chance.randint(0, len(other))
        pieces = (
            bytes([chance.choice([0, 1, 3, 4, 0x7F, 0x80, 0xFF])]),
            chance.randbytes(chance.randint(0, 8)),
            other[start : start + 40],
            raw[at:end] * 2,
        )
        raw = raw[:at] + chance.choice(pieces) + raw[end:]
    return raw


def rubbish(kind: str) -> st.SearchStrategy[bytes]:
    return damaged(kind) | st.binary(max_size=400)


@given(rubbish("packet"))
def test_packets(raw: bytes) -> None:
    packet = parse(raw)
    if packet is None:
        return
    assert len(packet.source) == len(packet.target) == (4 if raw[0] >> 4 == 4 else 16)
    assert packet.protocol in (TCP, UDP)
    assert 0 <= packet.port <= 0xFFFF
    assert 0 <= packet.source_port <= 0xFFFF
    is_possible_source(packet.source)


@given(rubbish("logged"))
def test_logged_packets(raw: bytes) -> None:
    for each in logged.read(raw):
        assert each is None or len(each.payload) <= len(raw)


@given(rubbish("records"))
def test_what_the_process_that_takes_packets_apart_says(raw: bytes) -> None:
    """Whatever is believed says just that, byte for byte."""
    try:
        taken, next_number = records.unpack(raw)
    except records.NonsenseError:
        return
    except OSError as exc:
        assert exc.errno
    except records.LastWordsError as exc:
        assert str(exc).isprintable()
    else:
        assert records.pack(taken, next_number) == raw


def _read_ruleset(raw: bytes) -> None:
    for part in (nftread._chain, nftread._rule, nftread._set):
        bodies = (body for body in netlink._messages(raw) if body is not None)
        for each in nftread._each(part, nftread._answers(bodies)):
            if isinstance(each, nftread.Rule):
                for expression in each.expressions:
                    for content in expression.content.values():
                        nftread.verdict(content)
                        nftread.value(content)


@given(rubbish("netlink"))
@example(bytes(64))
@example(struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -(1 << 31)))
def test_netlink_messages(raw: bytes) -> None:
    """A message of no length would be read for ever; an error that is none of the kernel's has no name."""
    try:
        _read_ruleset(raw)
    except OSError as exc:
        assert exc.errno


@given(rubbish("configuration"))
def test_configurations(raw: bytes) -> None:
    try:
        config = load(Path("/nonexistent/nfknock.toml"), raw)
    except ConfigError as exc:
        assert exc.exit_code == 2
        assert "\n" not in str(exc)
    else:
        assert config.doors


@given(rubbish("knockd"))
def test_knockd_files(raw: bytes) -> None:
    try:
        conversion = convert(raw)
    except KnockdError as exc:
        assert str(exc).startswith("line ")
    else:
        load(Path("/nonexistent/nfknock.toml"), conversion.text.encode(), tolerates="anything")


@given(rubbish("one_time"))
def test_one_time_files(raw: bytes) -> None:
    lines = onetime.unused(raw)
    assert onetime.unused(onetime.mark(raw, [line.number for line in lines])) == []


@given(raw=rubbish("capture"))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_captures(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.pcap"
    path.write_bytes(raw)
    try:
        for at, _packet in read_capture(path):
            assert at >= 0
    except ReaderError as exc:
        assert "\n" not in str(exc)


@given(rubbish("answer"))
def test_what_a_daemon_answers(raw: bytes) -> None:
    try:
        assert isinstance(control._read(raw), dict)
    except ValueError as exc:
        assert str(exc)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[bytes]], list[bytes]]]:
    """Give requests to a daemon's socket, and return what it said to each."""
    monkeypatch.setenv("NFKNOCK_RUNTIME_DIR", str(tmp_path))
    loop = asyncio.new_event_loop()

    async def exchange(requests: list[bytes]) -> list[bytes]:
        async with control.answering(lambda: {"running": True}):
            return [await _request(each) for each in requests]

    yield lambda requests: loop.run_until_complete(exchange(requests))
    loop.close()


async def _request(raw: bytes) -> bytes:
    with control.short(control._path("sock")) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    answer = b""
    try:
        writer.write(raw)
        answer = await asyncio.wait_for(reader.readline(), 5)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it had said all, and did not wait for what we say
    writer.transport.abort()
    return answer


@given(requests=st.lists(rubbish("answer"), min_size=1, max_size=3))
@settings(
    max_examples=min(settings.default.max_examples, 1_000) if settings.default else 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_a_daemon_is_asked(ask: Callable[[list[bytes]], list[bytes]], requests: list[bytes]) -> None:
    """It takes no orders, so whatever stands there is passed over; the last one, who asks nothing, is answered."""
    assert ask([*requests, b""])[-1] == b'{"running": true}\n'


def test_somebody_who_asks_and_never_reads_holds_up_nobody(ask: Callable[[list[bytes]], list[bytes]]) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]

    async def exchange() -> bytes:
        async with control.answering(lambda: {"running": True}):
            for each in silent:
                with control.short(control._path("sock")) as address:
                    each.connect(address)
            return await _request(b"")

    assert asyncio.run(exchange()) == b'{"running": true}\n'
    for each in silent:
        each.close()

"""Reads the packets of a capture file: pcap and pcapng, as tcpdump and Wireshark write them.

The formats are scapy's to know (docs/design/0010-captures.md). Left to us are the link layers, and whether a file ended
or was cut off, which scapy does not tell: so it reads through a tap that sees where each record begins.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from nfknock.core.packet import Packet, parse
from nfknock.errors import MissingDependencyError, ReaderError
from nfknock.readers import link

_PCAPNG = b"\x0a\x0d\x0d\x0a"
_GZIP = b"\x1f\x8b"
# In pcap the upper half of the number says other things.
_LINK_TYPE_BITS = 0xFFFF
_OUTBOUND = 2
_BYTES_AT_ONCE = 1 << 20
# 9999-12-31, the last that can be written as a date.
_LATEST = 253_402_300_799.0


class _Frame(NamedTuple):
    """What a capture has of a packet. `at` is None where it does not say when."""

    at: float | None
    link_type: int
    is_ours: bool
    content: bytes


def read_capture(path: Path) -> Iterator[tuple[float, Packet | None]]:
    """Yield each packet with its instant (seconds since the epoch); None for what is no packet that came to the host.

    Raises ReaderError for what cannot be read, and MissingDependencyError. Of a file that was cut off or damaged it
    raises after what stands before.
    """
    try:
        with path.open("rb") as file:
            yield from _packets(path, _Tap(file))
    except OSError as exc:
        raise ReaderError(f"reading {path}: {(exc.strerror or str(exc)).lower()}") from exc


def _packets(path: Path, tap: _Tap) -> Iterator[tuple[float, Packet | None]]:
    frames = _open(path, tap)
    at, count = 0.0, 0
    for frame in frames:
        count += 1
        at = at if frame.at is None else min(frame.at, _LATEST)
        _check(path, frame.link_type)
        content = None if frame.is_ours else link.strip(frame.link_type, frame.content)
        yield at, parse(content) if content else None
    if not tap.is_at_end:
        raise ReaderError(
            f"reading {path}: it is cut off or damaged behind packet {count}; what stands before was used"
        )


def _open(path: Path, tap: _Tap) -> Iterator[_Frame]:
    start = tap.peek()
    if not start:
        raise ReaderError(f"reading {path}: it is empty")
    if start.startswith(_GZIP):
        raise ReaderError(f"reading {path}: it is compressed; run gunzip first")
    scapy = _scapy()
    try:
        if start == _PCAPNG:
            return _pcapng_frames(_pcapng_reader(scapy, tap), tap)
        reader = scapy.RawPcapReader(tap)
    except (scapy.Scapy_Exception, EOFError) as exc:
        reason = "cut off in its header" if tap.is_short else "no capture that can be read; pcap and pcapng can"
        raise ReaderError(f"reading {path}: it is {reason}") from exc
    _check(path, reader.linktype & _LINK_TYPE_BITS)
    return _pcap_frames(reader, tap)


def _check(path: Path, link_type: int) -> None:
    if not link.is_known(link_type):
        raise ReaderError(f"reading {path}: link type {link_type} is not one that can be read ({link.KNOWN})")


def _pcap_frames(reader: Any, tap: _Tap) -> Iterator[_Frame]:
    fraction = 1e9 if reader.nano else 1e6
    for content, meta in _records(reader, tap):
        yield _Frame(meta.sec + meta.usec / fraction, reader.linktype & _LINK_TYPE_BITS, is_ours=False, content=content)


def _pcapng_frames(reader: Any, tap: _Tap) -> Iterator[_Frame]:
    for content, meta in _records(reader, tap):
        at = None if meta.tshigh is None else ((meta.tshigh << 32) + meta.tslow) / meta.tsresol
        yield _Frame(at, meta.linktype, meta.direction == _OUTBOUND, content)


def _records(reader: Any, tap: _Tap) -> Iterator[tuple[bytes, Any]]:
    while True:
        tap.begin_record()
        try:
            content, meta = next(reader)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001  (whatever a damaged file makes of the reader: it is damaged)
            tap.is_at_end = False
            return
        if tap.is_short:
            return
        yield content, meta


def _scapy() -> Any:
    try:
        with _no_home():
            from scapy import utils
    except ImportError:
        raise MissingDependencyError("scapy", "simulate") from None
    # It complains of damaged files in words of its own.
    logging.getLogger("scapy").setLevel(logging.CRITICAL + 1)
    return utils


@contextlib.contextmanager
def _no_home() -> Iterator[None]:
    """Keep scapy from what it does when it is imported: caching its tables in the user's directories."""
    names = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _pcapng_reader(scapy: Any, tap: _Tap) -> Any:
    class Reader(scapy.RawPcapNgReader):  # type: ignore[misc]
        """Says where blocks begin: several may be read for one packet."""

        def _read_block(self, *arguments: Any, **named: Any) -> Any:
            tap.begin_record()
            return super()._read_block(*arguments, **named)

        def _read_block_shb(self) -> None:
            super()._read_block_shb()
            # A new section counts its interfaces from 0 again.
            self.interfaces.clear()

    return Reader(tap)


class _Tap:
    """A file as scapy reads it, that notes whether it ended between two records or within one."""

    name = "capture"

    def __init__(self, file: BufferedReader) -> None:
        self.is_short = False
        """Whether something that had begun was not there to its end."""
        self.is_at_end = False
        self._file = file
        self._is_at_record = False

    def peek(self) -> bytes:
        """Return the first four bytes, and leave them there."""
        return self._file.peek(4)[:4]

    def begin_record(self) -> None:
        """Take note that what is read next begins a record: the file may end here."""
        self._is_at_record = True

    def read(self, size: int) -> bytes:
        # A damaged file may name any size; memory is taken for what is there.
        pieces = []
        left = size
        while left > 0 and (piece := self._file.read(min(left, _BYTES_AT_ONCE))):
            pieces.append(piece)
            left -= len(piece)
        self.is_at_end = self._is_at_record and left == size > 0
        self.is_short |= left > 0 and not self.is_at_end
        self._is_at_record = False
        return b"".join(pieces)

    def close(self) -> None:
        """Leave it open: whoever opened it closes it."""

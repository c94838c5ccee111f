"""Reading a group through a process that takes packets apart: what it says is right, is nonsense, or never comes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfknock.apart import copies, logged
from nfknock.core.packet import Packet
from nfknock.errors import ReaderError
from nfknock.readers import apart, child
from nfknock.readers.apart import ApartReader
from tests.kernel.test_nflog import KNOCK, OTHER_KNOCK, put_rules, send
from tests.kernel.test_reader_apart import LOST, children
from tests.lab import wait_until


@contextlib.contextmanager
def reading() -> Iterator[ApartReader]:
    reader = ApartReader(5)
    reader.open()
    try:
        yield reader
    finally:
        reader.close()


def read(reader: ApartReader, count: int) -> list[Packet]:
    found: list[Packet] = []

    def is_there() -> bool:
        found.extend(reader.read())
        return len(found) >= count

    wait_until(is_there, f"{count} packets, of {found}")
    return found


def pid_of(reader: ApartReader) -> int:
    assert reader.child_pid is not None
    return reader.child_pid


def test_the_daemon_takes_nothing_apart(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_anything: object) -> None:
        raise AssertionError("a stranger's packet in the daemon")

    for module, name in ((copies, "parse"), (logged, "read"), (copies.Copies, "take")):
        monkeypatch.setattr(module, name, refuse)
    put_rules("iptables-legacy", "--nflog-threshold", "1")
    put_rules("ip6tables-legacy", "--nflog-threshold", "1")
    with reading() as reader:
        for address in ("127.0.0.1", "::1"):
            send(address, KNOCK)
            [packet] = read(reader, 1)
            assert (len(packet.source), packet.port) == (16 if ":" in address else 4, KNOCK)
        assert reader.read() == []


def test_many_at_once(namespace: None) -> None:
    put_rules("iptables-legacy")
    with reading() as reader:
        send("127.0.0.1", KNOCK, 3000)
        first = len(reader.read())
        assert 128 <= first < 300, "about so many as were asked for"
        assert len(reader.read(1_500)) >= 1_500, "in several answers, each as long as one may be"
        send("127.0.0.1", OTHER_KNOCK)
        wait_until(lambda: any(packet.port == OTHER_KNOCK for packet in reader.read()), "the last one")
        assert reader.count_lost() == 0


def test_the_next_one_knows_which_packet_it_is_at(namespace: None) -> None:
    put_rules("iptables-legacy", "--nflog-threshold", "1")
    with reading() as reader:
        send("127.0.0.1", KNOCK, 3)
        read(reader, 3)
        os.kill(pid_of(reader), signal.SIGKILL)
        send("127.0.0.1", OTHER_KNOCK, 2)
        assert [packet.port for packet in read(reader, 2)] == [OTHER_KNOCK] * 2
        assert reader.count_lost() == 0


def test_one_that_does_not_answer_is_replaced_and_what_it_had_is_counted(
    namespace: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child, "_WAIT", 0.2)
    put_rules("iptables-legacy", "--nflog-threshold", "1")
    with reading() as reader:
        before = pid_of(reader)
        os.kill(before, signal.SIGSTOP)
        send("127.0.0.1", KNOCK)
        read(reader, 1)
        assert "did not answer for 2 s; another one takes its place" in caplog.text
        assert pid_of(reader) != before
        assert not Path(f"/proc/{before}").exists()


# Each says what it has to say by the descriptor that it was given, and then nothing any more.
SAYING = "import os, sys, time; channel = int(sys.argv[2]); {}; time.sleep(60)"
READY = "os.write(channel, bytes(16))"
AFTER_ALL = READY + "; os.read(channel, 8); "


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.write(channel, b'yes')", "answered what no answer can be, and is not believed"),
        ("os.write(channel, bytes(1 << 17))", "answered what no answer can be, and is not believed"),
        ("os.write(channel, b'\\x01' + bytes(15))", "could not give up its rights: operation not permitted"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("os.close(channel)", "hung up"),
        ("time.sleep(60)", "did not answer for 3 s"),
    ],
)
def test_one_that_does_not_become_ready(
    namespace: None, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(child, "_WAIT", 0.3)
    monkeypatch.setattr(child, "_PROGRAM", SAYING.format(program))
    reader = ApartReader(5)
    with pytest.raises(ReaderError) as told:
        reader.open()
    assert str(told.value) == f"reading NFLOG group 5: {LOST} {reason}"
    assert children(os.getpid()) == {}
    # Nobody has the group any more.
    monkeypatch.undo()
    with reading():
        pass


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.write(channel, b'yes')", f"{LOST} answered what no answer can be, and is not believed"),
        ("os.write(channel, bytes(17))", f"{LOST} answered what no answer can be, and is not believed"),
        ("os.write(channel, b'\\x09' + bytes(15))", "bad file descriptor"),
    ],
)
def test_one_that_says_what_cannot_be_is_not_believed(
    namespace: None, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(child, "_PROGRAM", SAYING.format(AFTER_ALL + program))
    put_rules("iptables-legacy", "--nflog-threshold", "1")
    with reading() as reader:
        send("127.0.0.1", KNOCK)
        for _ in range(2):  # and not at the second time either
            with pytest.raises(ReaderError, match=f"^reading NFLOG group 5: {reason}$"):
                reader.read()


def test_what_says_something_without_being_asked_wakes_nobody(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_PROGRAM", SAYING.format(f"{READY}; {READY}"))
    with reading() as reader:
        assert reader.read() == []


def test_a_mistake_is_told_without_what_it_was_about(
    namespace: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    secret = "of-a-stranger"
    mistaken = (
        "import nfknock.apart.copies as copies\ndef parse(payload):\n raise ValueError(payload)\ncopies.parse = parse"
    )
    program = child._PROGRAM.replace("from nfknock", f"exec({mistaken!r}); from nfknock")
    put_rules("iptables-legacy", "--nflog-threshold", "1")
    monkeypatch.setattr(child, "_PROGRAM", program)
    with reading() as reader:
        send("127.0.0.1", KNOCK, content=secret.encode())
        reader.read()
        assert f"{LOST} ended: ValueError at <string>:3; another one takes its place" in caplog.text
        assert secret not in caplog.text


def test_a_process_that_cannot_be_started(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python3")
    with pytest.raises(ReaderError, match=r"could not be started: no such file or directory$"), reading():
        pass


def test_the_reason_is_kept_for_who_reads_on(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is one for good: no process is started any more for a reader that was given up."""
    monkeypatch.setattr(apart, "_MOST_LOST", 0)
    with reading() as reader:
        os.kill(pid_of(reader), signal.SIGKILL)
        wait_until(lambda: children(os.getpid()).get(pid_of(reader)) == "Z", "its end")
        for _ in range(2):
            with pytest.raises(ReaderError, match="was lost too often within a minute; at last it was ended by SIG"):
                reader.read()
        assert children(os.getpid()) == {}
        assert reader.child_pid is None

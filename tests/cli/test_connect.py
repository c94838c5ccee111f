"""`connect` on loopback: when it knocks, and what goes through it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from nfknock.client.connect import Target, connect
from nfknock.core.model import Port
from nfknock.errors import ClientError
from tests.lab import NFKNOCK

SEQUENCE = [Port(9, "udp")]
HERE = "127.0.0.1"


@pytest.fixture
def knocked() -> Iterator[socket.socket]:
    """A UDP port that hears knocks."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((HERE, 0))
        listener.settimeout(10)
        yield listener


@pytest.fixture
def shut() -> Iterator[socket.socket]:
    """A TCP port that refuses connections until it listens."""
    with socket.socket() as service:
        service.bind((HERE, 0))
        service.settimeout(10)
        yield service


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@contextlib.contextmanager
def opening_after(knocks: int, knocked: socket.socket, service: socket.socket) -> Iterator[None]:
    """Let the service listen once it has been knocked at so often."""

    def listen() -> None:
        for _ in range(knocks):
            knocked.recv(9)
        service.listen()

    thread = threading.Thread(target=listen)
    thread.start()
    yield
    thread.join(10)


def nothing_came(knocked: socket.socket) -> bool:
    knocked.settimeout(0)
    try:
        knocked.recv(9)
    except BlockingIOError:
        return True
    return False


def test_a_port_that_answers_is_not_knocked_at(knocked: socket.socket, shut: socket.socket) -> None:
    shut.listen()
    connect(Target(host=HERE, port=port_of(shut)), lambda: [Port(port_of(knocked), "udp")]).close()
    assert nothing_came(knocked)


def test_a_port_that_does_not_answer_is_knocked_at(knocked: socket.socket, shut: socket.socket) -> None:
    with opening_after(1, knocked, shut):
        connect(Target(host=HERE, port=port_of(shut)), lambda: [Port(port_of(knocked), "udp")]).close()
    assert nothing_came(knocked)


def test_a_knock_that_was_lost_is_repeated_with_the_next_sequence(knocked: socket.socket, shut: socket.socket) -> None:
    rounds = count()
    said: list[str] = []

    def next_sequence() -> list[Port]:
        return [Port(1 + next(rounds), "udp"), Port(port_of(knocked), "udp")]

    with opening_after(2, knocked, shut):
        connect(Target(host=HERE, port=port_of(shut)), next_sequence, tell=said.append).close()
    assert said[::2] == [f"hitting udp {HERE}:1", f"hitting udp {HERE}:2"]


def test_no_more_than_four_rounds_in_ten_seconds(shut: socket.socket) -> None:
    from nfknock.client.connect import _rounds

    at, knocked_at = 0.0, []
    for pause, _delay in _rounds(None):
        if at >= 10:
            break
        knocked_at.append(at)
        at += pause
    assert knocked_at == [0, 1.5, 4.5, 7.5]


def test_a_port_that_never_answers(shut: socket.socket) -> None:
    why = rf"127\.0\.0\.1 port {port_of(shut)} did not answer within 0\.2 s of the first knock: connection refused"
    with pytest.raises(ClientError, match=why):
        connect(Target(host=HERE, port=port_of(shut), timeout=0.2), lambda: SEQUENCE)


def test_knocks_that_are_slow_leave_time_for_the_answer(knocked: socket.socket, shut: socket.socket) -> None:
    target = Target(host=HERE, port=port_of(shut), timeout=1, delay=0.6)
    with opening_after(3, knocked, shut):
        connect(target, lambda: [Port(port_of(knocked), "udp")] * 3).close()


def test_there_is_no_way_to_the_host(namespace: None) -> None:
    with pytest.raises(ClientError, match=r"connecting to 192\.0\.2\.1 port 22: network is unreachable"):
        connect(Target(host="192.0.2.1", port=22), lambda: SEQUENCE)


def test_an_end_of_sequences_is_passed_on(shut: socket.socket) -> None:
    def none_left() -> list[Port]:
        raise ClientError("used up")

    with pytest.raises(ClientError, match="used up"):
        connect(Target(host=HERE, port=port_of(shut)), none_left)


def test_an_attempt_does_not_meet_itself() -> None:
    """A free port of this host may be given to the attempt itself, and TCP connects it to itself."""
    from nfknock.client.attempts import _is_answered

    with socket.socket() as attempt:
        attempt.bind((HERE, 0))
        attempt.connect(attempt.getsockname())
        assert not _is_answered(attempt)


@contextlib.contextmanager
def piped(serve: Callable[[socket.socket], None], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `nfknock connect` to a service that is open already."""
    with socket.create_server((HERE, 0)) as service:
        service.settimeout(10)

        def accept() -> None:
            connection, _address = service.accept()
            with connection:
                connection.settimeout(10)
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        command = [*NFKNOCK, "connect", HERE, str(port_of(service)), "--sequence", "9/udp"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            try:
                yield process
            finally:
                process.kill()
                thread.join(10)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_end_of_the_input_is_passed_on_and_the_answer_comes_back() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"you said " + read_all(connection))

    with piped(serve) as process:
        assert process.communicate(b"hello", timeout=10) == (b"you said hello", b"")
        assert process.returncode == 0


def test_the_end_of_the_connection_is_passed_on_and_we_go_on_sending() -> None:
    heard = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"welcome")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))

    with piped(serve) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.read() == b"welcome"  # to its end, while the input is still open
        process.stdin.write(b"and now?")
        process.stdin.close()
        assert process.wait(10) == 0
    assert heard == [b"and now?"]


def test_much_goes_both_ways_unchanged() -> None:
    sent = random.Random(1).randbytes(8 << 20)

    def serve(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    with piped(serve) as process:
        back, _errors = process.communicate(sent, timeout=60)
    assert hashlib.sha256(back).digest() == hashlib.sha256(sent).digest()


def test_a_connection_that_breaks_ends_it_at_once() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with piped(serve) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.wait(10) == 1  # though the input goes on
        assert process.stderr.read() == b"nfknock: the connection broke: connection reset by peer\n"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 65536)

    with piped(serve) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_one_socket_can_be_input_and_output() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        piped(lambda connection: connection.sendall(b"x"), stdin=theirs.fileno(), stdout=theirs.fileno()),
    ):
        theirs.close()
        ours.settimeout(10)
        assert read_all(ours) == b"x"
        ours.shutdown(socket.SHUT_WR)


def test_descriptors_that_do_not_wait() -> None:
    """Somebody who has the pipe too may have made it so."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"you said " + read_all(connection))

    with piped(serve, stdin=reading) as process:
        assert process.stdout
        for text in (b"hel", b"lo"):
            os.write(writing, text)
        os.close(writing)
        assert process.stdout.read() == b"you said hello"
    os.close(reading)


@pytest.mark.parametrize("closing", ["<&-", "<&- 2>&-"])
def test_an_input_that_is_closed_from_the_start_has_ended(closing: str) -> None:
    with socket.create_server((HERE, 0)) as service:
        command = f"{NFKNOCK[0]} connect {HERE} {port_of(service)} --sequence 9/udp {closing}"
        with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as process:
            service.settimeout(10)
            connection, _address = service.accept()
            with connection:
                connection.settimeout(10)
                connection.sendall(b"welcome" + read_all(connection))
            assert process.communicate(timeout=10)[0] == b"welcome"
            assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([HERE, "22"], "give --sequence, or --one-time with a file"),
        ([HERE, "0", "--sequence", "9"], "0 is not in the range"),
        ([HERE, "ssh", "--sequence", "9"], "'ssh' is not a valid integer"),
        ([HERE, "22", "--sequence", "9,,10"], "'' is not a port"),
        ([HERE, "22", "--sequence", "9", "--timeout", "-1"], "--timeout: '-1' is not a duration"),
        ([HERE, "22", "--sequence", "9", "-4", "-6"], "-4 and -6 exclude each other"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = subprocess.run([*NFKNOCK, "connect", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1

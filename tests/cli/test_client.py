"""The client on loopback: what leaves, in which order, and what is said when nothing can."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nfknock.cli.app import nfknock
from nfknock.client.hosts import parse_source, resolve
from nfknock.client.knock import send_knocks
from nfknock.core.model import Port, Protocol
from nfknock.errors import ClientError
from tests.lab import NFKNOCK


def run(*arguments: str) -> Result:
    return CliRunner().invoke(nfknock, ["knock", *arguments])


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_knocks_arrive_in_order(host: str, family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
        for listener in (tcp, udp):
            listener.bind((host, 0))
            listener.settimeout(5)
        tcp.listen()
        ports = [Port(tcp.getsockname()[1]), Port(udp.getsockname()[1], "udp"), Port(tcp.getsockname()[1])]
        said: list[str] = []
        send_knocks(resolve(host), ports, tell=said.append)
        for _ in range(2):
            accepted, _address = tcp.accept()
            with accepted:
                assert accepted.recv(1) == b""
        assert udp.recv(10) == b"\0"
        assert said == [f"hitting {port.protocol} {host}:{port.number}" for port in ports]


def test_verbose_prints_as_knock_does() -> None:
    result = run("-v", "-u", "-4", "localhost", "9", "10:tcp", "11/udp")
    assert result.output.splitlines() == [
        "hitting udp 127.0.0.1:9", "hitting tcp 127.0.0.1:10", "hitting udp 127.0.0.1:11"
    ]  # fmt: skip


def test_quiet_without_verbose() -> None:
    assert run("127.0.0.1", "9:udp").output == ""


def test_a_port_that_refuses_was_hit() -> None:
    send_knocks(resolve("127.0.0.1"), [Port(1), Port(1, "udp"), Port(1, "udp")])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_knock_comes_from_the_address_that_was_asked_for(protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        if protocol == "tcp":
            listener.listen()
        port = listener.getsockname()[1]
        assert run("127.0.0.1", f"{port}:{protocol}", "-I", "127.0.0.9").exit_code == 0
        if protocol == "udp":
            source = listener.recvfrom(9)[1]
        else:
            accepted, source = listener.accept()
            accepted.close()
        assert source[0] == "127.0.0.9"


def test_a_knock_from_an_address_of_somebody_else() -> None:
    with pytest.raises(ClientError, match=r"knocking from 192\.0\.2\.77: this host has no such address"):
        send_knocks(resolve("127.0.0.1"), [Port(9)], source=parse_source("192.0.2.77"))


def test_an_address_that_cannot_be_reached_is_passed_over(namespace: None) -> None:
    """Like a host with an IPv6 address, seen from a network that has none."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        hosts = [*resolve("2001:db8::1"), *resolve("127.0.0.1")]
        assert send_knocks(hosts, [Port(listener.getsockname()[1], "udp")]) == hosts[1]
        assert listener.recv(9) == b"\0"
        with pytest.raises(ClientError, match=r"knocking at 2001:db8::1 9/udp: network is unreachable"):
            send_knocks(hosts[:1], [Port(9, "udp")])


def test_waiting_for_a_port_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        result = run("-v", "127.0.0.1", "9:udp", "--wait", str(port))
    assert (result.exit_code, result.output) == (0, f"hitting udp 127.0.0.1:9\n127.0.0.1 port {port} answers\n")


def test_waiting_for_a_port_that_does_not_answer() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = str(unheard.getsockname()[1])
        done = subprocess.run(
            [*NFKNOCK, "knock", "127.0.0.1", "9:udp", "--wait", port, "--timeout", "0.3"],
            capture_output=True,
            text=True,
        )
    why = f"nfknock: 127.0.0.1 port {port} did not answer within 0.3 s of the first knock: connection refused\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(ClientError, match=r"finding an address of 'no-such-host\.invalid': "):
        resolve("no-such-host.invalid")


def test_an_address_of_the_other_family() -> None:
    with pytest.raises(ClientError, match=r"finding an IPv6 address of '127\.0\.0\.1'"):
        resolve("127.0.0.1", socket.AF_INET6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1", "0"], "port 0 is out of range"),
        (["127.0.0.1", "70000"], "port 70000 is out of range"),
        (["127.0.0.1", "ssh"], "'ssh' is not a port"),
        (["127.0.0.1", "7:sctp"], "'7:sctp' is not a port"),
        (["127.0.0.1"], "missing argument"),
        ([], "missing argument"),
        (["-4", "-6", "127.0.0.1", "7"], "-4 and -6 exclude each other"),
        (["-d", "-1", "127.0.0.1", "7"], "-1 is not in the range"),
        (["-I", "eth0", "127.0.0.1", "7"], "-I: 'eth0' is not an IPv4 or IPv6 address"),
        (["-I", "::1", "-4", "127.0.0.1", "7"], "-I ::1 and -4 exclude each other"),
        (["127.0.0.1", "7", "--wait", "22/udp"], "22/udp does not answer to a connection"),
        (["127.0.0.1", "7", "--wait", "22", "--timeout", "soon"], "--timeout: 'soon' is not a duration"),
        (["127.0.0.1", "7", "--wait", "22", "--timeout", "0"], "--timeout: 0 s is out of range"),
        (["127.0.0.1", "7", "--timeout", "5"], "--timeout is for --wait"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = subprocess.run([*NFKNOCK, "knock", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_client_needs_no_netfilter() -> None:
    """What `pip install nfknock` brings is enough to knock; the rest says what to install."""
    code = (
        "import sys\n"
        "for name in ('iptc', 'netfilterqueue', 'pyroute2'): sys.modules[name] = None\n"
        "from nfknock.cli import main\n"
        "main()\n"
    )

    def run_without(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)

    assert run_without("knock", "127.0.0.1", "9:udp").returncode == 0
    done = run_without("remove")
    assert done.returncode == 1
    assert done.stderr == "nfknock: python-iptables is not installed; on a server run: pip install 'nfknock[server]'\n"


def test_a_one_time_sequence_is_marked_and_knocked(tmp_path: Path) -> None:
    path = tmp_path / "ssh.ots"
    path.write_text("# mine\n 9,10:udp\n 11,12\n")
    assert run("-v", "127.0.0.1", "--one-time", str(path)).output.splitlines() == [
        "hitting tcp 127.0.0.1:9",
        "hitting udp 127.0.0.1:10",
    ]
    assert path.read_text() == "# mine\n#9,10:udp\n 11,12\n"
    # Nothing is spent on a host that there is not.
    done = knock(["--one-time", str(path), "no-such-host.invalid"])
    assert done.returncode == 1
    assert path.read_text() == "# mine\n#9,10:udp\n 11,12\n"
    assert knock(["--one-time", str(path), "127.0.0.1"]).returncode == 0
    done = knock(["--one-time", str(path), "127.0.0.1"])
    assert (done.returncode, done.stderr) == (1, f"nfknock: {path} {USED_UP}\n")


USED_UP = "has no unused sequence any more; `nfknock sequences` makes new ones, for both ends"


@pytest.mark.parametrize("arguments", [["127.0.0.1", "7", "--one-time", "x"], ["127.0.0.1"]])
def test_ports_or_a_file(arguments: list[str]) -> None:
    done = knock(arguments)
    assert done.returncode == 2
    assert "--one-time" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def knock(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NFKNOCK, "knock", *arguments], capture_output=True, text=True)

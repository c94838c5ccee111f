"""What can be wrong with a host: one plain line, the right exit code, and the firewall as it was."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, Daemon, Host, Lab
from tests.setting import only_for

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
LACKING = [sys.executable, "-m", "tests.kernel.seccomp"]
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture
def host(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(Path(__file__).parents[2])
    lab.configure(DOOR)
    # Listing a table makes the kernel create it, empty; then it is there before and after.
    for family in ("iptables-legacy", "ip6tables-legacy"):
        lab.bastion.run(family, "-S")
    return lab


def fails(lab: Lab, *command: str, code: int = 1) -> str:
    """Run something that must fail with one line, which is returned, and change nothing."""
    before = lab.rules()
    done = lab.bastion.run(*command, check=False)
    assert done.returncode == code, done.stderr
    assert lab.rules() == before
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("nfknock: ")
    return lines[0]


@pytest.mark.parametrize("command", [["apply"], ["status"], ["remove"], ["open", "ssh", CLIENT4], ["close", "--all"]])
def test_without_privileges(host: Lab, command: list[str]) -> None:
    line = fails(host, *POWERLESS, *NFKNOCK, *command)
    assert "permission denied; run this as root" in line


@only_for("nfqueue")
def test_a_daemon_without_privileges(host: Lab) -> None:
    host.nfknock("apply")
    line = fails(host, *POWERLESS, *NFKNOCK, "run")
    assert line == "nfknock: opening NFQUEUE 5: permission denied; run this as root"


@only_for("iptables", "ipset")
@pytest.mark.parametrize("command", [["apply"], ["status"], ["remove"]])
def test_a_kernel_without_legacy_tables(host: Lab, command: list[str]) -> None:
    line = fails(host, *LACKING, "legacy", *NFKNOCK, *command)
    assert "this kernel has no legacy iptables filter table" in line


@only_for("iptables", "ipset")
def test_a_kernel_without_ipv6(host: Lab) -> None:
    """IPv4 is guarded, with one warning; an IPv6 address is refused plainly."""
    done = host.bastion.run(*LACKING, "ipv6", *NFKNOCK, "apply")
    assert done.stdout == "changed\n"
    assert done.stderr == "warning: IPv6 is switched off in this kernel: IPv4 alone is guarded\n"
    assert "NFKNOCK" in host.bastion.run("iptables-legacy-save").stdout
    assert "NFKNOCK" not in host.bastion.run("ip6tables-legacy-save").stdout
    assert "IPv6 is switched off" in fails(host, *LACKING, "ipv6", *NFKNOCK, "open", "ssh", CLIENT6)
    assert '"ipv6": null' in host.bastion.run(*LACKING, "ipv6", *NFKNOCK, "status", "--json").stdout


@only_for("iptables", "ipset")
def test_the_second_family_cannot_be_written(host: Lab) -> None:
    """Both families or none: IPv4 is written first, and goes back."""
    failing = [*LACKING, "memory6", *NFKNOCK]
    line = fails(host, *failing, "apply")
    assert line == "nfknock: writing the ipv6 filter table: memory allocation problem"
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    fails(host, *failing, "remove")
    host.configure(DOOR.replace("7101", "7102"))
    fails(host, *failing, "apply")


@only_for("iptables", "ipset")
@pytest.mark.parametrize("command", [["apply"], ["open", "ssh", CLIENT4], ["remove"]])
def test_a_lock_that_somebody_keeps(host: Lab, command: list[str]) -> None:
    if command != ["apply"]:
        host.nfknock("apply")
    with (host.directory / "xtables.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began_at = time.monotonic()
        done = host.bastion.run(*NFKNOCK, *command, check=False)
        assert time.monotonic() - began_at > 4.9
        # It neither waits for the lock, which nobody frees, nor says that it could not have it.
        assert host.nfknock("status").stderr == ""
    assert done.returncode == 1
    assert "is held by process" in done.stderr
    assert "for more than 5 s; nothing was changed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@only_for("nfqueue")
def test_a_queue_that_somebody_has(host: Lab) -> None:
    host.nfknock("apply")
    code = (
        "import sys; from netfilterqueue import NetfilterQueue; q = NetfilterQueue(); q.bind(5, print)\n"
        "print(flush=True); sys.stdin.read()"
    )
    other = host.bastion.start(sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdin is not None
    try:
        other.stdout.readline()
        line = fails(host, *NFKNOCK, "run")
        assert line.startswith("nfknock: binding NFQUEUE 5: process ")
        assert line.endswith("has it already; stop that program, or choose another number with `queue` under [reader]")
    finally:
        other.communicate("")


def test_a_daemon_before_apply(host: Lab) -> None:
    assert fails(host, *NFKNOCK, "run") == "nfknock: the firewall is not in place; run `nfknock apply` first"


def test_a_second_daemon(host: Lab) -> None:
    host.nfknock("apply")
    daemon = host.daemon()
    line = fails(host, *NFKNOCK, "run")
    # The process that holds the namespace open is not the daemon's own: nsenter became it.
    assert line == f"nfknock: a daemon runs here already: process {daemon.process.pid}; stop it first"


def test_a_runtime_directory_with_a_long_name(host: Lab) -> None:
    """The address of a Unix socket has room for 107 bytes only."""
    host.bastion.environment["NFKNOCK_RUNTIME_DIR"] = str(host.directory / ("long" * 40))
    host.nfknock("apply")
    host.daemon()
    assert '"running": true' in host.nfknock("status", "--json").stdout


def test_a_runtime_directory_that_cannot_be_made(host: Lab) -> None:
    host.bastion.environment["NFKNOCK_RUNTIME_DIR"] = "/proc/nfknock"
    host.nfknock("apply")
    assert "creating /proc/nfknock/daemon-" in fails(host, *NFKNOCK, "run")


def test_daemons_in_two_namespaces_do_not_meet(host: Lab) -> None:
    """They share the machine, its directories, configuration and queue number, and nothing that counts."""

    def knock(knocker: Host, target: str) -> None:
        knocker.run(*NFKNOCK, "knock", target, "7101", "8203:udp", "9307")

    def report(of: Host) -> tuple[int, int, list[str]]:
        said = json.loads(of.run(*NFKNOCK, "status", "--json").stdout)
        return said["daemon"]["pid"], said["daemon"]["knocks"], [hole["source"] for hole in said["holes"]]

    for each in (host.bastion, host.client):
        each.run(*NFKNOCK, "apply")
    with Daemon(host.bastion) as one, Daemon(host.client) as other:
        knock(host.client, BASTION4)
        one.wait_for("opened 22/tcp")
        assert report(host.bastion) == (one.process.pid, 3, [CLIENT4])
        assert report(host.client) == (other.process.pid, 0, [])
        knock(host.bastion, CLIENT6)
        other.wait_for("opened 22/tcp")
        assert report(host.bastion) == (one.process.pid, 3, [CLIENT4])
        assert report(host.client) == (other.process.pid, 3, [BASTION6])
        other.signal(signal.SIGTERM)
        assert other.process.wait(20) == 0
        host.client.run(*NFKNOCK, "remove")
        assert report(host.bastion) == (one.process.pid, 3, [CLIENT4])
        knock(host.client, BASTION6)
        one.wait_for("opened 22/tcp", count=2)
        assert not [line for line in one.lines if BASTION6 in line]


def test_open_before_apply(host: Lab) -> None:
    line = fails(host, *NFKNOCK, "open", "ssh", CLIENT4)
    assert line == "nfknock: the firewall is not in place; run `nfknock apply` first"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["open", "shh", CLIENT4], "there is no door 'shh' in"),
        (["open", "ssh", "me"], "'me' is not an IPv4 or IPv6 address"),
        (["open", "ssh", "0.0.0.0"], "0.0.0.0 is nobody's address"),
        (["open", "ssh", CLIENT4, "--for", "soon"], "--for: 'soon' is not a duration"),
        (["open", "ssh", CLIENT4, "--for", "0.2"], "--for: 0.2 s is out of range"),
        (["close"], "give an address, a door and an address, or --all"),
        (["close", "a", "b", "c"], "give an address, a door and an address, or --all"),
        (["close", "--all", CLIENT4], "give an address, a door and an address, or --all"),
        (["close", "nobody"], "'nobody' is not an IPv4 or IPv6 address"),
        (["-c", "/nonexistent.toml", "apply"], "there is no configuration file /nonexistent.toml"),
        (["-c", "/nonexistent.toml", "run"], "there is no configuration file /nonexistent.toml"),
        (["-c", "/nonexistent.toml", "status"], "there is no configuration file /nonexistent.toml"),
        (["aply"], "no such command 'aply'"),
        (["apply", "--dryrun"], "no such option"),
    ],
)
def test_a_call_that_is_wrong(host: Lab, command: list[str], message: str) -> None:
    assert message in fails(host, *NFKNOCK, *command, code=2)


def test_an_impossible_interface_name_is_no_lock_out(host: Lab) -> None:
    """A configuration that is refused leaves the firewall that stands."""
    host.nfknock("apply")
    host.configure(DOOR.replace("[doors.ssh]", '[firewall]\ninterfaces = ["a b"]\n[doors.ssh]'))
    fails(host, *NFKNOCK, "apply", code=2)
    assert host.is_shut(BASTION4, 22)

"""What can happen to a host while the daemon runs: nobody is let in by it, and afterwards knocks are heard again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from nfknock.daemon.intake import AWAY
from nfknock.netlink import NETFILTER
from tests.kernel.disk import fill, small_disk
from tests.lab import BASTION4, CLIENT4, NFKNOCK, STRANGER4, Daemon, Lab, wait_until
from tests.setting import only_for, with_every_reader

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\nopen_timeout = "{timeout}"\n'
KNOCKS = ("7101", "8203:udp", "9307")
LACKING = [sys.executable, "-m", "tests.kernel.seccomp"]
STOPPED_FOR = 60 if "NFKNOCK_TEST_ALL" in os.environ else 4

# Of NFQUEUE's packets 8,192 fit; of NFLOG's as many as its buffer of 8 MiB takes, which are gathered.
MORE_THAN_FITS = {"nfqueue": 20_000, "nflog": 150_000}


def ready(lab: Lab, more: str = "", timeout: str = "60s") -> Daemon:
    lab.serve(22)
    lab.configure(DOOR.format(timeout=timeout) + more)
    lab.nfknock("apply")
    return lab.daemon()


def opens(lab: Lab, daemon: Daemon, bastion: str = BASTION4) -> None:
    """Knock, with patience for a cable that was just plugged in, and see the door open."""

    def is_heard() -> bool:
        lab.knock(bastion, *KNOCKS)
        return any("OPEN SESAME" in line for line in daemon.lines[heard:])

    heard = len(daemon.lines)
    wait_until(is_heard, "a knock to be heard")
    assert lab.reaches(bastion, 22)


def link(lab: Lab, *arguments: str) -> None:
    lab.bastion.run("ip", "link", "set", *arguments)


@pytest.mark.parametrize("more", ["", '[firewall]\ninterfaces = ["b0"]\n'])
def test_an_interface_goes_down_and_comes_back(lab: Lab, more: str) -> None:
    daemon = ready(lab, more)
    opens(lab, daemon)
    before = lab.rules(holes=False)
    link(lab, "b0", "down")
    assert lab.is_shut(BASTION4, 22)
    link(lab, "b0", "up")
    assert lab.reaches(BASTION4, 22)
    opens(lab, daemon)
    assert lab.rules(holes=False) == before


def test_an_interface_that_is_named_is_renamed(lab: Lab) -> None:
    """What comes in elsewhere than the configuration says opens nothing, and nothing is open there."""
    daemon = ready(lab, '[firewall]\ninterfaces = ["b0"]\nallow = ["99/tcp"]\n')
    lab.serve(99)
    opens(lab, daemon)
    link(lab, "b0", "down")
    link(lab, "b0", "name", "b1")
    link(lab, "b1", "up")
    assert lab.reaches(BASTION4, 99), "the cable is there, and what is allowed is open everywhere"
    said = len(daemon.lines)
    lab.knock(BASTION4, *KNOCKS)
    assert lab.is_shut(BASTION4, 22)
    link(lab, "b1", "down")
    link(lab, "b1", "name", "b0")
    link(lab, "b0", "up")
    assert lab.reaches(BASTION4, 22), "the hole is what it was"
    assert daemon.lines[said:] == []
    opens(lab, daemon)


def test_an_interface_that_is_not_named_is_renamed(lab: Lab) -> None:
    daemon = ready(lab)
    link(lab, "b0", "down")
    link(lab, "b0", "name", "b1")
    link(lab, "b1", "up")
    opens(lab, daemon)


def test_the_host_gets_another_address(lab: Lab) -> None:
    """Knocks to the new one count at once; the old one cannot knock itself, nor any more be knocked at."""
    daemon = ready(lab)
    opens(lab, daemon)
    lab.bastion.run("ip", "addr", "add", "192.0.2.77/24", "dev", "b0")
    lab.bastion.run("ip", "addr", "del", f"{BASTION4}/24", "dev", "b0")
    lab.bastion.run("ip", "addr", "add", "192.0.2.77/24", "dev", "b0", check=False)
    assert lab.reaches("192.0.2.77", 22), "the hole is for a source, whatever the host's address"
    opens(lab, daemon, "192.0.2.77")


@with_every_reader
def test_a_daemon_that_is_stopped_for_a_while(lab: Lab) -> None:
    """Its holes close in the kernel, what came meanwhile opens nothing, what did not fit is counted, and it goes on."""
    daemon = ready(lab, timeout="2s")
    opens(lab, daemon)
    daemon.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    lab.wait_until_shut(BASTION4, 22)
    lab.knock(BASTION4, "-I", STRANGER4, *KNOCKS)
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooding:
        for _ in range(MORE_THAN_FITS[lab.setting.reader]):
            flooding.sendto(b"", (BASTION4, 8203))
    while time.monotonic() < stopped_at + STOPPED_FOR:
        assert lab.is_shut(BASTION4, 22)
    daemon.signal(signal.SIGCONT)
    # Of copies it is the next one whose number tells how many there were in between.
    opens(lab, daemon)
    daemon.wait_for("packets were lost: they came faster than they are read")
    daemon.wait_for("that waited meanwhile were not heard")
    assert not any(line.startswith(f"{STRANGER4}: ") for line in daemon.lines)
    counters = json.loads(lab.nfknock("status", "--json").stdout)["daemon"]
    assert counters["lost"] > 0
    assert counters["late"] >= len(KNOCKS)


def has_reader(process: int) -> bool:
    """Whether a process has opened a socket of nfnetlink, by which packets come to it; for an ordinary user to see."""
    rows = [line.split() for line in Path(f"/proc/{process}/net/netlink").read_text().splitlines()[1:]]
    return any((row[1], row[2]) == (str(NETFILTER), str(process)) for row in rows)


@only_for("iptables")
@with_every_reader
@pytest.mark.parametrize("is_early", [True, False])
def test_what_is_knocked_while_the_start_waits_for_a_lock(lab: Lab, *, is_early: bool) -> None:
    """The reader is there already, and nobody reads: as with a daemon that is stopped. Who waits for it is heard."""
    ready(lab).process.kill()
    with Path(lab.environment["XTABLES_LOCKFILE"]).open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon = Daemon(lab.bastion)
        wait_until(lambda: has_reader(daemon.process.pid), "the reader to be open")
        opened_at = time.monotonic()
        if is_early:
            lab.knock(BASTION4, "-I", STRANGER4, *KNOCKS)
        # Longer than it may be away, and not as long as it waits for the lock.
        time.sleep(max(0.0, opened_at + AWAY + 0.2 - time.monotonic()))
    with daemon:
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for(f"{CLIENT4}: ssh: OPEN SESAME")
        assert not any(line.startswith(f"{STRANGER4}: ") for line in daemon.lines)
        assert any("that waited meanwhile were not heard" in line for line in daemon.lines) == is_early


@with_every_reader
def test_a_reader_whose_socket_fails(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that cannot hear any more ends, with one line and a code by which a supervisor starts it again."""
    monkeypatch.chdir(Path(__file__).parents[2])
    lab.serve(22)
    lab.configure(DOOR.format(timeout="60s"))
    lab.nfknock("apply")
    with contextlib.closing(_Started(lab, lab.setting.reader)) as daemon:
        daemon.wait_for("ready")
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("nfknock: reading NF")
        assert daemon.process.wait(10) == 1
        assert daemon.lines[1:] == [daemon.lines[-1]]
        assert daemon.lines[-1].endswith("input/output error")
    assert lab.is_shut(BASTION4, 22)


class _Started(Daemon):
    """A daemon on a kernel that lacks something."""

    def __init__(self, lab: Lab, what: str) -> None:
        before = list(NFKNOCK)
        NFKNOCK[:0] = [*LACKING, what]
        try:
            super().__init__(lab.bastion)
        finally:
            NFKNOCK[:] = before

    def close(self) -> None:
        self.__exit__()


@only_for("iptables")
@pytest.mark.parametrize("what", ["match", "tables"])
def test_a_kernel_without_a_match_that_a_rule_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Whether it is missed when a rule is built or when it is written; in front there may be libxtables' own words."""
    monkeypatch.chdir(Path(__file__).parents[2])
    lab.configure(DOOR.format(timeout="60s"))
    done = lab.bastion.run(*LACKING, what, *NFKNOCK, "apply", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    *before, line = done.stderr.splitlines()
    assert line.startswith("nfknock: ")
    assert line.endswith(": this kernel lacks an extension that a rule needs; `nfknock doctor` says which")
    assert all(each.startswith("Warning: Extension ") for each in before)
    assert "NFKNOCK" not in lab.rules()


@only_for("iptables")
def test_the_table_cannot_be_written_any_more(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The knock that would open it is said to have failed, and the daemon goes on."""
    monkeypatch.chdir(Path(__file__).parents[2])
    lab.serve(22)
    lab.configure(DOOR.format(timeout="60s"))
    lab.nfknock("apply")
    with contextlib.closing(_Started(lab, "tables")) as daemon:
        daemon.wait_for("ready")
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for(f"{CLIENT4}: ssh: not opened: writing the ipv4 filter table: ")
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("not opened", count=2)
    assert lab.is_shut(BASTION4, 22)


def test_a_log_on_a_full_disk(lab: Lab) -> None:
    """The lines go to stderr instead, and back when there is room."""
    with small_disk(lab.directory / "disk") as disk:
        daemon = ready(lab, f'[log]\nfile = "{disk}/nfknock.log"\n')
        fill(disk / "filler")
        # What is left of the file's last page may still take a line or two.
        log = disk / "nfknock.log"
        wait_until(lambda: _is_on_stderr(lab, daemon), "a line on stderr")
        assert lab.reaches(BASTION4, 22)
        (disk / "filler").unlink()
        before = log.stat().st_size
        lab.knock(BASTION4, *KNOCKS)
        wait_until(lambda: "renewed" in log.read_text()[before:], "a line in the file")
        daemon.signal(signal.SIGTERM)
        daemon.process.wait(10)


def _is_on_stderr(lab: Lab, daemon: Daemon) -> bool:
    lab.knock(BASTION4, *KNOCKS)
    return any("renewed" in line for line in daemon.lines)


def test_a_runtime_directory_on_a_full_disk(lab: Lab) -> None:
    lab.configure(DOOR.format(timeout="60s"))
    lab.nfknock("apply")
    with small_disk(lab.directory / "disk") as disk:
        fill(disk / "filler")
        lab.bastion.environment["NFKNOCK_RUNTIME_DIR"] = str(disk)
        done = lab.nfknock("run", check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "no space left on device" in done.stderr


def test_commands_that_cannot_be_noted_on_a_full_disk(lab: Lab) -> None:
    """A door that opens and runs: the hole opens, and nothing is run that could not be undone."""
    with small_disk(lab.directory / "disk") as disk:
        lab.bastion.environment["NFKNOCK_STATE_DIR"] = str(disk)
        ran = lab.directory / "ran"
        daemon = ready(lab, f'start_command = ["touch", "{ran}"]\nstop_command = ["true"]\n')
        fill(disk / "filler")
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("opened 22/tcp")
        daemon.wait_for("no space left on device")
        assert not ran.exists()
        (disk / "filler").unlink()
        daemon.signal(signal.SIGTERM)
        daemon.process.wait(10)


def test_a_daemon_without_a_descriptor_left(lab: Lab) -> None:
    """It hears, says why it does not open, and opens as soon as it can."""
    daemon = ready(lab)
    pid = daemon.process.pid
    _soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    count = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("too many open files")
    assert lab.is_shut(BASTION4, 22)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    opens(lab, daemon)
    assert json.loads(lab.nfknock("status", "--json").stdout)["daemon"]["running"]
    assert not any("Traceback" in line for line in daemon.lines)

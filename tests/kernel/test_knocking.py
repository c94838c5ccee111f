"""From the knock to the hole and to its end: the real daemon, the real kernel, real clients."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import IO, Any

import jsonschema
import pytest

from tests.kernel.crowd import segments
from tests.lab import (
    BASTION4,
    BASTION6,
    CLIENT4,
    CLIENT6,
    NFKNOCK,
    STRANGER4,
    STRANGER6,
    Daemon,
    Lab,
    echo,
    wait_until,
)
from tests.setting import CHOSEN, only_for, with_every_reader

DOORS = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "{timeout}"
close_sequence = ["9307", "8203/udp", "7101"]
"""
KNOCKS = ("7101:tcp", "8203:udp", "9307:tcp")
FAMILIES = pytest.mark.parametrize(
    ("bastion", "client", "stranger"), [(BASTION4, CLIENT4, STRANGER4), (BASTION6, CLIENT6, STRANGER6)]
)
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "status.schema.json").read_text())


def ready(lab: Lab, timeout: str = "30s", more: str = "") -> Daemon:
    lab.serve(22)
    lab.configure(DOORS.format(timeout=timeout) + more)
    lab.nfknock("apply")
    return lab.daemon()


def status(lab: Lab) -> dict[str, Any]:
    report = json.loads(lab.nfknock("status", "--json").stdout)
    jsonschema.validate(report, SCHEMA)
    return dict(report)


@with_every_reader
@pytest.mark.parametrize("program", ["nfknock", "knock"])
@FAMILIES
def test_a_knock_opens_for_its_address_alone(lab: Lab, program: str, bastion: str, client: str, stranger: str) -> None:
    daemon = ready(lab)
    assert lab.is_shut(bastion, 22)
    command = [*NFKNOCK, "knock"] if program == "nfknock" else [_program("knock")]
    lab.client.run(*command, "-6" if ":" in bastion else "-4", bastion, *KNOCKS)
    daemon.wait_for(f"{client}: ssh: opened 22/tcp for 30 s")
    assert lab.reaches(bastion, 22)
    assert lab.is_shut(bastion, 22, source=stranger)
    assert daemon.lines[-5:] == [
        f"{client}: ssh: Stage 1",
        f"{client}: ssh: Stage 2",
        f"{client}: ssh: Stage 3",
        f"{client}: ssh: OPEN SESAME",
        f"{client}: ssh: opened 22/tcp for 30 s",
    ]


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed; script/bootstrap installs it"
    return path


@with_every_reader
@FAMILIES
def test_the_hole_closes_in_time_and_the_session_lives_on(lab: Lab, bastion: str, client: str, stranger: str) -> None:
    daemon = ready(lab, "3s")
    lab.knock(bastion, *KNOCKS)
    daemon.wait_for("opened")
    opened_at = time.time()
    session = lab.connect(bastion, 22)
    daemon.wait_for(f"{client}: ssh: closed after 3 s")
    assert 2 < time.time() - opened_at < 4.5
    assert lab.is_shut(bastion, 22)
    assert echo(session) == b"hello\n"
    assert "nfknock hole" not in lab.rules()


@FAMILIES
def test_the_hole_of_a_killed_daemon_closes_in_time(lab: Lab, bastion: str, client: str, stranger: str) -> None:
    daemon = ready(lab, "3s")
    lab.knock(bastion, *KNOCKS)
    daemon.wait_for("opened")
    opened_at = time.time()
    session = lab.connect(bastion, 22)
    daemon.process.kill()
    lab.wait_until_shut(bastion, 22)
    # The kernel counts whole seconds: within one of the end, and what the last try took.
    assert 2 <= time.time() - opened_at <= 4.5
    assert echo(session) == b"hello\n"


def test_what_a_killed_daemon_left_is_adopted_and_swept(lab: Lab) -> None:
    daemon = ready(lab, "4s")
    lab.knock(BASTION4, *KNOCKS)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened", count=2)
    daemon.process.kill()
    daemon.process.wait()
    with Daemon(lab.bastion) as heir:
        assert heir.lines[0] == "adopted 2 open holes"
        heir.wait_for("closed after 4 s", count=2)
    assert "nfknock hole" not in lab.rules()


def test_sigterm_ends_cleanly_and_leaves_holes_to_the_kernel(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    assert lab.reaches(BASTION4, 22)
    assert status(lab)["daemon"] == {"running": False}


@with_every_reader
def test_without_a_daemon_knocks_are_dropped(lab: Lab) -> None:
    daemon = ready(lab)
    daemon.signal(signal.SIGTERM)
    daemon.process.wait(10)
    lab.knock(BASTION4, *KNOCKS)
    assert lab.is_shut(BASTION4, 22)
    assert lab.is_shut(BASTION4, 7101)


def test_knocking_again_renews_and_makes_no_second_rule(lab: Lab) -> None:
    daemon = ready(lab)
    for count in (1, 2):
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("OPEN SESAME", count=count)
    daemon.wait_for(f"{CLIENT4}: ssh: renewed 22/tcp for 30 s")
    assert lab.rules().count("nfknock hole") == 1


def test_the_closing_sequence_closes(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    lab.knock(BASTION4, *reversed(KNOCKS))
    daemon.wait_for(f"{CLIENT4}: ssh: closed after")
    assert lab.is_shut(BASTION4, 22)


@with_every_reader
def test_ordinary_clients_whose_packets_are_repeated_can_knock(lab: Lab) -> None:
    """A connection that nobody answers is tried again after a second; that must not count as a knock."""
    daemon = ready(lab)
    trying = []
    for port in (7101, 9307):
        attempt = lab.client.socket(socket.AF_INET, socket.SOCK_STREAM)
        attempt.settimeout(0)
        attempt.connect_ex((BASTION4, port))
        trying.append(attempt)
        if port == 7101:
            daemon.wait_for("Stage 1")
            wait_until(lambda: segments(lab.client)["repeated"] > 0, "the first SYN to be repeated")
            with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
                datagram.sendto(b"x", (BASTION4, 8203))
            daemon.wait_for("Stage 2")
    daemon.wait_for("opened")
    for attempt in trying:
        attempt.close()


@with_every_reader
def test_another_knock_in_between_opens_nothing(lab: Lab) -> None:
    more = '[doors.web]\nsequence = ["7001", "7002/udp", "7003"]\nopen = ["80/tcp"]\n'
    daemon = ready(lab, more=more)
    lab.knock(BASTION4, KNOCKS[0], "7002:udp", *KNOCKS[1:])
    lab.knock(BASTION4, "7001:tcp")
    daemon.wait_for("web: Stage 1")
    assert not any("OPEN SESAME" in line for line in daemon.lines)
    assert lab.is_shut(BASTION4, 22)


@with_every_reader
@FAMILIES
def test_a_rejected_knock_opens_all_the_same(lab: Lab, bastion: str, client: str, stranger: str) -> None:
    daemon = ready(lab, more='[reader]\nanswer = "reject"\n')
    with pytest.raises(ConnectionRefusedError):
        lab.connect(bastion, 7101)
    family = socket.AF_INET6 if ":" in bastion else socket.AF_INET
    with lab.client.socket(family, socket.SOCK_DGRAM) as datagram:
        datagram.connect((bastion, 8203))
        datagram.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            datagram.recv(1)
    with pytest.raises(ConnectionRefusedError):
        lab.connect(bastion, 9307)
    daemon.wait_for("opened")
    assert lab.reaches(bastion, 22)


@with_every_reader
def test_the_status_is_true_and_fits_its_schema(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened", count=2)
    with lab.connect(BASTION4, 22), lab.connect(BASTION4, 22), lab.connect(BASTION6, 22):
        report = status(lab)
    wait_until(lambda: [hole["sessions"] for hole in status(lab)["holes"]] == [0, 0], "sessions that ended to be over")
    assert report["firewall"] == {
        "backend": CHOSEN.backend, "applied": True, "policy": {"ipv4": "DROP", "ipv6": "DROP"}
    }  # fmt: skip
    assert isinstance(report["daemon"], dict)
    assert report["daemon"]["pid"]
    assert {key: report["daemon"][key] for key in ("knocks", "opened", "closed", "lost")} == {
        "knocks": 6, "opened": 2, "closed": 0, "lost": 0
    }  # fmt: skip
    assert isinstance(report["holes"], list)
    first, second = report["holes"]
    assert (first["source"], second["source"]) == (CLIENT4, CLIENT6)
    assert (first["door"], first["open"], first["sessions"], second["sessions"]) == ("ssh", ["22/tcp"], 2, 1)
    assert first["packets"] >= 2
    assert 0 < first["remaining"] <= 30
    lines = lab.nfknock("status").stdout.splitlines()
    assert lines[0] == f"firewall  in place ({CHOSEN.backend}; INPUT policy ipv4 DROP, ipv6 DROP)"
    assert "2 opened" in lines[1] or "2 opened" in lines[2]


def test_status_needs_no_daemon_and_no_configuration(lab: Lab) -> None:
    lab.configure(DOORS.format(timeout=0))
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", CLIENT4)
    lab.config.unlink()
    lab.bastion.environment.pop("NFKNOCK_CONFIG")
    report = status(lab)
    assert isinstance(report["holes"], list)
    [hole] = report["holes"]
    assert (hole["closes_at"], hole["remaining"]) == (None, None)


def reload(lab: Lab, daemon: Daemon, text: str, expect: str) -> None:
    lab.configure(text)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(expect)


def test_sighup_takes_up_other_doors_and_keeps_holes(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    before = status(lab)["holes"]
    lab.knock(BASTION4, *KNOCKS[:2])
    daemon.wait_for("Stage 2", count=2)
    more = '[doors.web]\nsequence = ["5101", "5203/udp", "5307"]\nopen = ["80/tcp"]\n'
    reload(lab, daemon, DOORS.format(timeout="30s") + more, "reloaded")
    lab.knock(BASTION4, KNOCKS[2])
    daemon.wait_for("ssh: OPEN SESAME", count=2)
    lab.knock(BASTION4, "5101", "5203:udp", "5307")
    daemon.wait_for("web: opened 80/tcp")
    after = status(lab)["holes"]
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert after[0]["opened_at"] == before[0]["opened_at"]


@pytest.mark.parametrize("broken", ["[doors.ssh]\n", "rubbish", "[doors.ssh]\nsequence=[0]\nopen=[22]"])
def test_sighup_refuses_a_broken_file(lab: Lab, broken: str) -> None:
    daemon = ready(lab)
    before = lab.rules()
    reload(lab, daemon, broken, "the new configuration was refused and the old one stays")
    assert lab.rules() == before
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")


def test_sighup_does_not_put_back_what_was_removed(lab: Lab) -> None:
    daemon = ready(lab)
    lab.nfknock("remove")
    before = lab.rules()
    reload(lab, daemon, DOORS.format(timeout="20s"), "the firewall is not in place")
    assert lab.rules() == before


def test_a_storm_of_sighups_ends_with_the_last_file(lab: Lab) -> None:
    daemon = ready(lab)
    for number in range(30):
        lab.configure(DOORS.format(timeout=f"{number + 1}s"))
        daemon.signal(signal.SIGHUP)

    def is_the_last() -> bool:
        lab.knock(BASTION4, *KNOCKS)
        return any("22/tcp for 30 s" in line for line in daemon.lines)

    wait_until(is_the_last, "the last file to count")
    daemon.signal(signal.SIGHUP)
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    assert not any("Traceback" in line for line in daemon.lines)


@with_every_reader
def test_sighup_moves_to_another_queue(lab: Lab) -> None:
    daemon = ready(lab)
    reload(lab, daemon, DOORS.format(timeout="30s") + "[reader]\nqueue = 77\n", "reloaded")
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    reload(lab, daemon, DOORS.format(timeout="30s") + '[reader]\nqueue = 77\nanswer = "reject"\n', "reloaded")
    with pytest.raises(ConnectionRefusedError):
        lab.connect(BASTION4, 7101)


@only_for("iptables", "ipset")
def test_a_hole_waits_for_the_lock(lab: Lab) -> None:
    daemon = ready(lab)
    with _hold_lock(lab):
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("trying again", within=20)
        assert lab.is_shut(BASTION4, 22)
        began_at = time.monotonic()
        status(lab)
        assert time.monotonic() - began_at < 5
    daemon.wait_for("opened")
    assert lab.reaches(BASTION4, 22)


def _hold_lock(lab: Lab) -> IO[str]:
    file = (lab.directory / "xtables.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@only_for("iptables", "ipset")
def test_the_last_word_counts_when_the_lock_was_held(lab: Lab) -> None:
    """Knocked open and then shut while nothing can be written: it stays shut."""
    daemon = ready(lab, "0")
    with _hold_lock(lab):
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("OPEN SESAME")
        lab.knock(BASTION4, *reversed(KNOCKS))
        daemon.wait_for("CLOSE SESAME")
        daemon.wait_for("trying again", count=2, within=20)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for(f"{CLIENT6}: ssh: opened")
    assert lab.is_shut(BASTION4, 22)


@only_for("iptables", "ipset")
def test_a_closing_that_fails_is_tried_until_it_is_done(lab: Lab) -> None:
    daemon = ready(lab, "0")
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    lock = lab.directory / "xtables.lock"
    lock.unlink()
    lock.mkdir()
    lab.knock(BASTION4, *reversed(KNOCKS))
    daemon.wait_for("trying again")
    lock.rmdir()
    daemon.wait_for("closed after")
    assert lab.is_shut(BASTION4, 22)


@only_for("iptables", "ipset")
def test_a_closing_that_could_not_be_done_is_said_at_the_end(lab: Lab) -> None:
    daemon = ready(lab, "0")
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    with _hold_lock(lab):
        lab.knock(BASTION4, *reversed(KNOCKS))
        daemon.wait_for("CLOSE SESAME")
        daemon.signal(signal.SIGTERM)
        daemon.process.wait(30)
    daemon.wait_for(f"{CLIENT4}: ssh: still open; run: nfknock close ssh {CLIENT4}")


@only_for("iptables", "ipset")
def test_a_knock_does_not_go_round_when_its_rule_is_gone(lab: Lab) -> None:
    """The firewall says drop already, the daemon still says reject: repeating would never end."""
    daemon = ready(lab, more='[reader]\nanswer = "reject"\n')
    lab.configure(DOORS.format(timeout="30s"))
    lab.nfknock("apply")
    lab.knock(BASTION4, KNOCKS[0])
    daemon.wait_for("Stage 1")
    lab.knock(BASTION4, *KNOCKS[1:])
    daemon.wait_for("opened")
    assert len(KNOCKS) <= _queued(lab) < 10


def _queued(lab: Lab) -> int:
    """How many IPv4 packets the kernel has sent to the reader."""
    listing = lab.bastion.run("iptables-legacy", "-xnvL", "NFKNOCK_KNOCKS").stdout.splitlines()
    return sum(int(line.split()[0]) for line in listing if "nfknock: knocks" in line)


def test_a_log_that_nobody_reads_holds_nothing_up(lab: Lab) -> None:
    lab.serve(22)
    lab.configure(DOORS.format(timeout="30s"))
    lab.nfknock("apply")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = lab.bastion.start(*NFKNOCK, "run", stderr=writing)
    try:
        wait_until(lambda: os.read(reading, 100) != b"", "the daemon")
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 512)
        os.set_blocking(writing, True)
        lab.knock(BASTION4, *KNOCKS)
        wait_until(lambda: lab.reaches(BASTION4, 22), "the hole")
        assert isinstance(status(lab)["daemon"], dict)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


@with_every_reader
def test_timers_go_on_under_a_flood(lab: Lab) -> None:
    """Holes are opened and end on time while somebody sends knocks as fast as he can.

    A queue that is full drops knocks, honest ones too, so the client knocks until it is heard.
    """
    daemon = ready(lab, "2s")
    flood = (
        "import socket,time\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); end=time.time()+30\n"
        f"while time.time()<end:\n  s.sendto(b'x',('{BASTION4}',8203))\n"
    )
    flooding = lab.client.start("python3", "-c", flood)
    try:
        wait_until(lambda: _strays(lab) > 1000, "the flood")

        def is_heard() -> bool:
            lab.knock(BASTION6, *KNOCKS)
            return any("opened" in line for line in daemon.lines)

        wait_until(is_heard, "a knock to be heard", within=20)
        daemon.wait_for("closed after")
        assert flooding.poll() is None
    finally:
        flooding.kill()
        flooding.wait()
    assert len(daemon.lines) < 200


def _strays(lab: Lab) -> int:
    daemon = status(lab)["daemon"]
    assert isinstance(daemon, dict)
    return int(daemon.get("strays", 0))


@with_every_reader
def test_an_address_of_the_host_itself_opens_nothing(lab: Lab) -> None:
    daemon = ready(lab)
    with lab.client.here():
        _spoof(BASTION4, BASTION4, (7101, 9307))
    lab.knock(BASTION6, KNOCKS[0])
    daemon.wait_for(f"{CLIENT6}: ssh: Stage 1")
    assert not any(line.startswith(BASTION4) for line in daemon.lines)


def _spoof(source: str, target: str, ports: tuple[int, ...]) -> None:
    """Send bare SYNs from an address that is not ours."""
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for port in ports:
            tcp = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
            addresses = socket.inet_aton(source) + socket.inet_aton(target)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + addresses
            raw.sendto(header + tcp, (target, 0))

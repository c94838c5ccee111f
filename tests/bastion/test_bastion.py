"""A Debian 12 that boots, with the package: what an administrator relies on, from the first start to a hung daemon."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.bastion.machine import BASTION4, CLIENT4, Machine
from tests.lab import NFKNOCK, STRANGER4, Lab, wait_until

pytestmark = pytest.mark.root
CONFIG = """
[doors.ssh]
sequence = ["7101", "8203/udp", "6307", "9411/udp"]
open = ["22/tcp", "2222/tcp"]
open_timeout = "{open_timeout}"
"""
KNOCKS = ("7101", "8203:udp", "6307", "9411:udp")


def configure(machine: Machine, *, open_timeout: str = "60s") -> None:
    machine.write("/etc/nfknock/nfknock.toml", CONFIG.format(open_timeout=open_timeout), mode=0o640)


def knock(lab: Lab) -> None:
    lab.knock(BASTION4, *KNOCKS)


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("nfknock", "status", "--json"))
    return found


def wait_until_it_runs(machine: Machine, *, after: str = "0") -> None:
    """Wait for a daemon that is ready, and is another than the one with that process id."""

    def runs() -> bool:
        found = machine.run("systemctl", "show", "-p", "ActiveState,MainPID", "nfknock").split()
        return "ActiveState=active" in found and f"MainPID={after}" not in found

    try:
        wait_until(runs, "the daemon", within=60)
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{machine.journal('nfknock')}") from exc


def reboot_unanswered(machine: Machine) -> Lab:
    """Reboot, and show that nobody who tries SSH all the while is answered, when sshd runs again either."""
    machine.shut_down()
    lab = machine.wire()
    with never_answered(lab) as tries:
        machine.switch_on()
        machine.wait_until_booted()
        wait_until(lambda: machine.show("ssh", "ActiveState") == "active", "sshd")
        wait_until(lambda: tries.count > 0 and tries.is_silent, "a try that nobody answers")
    return lab


def test_the_installation_starts_nothing_and_prepares_everything(bastion: Machine) -> None:
    bastion.boot()
    units = ("nfknock.service", "nfknock-apply.service")
    assert bastion.run("systemctl", "is-enabled", *units, check=False).split() == ["disabled", "disabled"]
    assert bastion.run("systemctl", "is-active", *units, check=False).split() == ["inactive", "inactive"]
    assert "nfknock" not in bastion.lab.rules()
    places = "/etc/nfknock", "/run/nfknock", "/var/lib/nfknock", "/run/xtables.lock"
    assert bastion.run("stat", "-c", "%a %U:%G", *places).splitlines() == [
        "2750 root:nfknock",
        "755 nfknock:nfknock",
        "700 nfknock:nfknock",
        "640 root:nfknock",
    ]
    assert bastion.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units) == ""
    for unit in units:
        bastion.run("systemd-analyze", "security", "--threshold=20", unit)


def test_the_first_start_and_a_reboot(bastion: Machine) -> None:
    lab = bastion.wire()
    bastion.switch_on()
    bastion.wait_until_booted()
    printed = bastion.run("nfknock", "init").split("nfknock knock bastion ")[1].splitlines()[0]
    knocks = printed.split()
    assert lab.reaches(BASTION4, 22)
    bastion.run("systemctl", "enable", "--now", "nfknock")
    assert lab.is_shut(BASTION4, 22)
    lab.knock(BASTION4, *knocks)
    assert bastion.ssh("id", "-un") == "root\n"
    assert not lab.reaches(BASTION4, 22, source=STRANGER4, within=0.4)

    lab = reboot_unanswered(bastion)
    firewall = int(bastion.show("nfknock-apply", "ActiveEnterTimestampMonotonic"))
    assert firewall < int(bastion.show("ssh", "InactiveExitTimestampMonotonic"))
    wait_until_it_runs(bastion)
    lab.knock(BASTION4, *knocks)
    assert bastion.ssh("id", "-un") == "root\n"


def test_the_first_installation_as_it_is_documented(bastion: Machine) -> None:
    """Over SSH, where nobody could come back in before a daemon listens."""
    bastion.boot()
    knocks = bastion.run("nfknock", "init").split("nfknock knock bastion ")[1].splitlines()[0].split()
    said = bastion.ssh("nfknock apply --confirm 120 --no-wait 2>&1")
    assert "no daemon runs: knocks are not heard; start it before you try" in said
    bastion.run("systemctl", "start", "nfknock")
    assert bastion.lab.is_shut(BASTION4, 22)
    bastion.lab.knock(BASTION4, *knocks)
    assert bastion.ssh("nfknock", "confirm") == "kept\n"
    assert bastion.ssh("systemctl enable nfknock 2>&1; echo done").endswith("done\n")
    assert bastion.run("systemctl", "is-active", "nfknock", "nfknock-apply").split() == ["active", "active"]


@pytest.mark.long
def test_a_file_that_nobody_applied_does_not_shut_ssh_at_a_reboot(bastion: Machine) -> None:
    bastion.boot()
    configure(bastion)
    assert "changed" in bastion.ssh("nfknock", "apply")
    bastion.run("systemctl", "enable", "--now", "nfknock")
    web = CONFIG.format(open_timeout="60s").replace("22/tcp", "80/tcp").replace("7101", "7102")
    bastion.write("/etc/nfknock/nfknock.toml", web, mode=0o640)
    bastion.reboot()
    assert f"shuts 22/tcp to {CLIENT4}, from where the last one was applied" in bastion.journal("nfknock-apply")
    assert bastion.lab.is_shut(BASTION4, 22)
    wait_until_it_runs(bastion)
    knock(bastion.lab)
    assert bastion.ssh("id", "-un") == "root\n"


class Tries:
    """Connections to sshd, one after the other."""

    count = 0
    is_silent = False


@contextmanager
def never_answered(lab: Lab) -> Iterator[Tries]:
    """Fail if, while the block runs, sshd answers somebody who did not knock. An empty port may refuse."""
    tries, enough, answered = Tries(), threading.Event(), []

    def connect() -> None:
        while not enough.is_set():
            with lab.client.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.settimeout(0.3)
                try:
                    probe.connect((BASTION4, 22))
                    answered.append(time.monotonic())
                except ConnectionRefusedError:
                    tries.is_silent = False
                    time.sleep(0.005)
                except OSError:
                    tries.is_silent = True
            tries.count += 1

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    try:
        yield tries
    finally:
        enough.set()
        thread.join(10)
    assert not answered


def test_root_applies_and_confirms_beside_the_daemon(bastion: Machine) -> None:
    bastion.boot()
    configure(bastion)
    bastion.run("systemctl", "enable", "--now", "nfknock")

    trial = try_out(bastion, allow="443/tcp", seconds=60)
    assert bastion.run("nfknock", "confirm") == "kept\n"
    assert trial.wait(30) == 0

    # Nobody confirms: neither the firewall nor the daemon has the new port, and the daemon goes on.
    assert try_out(bastion, allow="444/tcp", seconds=1).wait(60) == 1
    wait_until(lambda: "was on trial and nobody confirmed it" in bastion.journal("nfknock"), "the daemon to know")
    rules = bastion.lab.rules()
    assert ("allow 443/tcp" in rules, "allow 444/tcp" in rules) == (True, False)
    knock(bastion.lab)
    assert bastion.ssh("id", "-un") == "root\n"
    strangers = bastion.run("find", "/run/nfknock", "/var/lib/nfknock", "!", "-user", "nfknock", "!", "-type", "s")
    assert strangers == ""


def try_out(machine: Machine, *, allow: str, seconds: int) -> subprocess.Popen[str]:
    """Apply a configuration on trial, and return when it stands."""
    text = f'firewall.allow = ["{allow}"]\n{CONFIG.format(open_timeout="60s")}'
    machine.write("/etc/nfknock/nfknock.toml", text, mode=0o640)
    said = machine.lab.directory / "trial"
    with said.open("w") as stderr:
        trial = machine.start("nfknock", "apply", "--confirm", str(seconds), stdout=stderr, stderr=stderr)
    wait_until(lambda: "applied; taken back in" in said.read_text(), "the firewall on trial")
    return trial


def test_a_daemon_that_hangs_or_is_killed_comes_back_and_its_holes_stay(bastion: Machine) -> None:
    bastion.write("/etc/systemd/system/nfknock.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
    bastion.boot()
    configure(bastion)
    bastion.run("systemctl", "enable", "--now", "nfknock")
    knock(bastion.lab)
    wait_until(lambda: len(status(bastion)["holes"]) == 1, "the hole")
    hole = status(bastion)["holes"][0]
    for number, result in ((signal.SIGSTOP, "watchdog"), (signal.SIGKILL, "signal")):
        before = bastion.show("nfknock", "MainPID")
        os.kill(bastion.main_process(), number)
        wait_until_it_runs(bastion, after=before)
        assert f"Failed with result '{result}'" in bastion.journal("nfknock")
        [same] = status(bastion)["holes"]
        assert [same[key] for key in ("source", "closes_at")] == [CLIENT4, hole["closes_at"]]
    assert "adopted 1 open hole" in bastion.journal("nfknock")
    assert bastion.ssh("id", "-un") == "root\n"


def test_a_reload_says_what_is_wrong(bastion: Machine) -> None:
    bastion.boot()
    configure(bastion)
    bastion.run("systemctl", "enable", "--now", "nfknock")
    configure(bastion, open_timeout="30s")
    bastion.run("systemctl", "reload", "nfknock")
    # When that ends it has been done.
    knock(bastion.lab)
    wait_until(lambda: len(status(bastion)["holes"]) == 1, "the hole")
    assert status(bastion)["holes"][0]["remaining"] <= 30
    assert status(bastion)["daemon"]["reloads"] == {"begun": 1, "done": 1, "refused": None}
    bastion.write("/etc/nfknock/nfknock.toml", CONFIG.format(open_timeout="30s").replace("22/tcp", "80/tcp"))
    bastion.run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", "nfknock")
    assert status(bastion)["daemon"]["reloads"]["begun"] == 1
    assert "failed" in bastion.run("systemctl", "reload", "nfknock", check=False)
    assert "shuts 22/tcp to everybody, and was never applied" in bastion.journal("nfknock")
    bastion.write("/etc/nfknock/nfknock.toml", "[doors.ssh]\nopn = 1\n")
    assert "failed" in bastion.run("systemctl", "reload", "nfknock", check=False)
    assert "doors.ssh.opn: unknown key; did you mean 'open'?" in bastion.journal("nfknock")
    assert bastion.show("nfknock", "ActiveState") == "active"


def test_one_time_sequences_and_commands_as_the_daemons_user(bastion: Machine) -> None:
    """Everything that a daemon does besides opening: it marks, runs commands and writes a log, within its sandbox."""
    bastion.boot()
    bastion.run("nfknock", "sequences", "-n", "20", "--length", "4", "/var/lib/nfknock/ssh.ots")
    bastion.write("/etc/nfknock/nfknock.toml", ONE_TIME, mode=0o640)
    bastion.run("systemctl", "enable", "--now", "nfknock")
    sequences = bastion.lab.directory / "ssh.ots"
    sequences.write_text(bastion.run("cat", "/var/lib/nfknock/ssh.ots"))
    bastion.lab.client.run(*NFKNOCK, "knock", "--one-time", str(sequences), BASTION4)
    assert bastion.ssh("id", "-un") == "root\n"
    wait_until(lambda: "command says: nfknock" in bastion.run("cat", "/var/log/nfknock/knocks.log"), "the command")
    assert status(bastion)["daemon"]["one_time_left"] == {"ssh": 19}
    assert bastion.run("stat", "-c", "%a %U", "/var/lib/nfknock/ssh.ots").split() == ["600", "nfknock"]


ONE_TIME = """
log.file = "/var/log/nfknock/knocks.log"
[doors.ssh]
one_time_sequences = "/var/lib/nfknock/ssh.ots"
open = ["22/tcp"]
start_command = ["id", "-un"]
stop_command = ["true"]
"""


@pytest.mark.long
def test_killed_twenty_times_it_is_always_back(bastion: Machine) -> None:
    """And no hole outlives its time, whoever watches it."""
    bastion.boot()
    configure(bastion, open_timeout="3s")
    bastion.run("systemctl", "enable", "--now", "nfknock")
    bastion.lab.serve(2222)
    chance = random.Random(20261121)
    for _ in range(20):
        before = bastion.show("nfknock", "MainPID")
        knock(bastion.lab)
        time.sleep(chance.uniform(0, 0.5))
        os.kill(bastion.main_process(), signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until_it_runs(bastion, after=before)
        left = 3 + 2 - (time.monotonic() - killed_at)
        bastion.lab.wait_until_shut(BASTION4, 2222, within=max(0.5, left))
    knock(bastion.lab)
    assert bastion.ssh("id", "-un") == "root\n"

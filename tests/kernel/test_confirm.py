"""`apply --confirm`: what nobody confirms is taken back, whatever becomes of whoever called it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab import BASTION4, CLIENT4, NFKNOCK, Daemon, Lab, wait_until

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp"]\nopen = ["22/tcp"]\nopen_timeout = "60s"\n'
OTHER = DOOR.replace("7101", "7102")


DEAF = "warning: no daemon runs: knocks are not heard; start it before you try\n"


def foreign(lab: Lab) -> None:
    """Rules of the host's own, which are to be the same afterwards."""
    for command in ("iptables-legacy", "ip6tables-legacy"):
        for line in ("-N MINE", "-A MINE -p tcp --dport 99 -j DROP", "-A INPUT -j MINE", "-P FORWARD DROP"):
            lab.bastion.run(command, *line.split())


def start(lab: Lab, seconds: float = 3) -> subprocess.Popen[str]:
    """Start `apply --confirm` and wait until it waits."""
    process = lab.bastion.start(
        *NFKNOCK, "apply", "--confirm", str(seconds), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("applied; taken back in ")
    return process


def read_until(terminal: int, words: str) -> None:
    """Read what is said on a terminal up to and with these words."""
    said = ""
    while words not in said:
        said += os.read(terminal, 4096).decode()


def end(lab: Lab, number: signal.Signals) -> None:
    """Signal the guard and whoever called it: what has this test's directory in its environment and waits."""
    mark = f"NFKNOCK_RUNTIME_DIR={lab.environment['NFKNOCK_RUNTIME_DIR']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"--confirm" in (process / "cmdline").read_bytes() and mark in (process / "environ").read_bytes():
                os.kill(int(process.name), number)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stderr is not None
    with process, process.stderr:
        return process.wait(20), process.stderr.read()


def until_equal(lab: Lab, rules: str, within: float = 10) -> None:
    wait_until(lambda: lab.rules() == rules, "the rules to be as they were", within=within)


@pytest.fixture
def host(lab: Lab) -> Lab:
    foreign(lab)
    lab.configure(DOOR)
    return lab


def test_unconfirmed_it_goes_back_though_the_caller_is_killed(host: Lab) -> None:
    before = host.rules()
    process = start(host, 5)
    began_at = time.monotonic()
    firewall = json.loads(host.nfknock("status", "--json").stdout)["firewall"]
    assert firewall["policy"] == {"ipv4": "DROP", "ipv6": "DROP"}
    process.kill()
    ended(process)
    until_equal(host, before, within=6)
    assert time.monotonic() - began_at > 3.5


def test_unconfirmed_the_caller_says_so(host: Lab) -> None:
    before = host.rules()
    code, said = ended(start(host, 1))
    last = "nfknock: nobody confirmed within 1 s; the firewall is as it was before\n"
    assert (code, said) == (1, DEAF + last)
    assert host.rules() == before


def test_confirmed_it_stays(host: Lab) -> None:
    process = start(host, 3)
    applied = host.rules()
    assert host.nfknock("confirm").stdout == "kept\n"
    assert ended(process)[0] == 0
    time.sleep(3.5)
    assert host.rules() == applied
    assert host.nfknock("apply").stdout == "unchanged\n"


def test_it_survives_the_terminal(host: Lab) -> None:
    """As when an SSH session breaks: the terminal is gone, and everything in its session is told to hang up."""
    before = host.rules()
    master, slave = pty.openpty()
    process = host.bastion.start(
        *("setsid", "--ctty", "env", "--default-signal=HUP"),  # which nohup, say, would have ignored
        *(*NFKNOCK, "apply", "--confirm", "8"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    read_until(master, "applied; taken back in ")
    os.close(master)
    process.wait(20)
    assert host.rules() != before
    until_equal(host, before)


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"what?\ny\n", 0)])
def test_an_answer_on_the_terminal(host: Lab, answer: bytes, code: int) -> None:
    before = host.rules()
    master, slave = pty.openpty()
    process = host.bastion.start(*NFKNOCK, "apply", "--confirm", "30", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    read_until(master, "applied; taken back in ")
    os.write(master, answer)
    assert process.wait(10) == code
    os.close(master)
    assert (host.rules() == before) == (code == 1)


def test_nobody_else_changes_the_firewall_meanwhile(host: Lab) -> None:
    process = start(host, 30)
    applied = host.rules()
    for arguments in (["apply"], ["apply", "--confirm", "5"], ["apply", "--force"]):
        done = host.nfknock(*arguments, check=False)
        assert done.returncode == 1
        assert "waits for its confirmation; run `nfknock confirm`" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert host.rules() == applied
    host.nfknock("confirm")
    assert ended(process)[0] == 0


def test_remove_does_not_wait_for_the_confirmation(host: Lab) -> None:
    """It is the way out, and the trial may be what shut somebody out."""
    before = host.rules()
    host.nfknock("apply")
    host.configure(OTHER)
    process = start(host, 60)
    assert "that was taken back first" in host.nfknock("remove").stderr
    assert ended(process)[0] == 1
    assert host.rules() == before


def test_a_daemon_that_is_started_meanwhile_hears_the_knocks_of_the_trial(host: Lab) -> None:
    """As the first installation needs it: nobody could come back in and confirm without."""
    host.serve(22)
    done = host.nfknock("apply", "--confirm", "60", "--no-wait")
    assert done.stderr.endswith(DEAF)
    applied = host.rules()
    # What the daemon's unit wants to have been run before.
    done = host.nfknock("apply", "--or-last")
    assert (done.stdout, done.stderr) == ("", "a configuration is on trial; it is left to `nfknock confirm`\n")
    with Daemon(host.bastion, "--or-last") as daemon:
        assert host.rules() == applied
        host.knock(BASTION4, "7101", "8203:udp")
        daemon.wait_for("opened 22/tcp")
        assert host.reaches(BASTION4, 22)
        assert host.nfknock("confirm").stdout == "kept\n"
    assert host.nfknock("apply").stdout == "unchanged\n"


def test_without_one_there_is_nothing_to_confirm(host: Lab) -> None:
    done = host.nfknock("confirm", check=False)
    assert done.returncode == 1
    assert done.stderr == "nfknock: no `nfknock apply --confirm` waits for a confirmation here\n"


def test_what_changes_nothing_needs_no_confirmation(host: Lab) -> None:
    host.nfknock("apply")
    assert host.nfknock("apply", "--confirm", "30").stdout == "unchanged\n"
    assert host.nfknock("confirm", check=False).returncode == 1


def test_the_same_ports_in_another_order_are_a_trial_too(host: Lab) -> None:
    """The firewall stays as it is; what the daemon listens for does not."""
    host.nfknock("apply")
    rules = host.rules()
    daemon = host.daemon()
    host.configure(DOOR.replace('"7101", "8203/udp"', '"8203/udp", "7101"'))
    assert json.loads(host.nfknock("apply", "--confirm", "4", "--no-wait", "--json").stdout)["on_trial"] is True
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    daemon.wait_for("was on trial and nobody confirmed it: the one before counts")
    daemon.wait_for("reloaded", count=2)
    assert host.rules() == rules
    host.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp")


def test_nobody_has_to_wait_for_the_confirmation(host: Lab) -> None:
    before = host.rules()
    done = host.nfknock("apply", "--confirm", "60", "--no-wait", "--json")
    assert done.stderr == f"applied; taken back in 60 s unless you run `nfknock confirm`\n{DEAF}"
    report = json.loads(done.stdout)
    assert (report["changed"], report["on_trial"]) == (True, True)
    applied = host.rules()
    assert applied != before
    assert host.nfknock("confirm").stdout == "kept\n"
    assert host.rules() == applied
    report = json.loads(host.nfknock("apply", "--confirm", "60", "--no-wait", "--json").stdout)
    assert (report["changed"], report["on_trial"]) == (False, False)
    assert host.nfknock("confirm", check=False).returncode == 1


@pytest.mark.parametrize(
    "arguments", [["--confirm", "x"], ["--confirm", "0"], ["--confirm", "5", "--dry-run"], ["--no-wait"]]
)
def test_wrong_calls(host: Lab, arguments: list[str]) -> None:
    done = host.nfknock("apply", *arguments, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_it_goes_back_to_the_configuration_before_and_the_daemon_with_it(host: Lab) -> None:
    host.nfknock("apply")
    before = host.rules()
    daemon = host.daemon()
    host.configure(OTHER)
    process = start(host, 4)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    host.knock(BASTION4, "7102", "8203:udp")
    daemon.wait_for("opened 22/tcp")
    assert ended(process)[0] == 1
    until_equal_but_for_holes(host, before)
    assert CLIENT4 in host.rules(), "a hole that was opened meanwhile stays"
    daemon.wait_for("was on trial and nobody confirmed it: the one before counts")
    daemon.wait_for("reloaded", count=2)
    host.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("renewed 22/tcp")
    # The same configuration once more, without anybody watching, is what the trial was to keep from happening.
    done = host.nfknock("apply", check=False)
    assert done.returncode == 2
    assert "was refused, or taken back since nobody confirmed it; change it, run" in done.stderr
    until_equal_but_for_holes(host, before)
    assert host.nfknock("apply", "--force").stdout == "changed\n"
    assert "7102" in host.rules()
    assert host.nfknock("apply").stdout == "unchanged\n"


def until_equal_but_for_holes(host: Lab, rules: str) -> None:
    wait_until(lambda: host.rules(holes=False) == rules, "the rules to be as they were")


def test_a_daemon_does_not_put_back_what_was_taken_back(host: Lab) -> None:
    before = host.rules()
    process = start(host, 4)
    with_daemon = host.daemon()
    assert ended(process)[0] == 1
    time.sleep(3)
    assert host.rules() == before
    assert not any("put back" in line for line in with_daemon.lines)


def test_a_sandbox_may_see_another_boot_id(host: Lab) -> None:
    """As in a container whose manager has put another one over the kernel's: a fresh /proc has not got that."""
    process = start(host, 30)
    other = host.directory / "boot_id"
    other.write_text("00000000-0000-0000-0000-000000000000\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    done = host.bastion.run("unshare", "--mount", "sh", "-c", script, str(other), *NFKNOCK, "apply", check=False)
    assert "waits for its confirmation" in done.stderr
    host.nfknock("confirm")
    assert ended(process)[0] == 0


def reboot(host: Lab) -> None:
    """What a reboot leaves: no rules, no processes, and another boot id than the one that was noted."""
    host.nfknock("remove")
    [note] = Path(host.environment["NFKNOCK_STATE_DIR"]).glob("trial-*.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "another"}))


def interrupted_by_a_reboot(host: Lab) -> None:
    process = start(host, 60)
    end(host, signal.SIGKILL)
    ended(process)
    reboot(host)


def test_after_a_reboot_the_configuration_before_counts(host: Lab) -> None:
    host.nfknock("apply")
    before = host.rules()
    host.configure(OTHER)
    interrupted_by_a_reboot(host)
    done = host.nfknock("apply")
    assert "was on trial and nobody confirmed it: the one before counts" in done.stderr
    assert host.rules() == before
    daemon = host.daemon()
    host.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp")


def test_after_a_reboot_without_a_configuration_before_nothing_counts(host: Lab) -> None:
    interrupted_by_a_reboot(host)
    before = host.rules()
    for command in ("apply", "run"):
        done = host.nfknock(command, check=False)
        assert done.returncode == 2
        assert "was on trial and nobody confirmed it; run `nfknock apply --confirm 60` again" in done.stderr
    assert host.rules() == before
    # Whoever changes it has another configuration.
    host.configure(OTHER)
    assert host.nfknock("apply").stdout == "changed\n"


def test_the_lock_that_somebody_holds_puts_it_off_and_no_more(host: Lab) -> None:
    before = host.rules()
    process = start(host, 1)
    with Path(host.environment["XTABLES_LOCKFILE"]).open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        time.sleep(2)
    assert ended(process)[0] == 1
    until_equal(host, before)


def test_a_guard_that_is_told_to_end_takes_it_back_at_once(host: Lab) -> None:
    before = host.rules()
    process = start(host, 600)
    end(host, signal.SIGTERM)
    ended(process)
    until_equal(host, before)

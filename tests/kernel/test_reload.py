"""`nfknock reload` ends when the daemon has taken the file up, or says why not; SIGUSR1 opens logs anew."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.lab import NFKNOCK, Lab, wait_until

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
"""
OTHER = DOOR.replace("7101", "7102")


@pytest.fixture
def host(lab: Lab) -> Lab:
    lab.configure(DOOR)
    lab.nfknock("apply")
    return lab


def test_what_is_said_is_so_at_once(host: Lab) -> None:
    host.daemon()
    for text, port in ((OTHER, "7102"), (DOOR, "7101"), (OTHER, "7102")):
        host.configure(text)
        assert host.nfknock("reload").stdout == "reloaded\n"
        assert port in host.rules()
    reloads = json.loads(host.nfknock("status", "--json").stdout)["daemon"]["reloads"]
    assert reloads == {"begun": 3, "done": 3, "refused": None}


def test_several_at_once_are_each_answered(host: Lab) -> None:
    host.daemon()
    host.configure(OTHER)
    running = [host.bastion.start(*NFKNOCK, "reload") for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4


def test_what_the_daemon_alone_refuses_is_said_with_its_reason(host: Lab) -> None:
    host.daemon()
    before = host.rules()
    host.configure(f'daemon.user = "nobody"\n{OTHER}')
    done = host.nfknock("reload", check=False)
    assert done.returncode == 1
    said = "nfknock: the daemon refused the new configuration and keeps the old one: another user needs a restart\n"
    assert done.stderr == said
    assert host.rules() == before
    host.configure(DOOR)
    host.nfknock("reload")


def test_a_file_that_is_wrong_does_not_come_to_the_daemon(host: Lab) -> None:
    daemon = host.daemon()
    host.configure("[doors.ssh]\nopn = 1\n")
    done = host.nfknock("reload", check=False)
    assert done.returncode == 2
    assert "doors.ssh.opn: unknown key" in done.stderr
    assert not any("refused" in line for line in daemon.lines)


def test_without_a_daemon_it_says_so(host: Lab) -> None:
    done = host.nfknock("reload", check=False)
    assert (done.returncode, done.stderr) == (1, "nfknock: no daemon runs here; start it with `nfknock run`\n")


def test_a_daemon_that_hangs_is_not_waited_for_for_ever(host: Lab) -> None:
    daemon = host.daemon()
    daemon.signal(signal.SIGSTOP)
    done = host.nfknock("reload", "--timeout", "1", check=False)
    daemon.signal(signal.SIGCONT)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_sigusr1_opens_the_log_anew_and_leaves_the_configuration(host: Lab) -> None:
    log = host.directory / "knocks.log"
    host.configure(f'log.file = "{log}"\n{DOOR}')
    daemon = host.daemon()
    log.rename(log.with_suffix(".1"))
    host.configure(f'log.file = "{log}"\n{OTHER}')
    os.kill(daemon.process.pid, signal.SIGUSR1)
    wait_until(log.exists, "another log")
    assert json.loads(host.nfknock("status", "--json").stdout)["daemon"]["reloads"]["begun"] == 0
    assert "7102" not in host.rules()

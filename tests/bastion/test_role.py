"""The Ansible role at a bare Debian 12, over SSH: nothing is mocked, and the controller has to knock like everybody."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bastion.conftest import Once, build, find_tree
from tests.bastion.controller import Controller
from tests.bastion.machine import BASTION4, Machine, alone, machine
from tests.bastion.test_bastion import reboot_unanswered
from tests.bastion.test_package import session
from tests.bastion.wheels import make_wheels
from tests.lab import CLIENT4, STRANGER4, Host, wait_until

pytestmark = pytest.mark.root

SEQUENCE = ["7101", "8203/udp", "6307", "9411/udp"]
KNOCKS = ("7101", "8203:udp", "6307", "9411:udp")
PLACES = ("/etc", "/usr", "/var/lib/nfknock", "/var/log/nfknock", "/var/cache/nfknock", "/run/nfknock", "/opt")


def variables(deb: Path, **more: Any) -> dict[str, Any]:
    door = {"sequence": SEQUENCE, "open": ["22/tcp"], "open_timeout": "3s"}
    return {"nfknock_deb": str(deb), "nfknock_doors": {"ssh": door}, **more}


@pytest.fixture
def controller(tmp_path: Path, bare: Machine) -> Controller:
    return Controller(tmp_path, bare)


def test_a_first_bastion_from_a_bare_debian(bare: Machine, controller: Controller, deb: Path) -> None:
    bare.boot()
    lab = bare.lab
    with session(bare) as ask:
        foreseen = controller.play(variables(deb), "--check", "--diff")
        assert foreseen.ok, foreseen.output
        assert foreseen.changed > 0
        assert "+sequence = [hidden, new]" in foreseen.output
        assert bare.run("sh", "-c", "ls -d /etc/nfknock /var/cache/nfknock 2>&1 || true").count("No such file") == 2

        first = controller.play(variables(deb), "--diff", "-vvv")
        assert first.ok, first.output
        assert not [knock for knock in ("7101", "8203", "6307", "9411") if f'"{knock}' in first.output]
        assert bare.run("stat", "-c", "%a %U:%G", "/etc/nfknock/nfknock.toml") == "640 root:nfknock\n"
        lab.wait_until_shut(BASTION4, 22)
        lab.knock(BASTION4, *KNOCKS)
        assert lab.reaches(BASTION4, 22)
        assert lab.is_shut(BASTION4, 22, source=STRANGER4)
        lab.wait_until_shut(BASTION4, 22)

        controller.sequence = "7101,8203/udp,6307,9411/udp"
        second = controller.play(variables(deb))
        assert (second.ok, second.changed) == (True, 0), second.output
        again = controller.play(variables(deb), "--check", "--diff")
        assert (again.ok, again.changed) == (True, 0), again.output
        assert ask("echo still here") == "still here\n"

    lab = reboot_unanswered(bare)
    wait_until(lambda: bare.show("nfknock", "ActiveState") == "active", "the daemon", within=60)
    lab.knock(BASTION4, *KNOCKS)
    assert bare.ssh("id", "-un") == "root\n"


def test_a_controller_with_the_wrong_sequence_is_not_locked_out(
    bare: Machine, controller: Controller, deb: Path
) -> None:
    bare.boot()
    lab = bare.lab
    wrong = [*SEQUENCE[:3], "9412/udp"]
    given = variables(deb, nfknock_verify_sequence=wrong, nfknock_verify_timeout=4, nfknock_confirm_timeout=25)
    refused = controller.play(given)
    assert not refused.ok
    assert "bastion is as it was before, but nfknock 0.1.0 is installed now: at" in refused.output
    assert f"{BASTION4} port 22 did not answer within 4 s, after" in refused.output
    assert lab.reaches(BASTION4, 22)
    assert "nfknock" not in lab.rules()
    assert bare.run("systemctl", "is-active", "nfknock", check=False) == "inactive\n"
    assert bare.run("systemctl", "--failed", "--quiet", "--no-legend") == ""

    # The host's part was right, and the same file counts once it is confirmed.
    mended = controller.play(variables(deb))
    assert mended.ok, mended.output
    lab.wait_until_shut(BASTION4, 22)


@pytest.mark.long
def test_an_open_hole_is_no_proof_of_a_knock(bare: Machine, controller: Controller, deb: Path) -> None:
    """The same ports in another order: the firewall stays, and so does the controller's hole from before."""
    bare.boot()
    lab = bare.lab
    given = variables(deb)
    given["nfknock_doors"]["ssh"]["open_timeout"] = "120s"
    first = controller.play(given)
    assert first.ok, first.output
    controller.sequence = "7101,8203/udp,6307,9411/udp"
    given["nfknock_doors"]["ssh"]["sequence"] = ["8203/udp", "7101", *SEQUENCE[2:]]
    given["nfknock_verify_sequence"] = SEQUENCE
    # Where there is a guard, the daemon is to run afterwards, though it did not before.
    bare.run("systemctl", "stop", "nfknock")
    refused = controller.play(given)
    assert not refused.ok
    assert "bastion is as it was before: at" in refused.output
    assert "answers, but not through the door ssh" in refused.output
    assert bare.run("systemctl", "is-active", "nfknock", check=False) == "active\n"
    bare.run("nfknock", "close", "--all")
    assert lab.is_shut(BASTION4, 22)
    lab.knock(BASTION4, *KNOCKS)
    assert lab.reaches(BASTION4, 22)


def with_no_way_in(machine: Machine, given: dict[str, Any]) -> None:
    given["nfknock_doors"] = {"web": {"sequence": SEQUENCE, "open": ["443/tcp"]}}


def with_knocks_that_are_lost(machine: Machine, given: dict[str, Any]) -> None:
    # As by a firewall in front of the host.
    rule = ["-t", "mangle", "-A", "PREROUTING", "-p", "udp", "--dport", "8203", "-j", "DROP"]
    machine.lab.bastion.run("iptables-legacy", *rule)


def with_a_daemon_that_fails(machine: Machine, given: dict[str, Any]) -> None:
    machine.write("/etc/systemd/system/nfknock.service.d/test.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n")


ATTEMPTS = {
    "this shuts 22/tcp to 192.0.2.2, from where you are here over SSH": with_no_way_in,
    "did not answer within 4 s": with_knocks_that_are_lost,
    "Unable to start service nfknock.service": with_a_daemon_that_fails,
}


@contextlib.contextmanager
def offered(host: Host, *files: Path) -> Iterator[str]:
    """Offer files over HTTP at a host of the lab, as if they had all been there for long."""
    with tempfile.TemporaryDirectory() as place:
        for file in files:
            os.utime(shutil.copy(file, place), (1_600_000_000, 1_600_000_000))
        command = [sys.executable, "-m", "http.server", "--bind", CLIENT4, "--directory", place, "8080"]
        server = host.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: host.run("nc", "-z", CLIENT4, "8080", check=False).returncode == 0, "the HTTP server")
            yield f"http://{CLIENT4}:8080"
        finally:
            server.kill()
            server.wait()


@pytest.mark.long
def test_an_upgrade_has_to_let_the_controller_in_as_well(
    bare: Machine, controller: Controller, once: Once, deb: Path
) -> None:
    older = build(once, "deb-older", "--revision", "0")
    bare.boot()
    with offered(bare.lab.client, older, deb) as url:
        allowed = [{"open": "22/tcp", "from": CLIENT4}]
        given = variables(deb, nfknock_deb=f"{url}/{older.name}", nfknock_allow=allowed, nfknock_verify_timeout=6)
        foreseen = controller.play(given, "--check")
        assert foreseen.ok, foreseen.output
        first = controller.play(given)
        assert first.ok, first.output
        again = controller.play(given)
        assert (again.ok, again.changed) == (True, 0), again.output

        given["nfknock_deb"] = f"{url}/{deb.name}"
        with_knocks_that_are_lost(bare, given)
        refused = controller.play(given)
    assert not refused.ok
    assert "answers, but not through the door ssh" in refused.output
    assert (
        "bastion had nothing on trial, and nothing was taken back, but nfknock 0.1.0 is installed now" in refused.output
    )
    assert bare.run("dpkg-query", "-W", "-f", "${Version}", "nfknock").startswith("0.1.0-1+")
    assert "nfknock" in bare.lab.rules()


@pytest.mark.long
@pytest.mark.parametrize("reason", ATTEMPTS)
def test_no_controller_locks_itself_out(bare: Machine, controller: Controller, deb: Path, reason: str) -> None:
    bare.boot()
    given = variables(deb, nfknock_verify_timeout=4, nfknock_confirm_timeout=15)
    ATTEMPTS[reason](bare, given)
    refused = controller.play(given)
    assert not refused.ok
    assert "bastion is as it was before, but nfknock 0.1.0 is installed now: at" in refused.output
    assert reason in refused.output.rpartition("as it was before")[2]
    assert bare.lab.reaches(BASTION4, 22)
    assert "nfknock" not in bare.lab.rules()
    bare.reboot()
    assert bare.lab.reaches(BASTION4, 22)


@pytest.mark.long
def test_a_controller_that_is_gone_leaves_the_host_as_it_was(bare: Machine, controller: Controller, deb: Path) -> None:
    bare.boot()
    with controller.playing(variables(deb, nfknock_verify_command=["sleep", "60"], nfknock_confirm_timeout=10)):
        wait_until(lambda: "nfknock" in bare.lab.rules(), "the firewall on trial", within=120)
    wait_until(lambda: "nfknock" not in bare.lab.rules(), "the host to go back", within=30)
    assert bare.lab.reaches(BASTION4, 22)


@pytest.mark.long
def test_from_wheels(bare: Machine, controller: Controller, once: Once) -> None:
    given = variables(Path(), nfknock_install_from="wheels", nfknock_wheels=str(once("wheels", make_wheels)))
    del given["nfknock_deb"]
    bare.boot()
    plays_twice(bare, controller, given)
    assert bare.run("readlink", "/usr/local/sbin/nfknock") == "/opt/nfknock/bin/nfknock\n"
    assert controller.play({**given, "nfknock_state": "absent"}).ok
    assert "No such file" in bare.run("ls", "/opt/nfknock", check=False)
    assert bare.lab.reaches(BASTION4, 22)


@pytest.mark.long
def test_debian_13(once: Once, tmp_path: Path) -> None:
    package = build(once, "deb13", "--release", "debian13")
    with alone(), machine(tmp_path, find_tree("trixie")) as bastion:
        bastion.boot()
        plays_twice(bastion, Controller(tmp_path, bastion), variables(package))


def plays_twice(host: Machine, controller: Controller, given: dict[str, Any]) -> None:
    """Have the role run at a bare host, and then again, when there is nothing to do."""
    foreseen = controller.play(given, "--check", "--diff")
    assert foreseen.ok, foreseen.output
    first = controller.play(given)
    assert first.ok, first.output
    host.lab.wait_until_shut(BASTION4, 22)
    controller.sequence = "7101,8203/udp,6307,9411/udp"
    for options in ((), ("--check", "--diff")):
        again = controller.play(given, *options)
        assert (again.ok, again.changed) == (True, 0), again.output


@pytest.mark.long
def test_another_release_is_refused(bare: Machine, controller: Controller, deb: Path) -> None:
    bare.boot()
    bare.write("/etc/os-release", 'ID=debian\nNAME="Debian GNU/Linux"\nVERSION_ID="11"\n')
    bare.write("/etc/debian_version", "11.11\n")
    refused = controller.play(variables(deb))
    assert (refused.ok, refused.changed) == (False, 0)
    assert "nfknock runs on Debian 12, Debian 13 and Ubuntu 24.04" in refused.output
    assert "bastion has Debian 11.11" in refused.output


@pytest.mark.long
def test_taken_away_nothing_is_left(bare: Machine, controller: Controller, deb: Path) -> None:
    bare.boot()
    for command in ("iptables-legacy", "ip6tables-legacy"):
        bare.lab.bastion.run(command, "-S")  # so that there are tables to be compared
    # The administrator's own, in places that the role and the package know.
    own = {"/etc/systemd/system/nfknock.service.d/own.conf", "/opt/nfknock/own"}
    for name in own:
        bare.write(name, "[Service]\n")
    rules, before = bare.lab.rules(), files(bare)
    taken = variables(deb, nfknock_state="absent")
    nothing = controller.play(taken)
    assert (nothing.ok, nothing.changed) == (True, 0), nothing.output
    first = controller.play(variables(deb))
    assert first.ok, first.output
    controller.sequence = "7101,8203/udp,6307,9411/udp"
    foreseen = controller.play(taken, "--check")
    assert foreseen.ok, foreseen.output
    assert foreseen.changed > 0
    assert controller.play(taken).ok
    assert bare.lab.rules() == rules
    left = {name for name in files(bare) - before if "nfknock" in name}
    assert left == set()
    assert own <= files(bare)
    assert "nfknock" not in bare.run("cat", "/etc/passwd", "/etc/group")
    controller.sequence = ""
    again = controller.play(taken)
    assert (again.ok, again.changed) == (True, 0), again.output


def files(machine: Machine) -> set[str]:
    return set(machine.run("find", *PLACES, check=False).splitlines())

"""`nfknock connect` and `knock --wait` through a firewall that drops, and ssh through both."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, STRANGER4, STRANGER6, Daemon, Lab, wait_until

SEQUENCE = "7101,8203/udp,9307"
DOORS = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp", "2222/tcp"]
open_timeout = "30s"
"""
FAMILIES = pytest.mark.parametrize(
    ("bastion", "client", "stranger"), [(BASTION4, CLIENT4, STRANGER4), (BASTION6, CLIENT6, STRANGER6)]
)
TRIES = 20
# Whom sshd runs as and lets in. Not nobody, of whom systemd says that the account is locked.
USER = pwd.getpwnam("daemon")


@pytest.fixture
def daemon(lab: Lab) -> Daemon:
    lab.serve(22)
    lab.configure(DOORS)
    lab.nfknock("apply")
    return lab.daemon()


def connect(
    lab: Lab, bastion: str, *options: str, stdin: str = "hello\n", port: int = 22
) -> subprocess.CompletedProcess[str]:
    command = [*NFKNOCK, "connect", bastion, str(port), "--sequence", SEQUENCE, *options]
    return lab.client.run(*command, check=False, stdin=stdin)


@FAMILIES
def test_it_knocks_and_pipes(lab: Lab, daemon: Daemon, bastion: str, client: str, stranger: str) -> None:
    assert lab.is_shut(bastion, 22)
    done = connect(lab, bastion)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    daemon.wait_for(f"{client}: ssh: opened")
    assert sum("OPEN SESAME" in line for line in daemon.lines) == 1


@FAMILIES
def test_it_knocks_from_the_address_that_was_asked_for(
    lab: Lab, daemon: Daemon, bastion: str, client: str, stranger: str
) -> None:
    assert connect(lab, bastion, "-I", stranger).stdout == "hello\n"
    daemon.wait_for(f"{stranger}: ssh: opened")
    assert lab.is_shut(bastion, 22, source=client)


@FAMILIES
def test_it_does_not_knock_at_a_door_that_is_open(
    lab: Lab, daemon: Daemon, bastion: str, client: str, stranger: str
) -> None:
    lab.nfknock("open", "ssh", client)
    assert connect(lab, bastion).stdout == "hello\n"
    report = json.loads(lab.nfknock("status", "--json").stdout)["daemon"]
    assert (report["knocks"], report["strays"]) == (0, 0)


@FAMILIES
def test_a_door_that_stays_shut(lab: Lab, daemon: Daemon, bastion: str, client: str, stranger: str) -> None:
    done = connect(lab, bastion, "--timeout", "1.2s", port=23)
    why = f"nfknock: {bastion} port 23 did not answer within 1.2 s of the first knock\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)
    done = lab.client.run(*NFKNOCK, "knock", bastion, "7101", "--wait", "23", "--timeout", "1.2s", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)


def test_a_first_round_that_is_lost_is_made_up_for(lab: Lab, daemon: Daemon) -> None:
    """Nothing that is sent in the first second arrives."""
    lab.bastion.run("ip", "link", "set", "b0", "down")
    with lab.client.start(
        *NFKNOCK, "connect", BASTION4, "22", "--sequence", SEQUENCE, "-v",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr
        for _ in range(3):
            assert process.stderr.readline().startswith("hitting ")
        lab.bastion.run("ip", "link", "set", "b0", "up")
        assert process.communicate("hello\n", timeout=30)[0] == "hello\n"


def test_waiting_for_the_door(lab: Lab, daemon: Daemon) -> None:
    done = lab.client.run(*NFKNOCK, "knock", BASTION4, *SEQUENCE.split(","), "--wait", "22")
    assert (done.stdout, done.stderr) == ("", "")
    daemon.wait_for(f"{CLIENT4}: ssh: opened")
    assert lab.reaches(BASTION4, 22)


def test_a_port_that_refuses_once_it_is_reached(lab: Lab, daemon: Daemon) -> None:
    done = connect(lab, BASTION4, "--timeout", "0.5", port=2222)
    why = f"nfknock: {BASTION4} port 2222 did not answer within 0.5 s of the first knock: connection refused\n"
    assert (done.returncode, done.stderr) == (1, why)
    daemon.wait_for(f"{CLIENT4}: ssh: opened")


@contextlib.contextmanager
def serving_once(lab: Lab, port: int) -> Iterator[list[bytes]]:
    """Greet one client, end our side, and note what still comes in."""
    heard: list[bytes] = []
    with lab.bastion.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((BASTION4, port))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.settimeout(20)
                connection.sendall(b"welcome\n")
                connection.shutdown(socket.SHUT_WR)
                heard.append(b"".join(iter(lambda: connection.recv(4096), b"")))

        thread = threading.Thread(target=serve)
        thread.start()
        yield heard
        thread.join(20)


def test_each_side_may_end_first(lab: Lab, daemon: Daemon) -> None:
    with serving_once(lab, 2222) as heard:
        process = lab.client.start(
            *NFKNOCK, "connect", BASTION4, "2222", "--sequence", SEQUENCE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.read() == "welcome\n"
            process.stdin.write("still here\n")
            process.stdin.close()
            assert process.wait(20) == 0
    assert heard == [b"still here\n"]


class Sshd:
    """An sshd on the bastion that lets one key in, without root, and its echo service behind it."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory
        for name in ("host", "key"):
            path = str(directory / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        self._log = (directory / "log").open("w")
        self._process = lab.bastion.start(*self._command(), stdout=self._log, stderr=self._log)
        wait_until(self._is_listening, "sshd", within=20)

    def _command(self) -> list[str]:
        """As a user who cannot become another: so no sshd user and no /run/sshd are needed."""
        unpacked = Path(sys.prefix, "sshd")
        installed = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        program = installed or str(unpacked / "usr/sbin/sshd")
        assert Path(program).exists(), "there is no sshd; script/bootstrap server,test provides one"
        libraries = "" if installed else ":".join(map(str, unpacked.glob("usr/lib/*-linux-gnu")))
        config = self._directory / "sshd_config"
        config.write_text(
            f"Port 2222\nHostKey {self._directory}/host\nAuthorizedKeysFile {self._directory}/key.pub\n"
            # Looking whether the door is shut begins many sessions that nobody goes on with.
            "UsePAM no\nMaxStartups 100\nStrictModes no\nPidFile none\nAuthenticationMethods publickey\n"
            + ("" if installed else self._parts(unpacked))
        )
        return [
            "env", f"LD_LIBRARY_PATH={libraries}",
            "unshare", "--user", f"--map-user={USER.pw_uid}", f"--map-group={USER.pw_gid}",
            program, "-D", "-e", "-f", str(config),
        ]  # fmt: skip

    @staticmethod
    def _parts(unpacked: Path) -> str:
        """Since 9.8 sshd has parts of its own, which one that is unpacked does not find."""
        parts = (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth"))
        found = [(word, unpacked / "usr/lib/openssh" / name) for word, name in parts]
        return "".join(f"{word} {path}\n" for word, path in found if path.exists())

    def _is_listening(self) -> bool:
        assert self._process.poll() is None, self.log()
        return "Server listening" in self.log()

    def log(self) -> str:
        return (self._directory / "log").read_text()

    def log_in(self) -> subprocess.CompletedProcess[str]:
        """Send a line through ssh to the echo service, by way of `nfknock connect`."""
        proxy = f"{NFKNOCK[0]} connect %h %p --sequence {SEQUENCE}"
        options = {
            "ProxyCommand": proxy, "BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityAgent": "none",
            "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR",
        }  # fmt: skip
        command = ["ssh", "-F", "none", "-i", str(self._directory / "key"), "-l", USER.pw_name, "-p", "2222"]
        command += [f"-o{name}={value}" for name, value in options.items()]
        return self._lab.client.run(*command, "-W", "127.0.0.1:22", BASTION4, check=False, stdin="hello\n")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture
def sshd(lab: Lab, tmp_path: Path) -> Iterator[Sshd]:
    directory = tmp_path / "ssh"
    directory.mkdir()
    made = Sshd(lab, directory)
    yield made
    made.stop()


def test_ssh_logs_in_at_the_first_try_every_time(lab: Lab, daemon: Daemon, sshd: Sshd) -> None:
    for number in range(TRIES):
        assert lab.is_shut(BASTION4, 2222, within=0.2)
        done = sshd.log_in()
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", ""), f"try {number + 1}: {sshd.log()}"
        lab.nfknock("close", "--all")
    assert sshd.log().count(f"Accepted publickey for {USER.pw_name}") == TRIES
    assert sum("OPEN SESAME" in line for line in daemon.lines) == TRIES

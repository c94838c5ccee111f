"""Where the daemon's lines go: a file that logrotate moves, syslog, stderr."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfknock.config import Log
from nfknock.daemon.outlets import Outlets
from tests.lab import BASTION4, CLIENT4, NFKNOCK, Daemon, Lab, wait_until

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp"]\nopen = ["22/tcp"]\n'
LINES = [
    f"{CLIENT4}: ssh: Stage 1",
    f"{CLIENT4}: ssh: Stage 2",
    f"{CLIENT4}: ssh: OPEN SESAME",
    f"{CLIENT4}: ssh: opened 22/tcp for 30 s",
]


def ready(lab: Lab, log: str) -> Daemon:
    lab.configure(DOOR + log)
    lab.nfknock("apply")
    return lab.daemon()


def knock(lab: Lab) -> None:
    lab.knock(BASTION4, "7101", "8203:udp")


def said(path: Path) -> list[str]:
    return re.findall(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d\] (.*)$", path.read_text(), re.MULTILINE) if path.exists() else []


def test_a_file_in_knockds_format(lab: Lab) -> None:
    daemon = ready(lab, '[log]\nfile = "knocks.log"\n')
    path = lab.directory / "knocks.log"
    assert path.stat().st_mode & 0o137 == 0
    knock(lab)
    wait_until(lambda: LINES[-1] in said(path), "the line in the file")
    assert said(path)[-4:] == LINES
    assert daemon.lines == ["ready"]


def test_the_file_is_opened_anew_on_sighup(lab: Lab) -> None:
    daemon = ready(lab, '[log]\nfile = "knocks.log"\n')
    path, moved = lab.directory / "knocks.log", lab.directory / "knocks.log.1"
    path.rename(moved)
    knock(lab)
    wait_until(lambda: LINES[-1] in said(moved), "the line in the old file")
    # Even with a configuration that is refused: a file that was moved is done with.
    lab.configure("nonsense")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: any("refused" in line for line in said(path)), "the refusal in the new file")
    daemon.wait_for("refused")  # errors stand on stderr as well
    lab.configure(DOOR + f'[log]\nfile = "{lab.directory / "other.log"}"\n')
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: any("reloaded" in line for line in said(lab.directory / "other.log")), "the other file")


def test_a_file_that_cannot_be_opened(lab: Lab) -> None:
    path = lab.directory / "none" / "knocks.log"
    lab.configure(DOOR + f'[log]\nfile = "{path}"\n')
    lab.nfknock("apply")
    done = lab.nfknock("run", check=False)
    assert (done.returncode, done.stderr) == (1, f"nfknock: opening the log {path}: no such file or directory\n")
    path.parent.mkdir()
    daemon = lab.daemon()
    shutil.rmtree(path.parent)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("the log goes on where it went")
    assert daemon.process.poll() is None


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands at /dev/log on a host with a syslog, in a directory that can be bound over /dev."""
    (tmp_path / "dev").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "dev" / "log"))
        listener.settimeout(10)
        yield listener


def test_syslog(lab: Lab, syslog: socket.socket) -> None:
    dev = lab.directory / "dev"
    script = (
        f"for node in null zero full random urandom; do touch {dev}/$node && mount --bind /dev/$node {dev}/$node; done"
        f' && mount --rbind {dev} /dev && exec "$@"'
    )
    lab.configure(DOOR + "[log]\nsyslog = true\n")
    lab.nfknock("apply")
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *NFKNOCK, "run"]
    with lab.bastion.start(*command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "ready\n"
            received = [syslog.recv(4096)]
            knock(lab)
            while b"opened" not in received[-1]:
                received.append(syslog.recv(4096))
            # Facility daemon (3), level info (6), and who says it; knockd's words behind that.
            form = re.compile(rb"<30>nfknock\[\d+\]: (.*)\0")
            assert [form.fullmatch(each)[1].decode() for each in received] == ["ready", *LINES]  # type: ignore[index]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_syslog_that_comes_and_goes_leaves_stderr(tmp_path: Path) -> None:
    address = str(tmp_path / "log")
    with (tmp_path / "stderr").open("w") as stderr:
        outlets = Outlets(stderr, Log(syslog=True), syslog=address)
        say(outlets, "early")
        wait_until(lambda: bool((tmp_path / "stderr").read_text()), "the line on stderr")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(address)
            listener.settimeout(5)
            say(outlets, "one")
            assert listener.recv(100).endswith(b"one\0")
        Path(address).unlink()
        say(outlets, "two")
        outlets.finish()
    assert (tmp_path / "stderr").read_text() == "early\ntwo\n"


def test_the_journal_gets_a_level_with_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        status = (tmp_path / "stderr").stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        outlets = Outlets(stderr, Log())
        say(outlets, "one")
        say(outlets, "two", logging.WARNING)
        say(outlets, "three", logging.ERROR)
        outlets.finish()
    assert (tmp_path / "stderr").read_text() == "<6>one\n<4>two\n<3>three\n"


def say(outlets: Outlets, line: str, level: int = logging.INFO) -> None:
    outlets.emit(logging.makeLogRecord({"msg": line, "levelno": level}))

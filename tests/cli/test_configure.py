"""`init` and `check` as somebody runs them who has never done it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab import NFKNOCK

DOOR = '[doors.ssh]\nsequence = ["7101", "3203/udp", "9307", "1187/udp"]\nopen = ["22/tcp"]\n'


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NFKNOCK, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


def test_init_writes_what_check_likes(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "nfknock.toml"
    done = run("-c", str(path), "init")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"nfknock knock \S+( \d+(:udp)?){5}\n", done.stdout)
    assert path.stat().st_mode & 0o777 == 0o600
    checked = run("-c", str(path), "check", "--strict")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, f"{path}: fine, 1 door\n", "")


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    path.write_text("mine")
    done = run("init", "--output", str(path))
    assert done.returncode == 1
    assert done.stderr == f"nfknock: {path} exists already and stays as it is; choose another with --output FILE\n"
    assert path.read_text() == "mine"


def test_init_for_another_service(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    assert run("init", "--output", str(path), "--door", "web", "--open", "80", "--open", "443/udp").returncode == 0
    text = path.read_text()
    assert "[doors.web]" in text
    assert 'open = ["80/tcp", "443/udp"]' in text


def test_init_with_a_dot_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    assert run("init", "--output", str(path), "--door", "ssh.x-y").returncode == 0
    assert run("check", "--strict", str(path)).returncode == 0


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path: Path, closing: str) -> None:
    done = subprocess.run(["sh", "-c", f"{NFKNOCK[0]} init --output {tmp_path}/x.toml {closing}"], capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "x.toml").read_text().startswith("# nfknock")


def test_init_to_stdout_prints_the_file_and_nothing_else() -> None:
    done = run("init", "--output", "-")
    assert done.stdout.startswith("# nfknock:")
    assert done.stdout.rstrip().endswith('"192.0.2.1"')
    assert "nfknock knock" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--open", "x"], "'x' is not a port"),
        (["--open", "0"], "port 0 is out of range"),
        (["--door", "a b"], "one word"),
    ],
)
def test_init_refuses_what_check_would(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("init", "--output", str(tmp_path / "x.toml"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "x.toml").exists()


def test_init_where_it_must_not_write() -> None:
    done = run("init", "--output", "/proc/nfknock.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("nfknock: writing /proc/nfknock.toml: ")


def test_check_warns_of_what_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    path.write_text(DOOR)
    path.chmod(0o644)
    done = run("check", str(path))
    assert done.returncode == 0
    assert "others can read" in done.stderr
    assert run("check", "--strict", str(path)).returncode == 2


def test_check_names_file_key_and_mend(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    path.write_text(DOOR.replace("7101", "0"))
    done = run("check", NFKNOCK_CONFIG=str(path))
    assert done.returncode == 2
    mend = 'this is no port from 1 to 65535; write 7101, "7101/tcp" or "7101/udp"'
    assert done.stderr == f"nfknock: {path}: doors.ssh.sequence[0]: {mend}\n"


def test_help_and_version() -> None:
    assert run("--help").returncode == 0
    assert run("--version").stdout.startswith("nfknock ")
    alone = run()
    assert alone.returncode == 2
    assert "Usage:" in alone.stderr


def test_a_full_disk_is_one_line() -> None:
    done = subprocess.run(["sh", "-c", f"{NFKNOCK[0]} init --output - >/dev/full"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "nfknock: writing the output: no space left on device"
    assert len(done.stderr.splitlines()) <= 3


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    """`nfknock init --output - | head -1` says nothing about a broken pipe."""
    command = f"{NFKNOCK[0]} init --output - 2>/dev/null | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_check_warns_of_programs_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    path.write_text(DOOR + 'start_command = ["/bin/sh"]\nstop_command = ["/no/such"]\nstop_command_6 = ["none-such"]\n')
    path.chmod(0o600)
    done = run("check", str(path))
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning: doors.ssh.stop_command: there is no program /no/such here that can be run",
        "warning: doors.ssh.stop_command_6: there is no program none-such here that can be run",
    ]


def test_check_warns_when_one_time_sequences_run_short(tmp_path: Path) -> None:
    (tmp_path / "ssh.ots").write_text("".join(f" 1,2,{number}\n" for number in range(3, 8)))
    (tmp_path / "ssh.ots").chmod(0o644)
    path = tmp_path / "nfknock.toml"
    path.write_text('[doors.ssh]\none_time_sequences = "ssh.ots"\nopen = ["22/tcp"]\n')
    path.chmod(0o600)
    done = run("check", str(path))
    assert done.returncode == 0
    assert "warning: doors.ssh.one_time_sequences: 5 are left; `nfknock sequences` makes new ones" in done.stderr
    assert f"warning: others can read {tmp_path / 'ssh.ots'}" in done.stderr


def test_sequences_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "ssh.ots"
    done = run("sequences", "-n", "20", "--length", "4", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert len(set(text.splitlines())) == 20
    assert all(re.fullmatch(r" \d+:(tcp|udp)(,\d+:(tcp|udp)){3}", line) for line in text.splitlines())
    again = run("sequences", str(path))
    assert again.returncode == 1
    assert f"{path} exists already and stays as it is" in again.stderr
    assert path.read_text() == text
    assert len(run("sequences").stdout.splitlines()) == 100


def test_wrong_calls_of_sequences(tmp_path: Path) -> None:
    for arguments in (["-n", "0"], ["--length", "2"], ["--avoid", "x"], ["a", "-o", "b"]):
        done = run("sequences", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1

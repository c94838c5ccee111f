"""`nfknock import` as somebody runs it who comes from knockd."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.knockd.files import TIMED_TUTORIAL, TUTORIAL
from tests.lab import NFKNOCK


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*NFKNOCK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    path = tmp_path / "knockd.conf"
    path.write_text(TUTORIAL)
    return path


def test_the_configuration_is_stdout_and_the_report_stderr(tutorial: Path) -> None:
    done = run("import", tutorial)
    assert done.returncode == 0
    assert list(tomllib.loads(done.stdout)["doors"]) == ["openSSH"]
    *lines, counts = done.stderr.splitlines()
    form = re.compile(re.escape(str(tutorial)) + r":(\d+): (changed|kept|left out|unwise): .+")
    matches = [form.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in matches if match]
    assert len(numbers) == len(lines)
    assert numbers == sorted(numbers)
    assert counts == f"{tutorial}: 4 changed, 0 kept, 0 left out, 3 unwise"


def test_what_is_written_passes_check_and_is_secret(tutorial: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "nfknock.toml"
    done = run("import", tutorial, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert out.stat().st_mode & 0o777 == 0o600
    checked = run("check", out)
    assert (checked.returncode, checked.stdout) == (0, f"{out}: fine, 1 door\n")


def test_nothing_is_overwritten(tutorial: Path, tmp_path: Path) -> None:
    out = tmp_path / "nfknock.toml"
    out.write_text("mine")
    done = run("import", tutorial, "--output", out)
    assert done.returncode == 1
    assert done.stderr == f"nfknock: {out} exists already and stays as it is; choose another with --output FILE\n"
    assert out.read_text() == "mine"


def test_exact(tmp_path: Path) -> None:
    path = tmp_path / "knockd.conf"
    path.write_text(TIMED_TUTORIAL)
    assert 'tcpflags = "syn"' in run("import", path).stdout
    assert 'tcpflags = "syn,ack"' in run("import", "--exact", path).stdout


def test_a_wrong_file_is_one_line_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "knockd.conf"
    path.write_text("[ssh]\nsequence = 70000\n")
    done = run("import", path)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (
        "",
        f"nfknock: {path}: line 2: sequence: knock 1 is no port from 1 to 65535; write 7000 or 7000:udp\n",
    )


def test_what_cannot_be_read(tmp_path: Path) -> None:
    pipe, large, shut = tmp_path / "pipe", tmp_path / "large", tmp_path / "shut"
    os.mkfifo(pipe)
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    shut.write_bytes(b"")
    shut.chmod(0)
    cases = [
        (tmp_path / "none", f"there is no file {tmp_path}/none"),
        (tmp_path, "is a directory"),
        (pipe, "not a regular file"),
        (large, "file too large"),
    ]
    if os.geteuid() != 0:
        cases.append((shut, "permission denied"))
    for path, message in cases:
        done = run("import", path)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_output_is_utf_8_whatever_the_terminal_is(tmp_path: Path) -> None:
    path = tmp_path / "knockd.conf"
    path.write_text("[ssh]\nsequence = 1\ncommand = /bin/tell caf\u00e9\n", encoding="utf-8")
    done = run("import", path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "caf\u00e9" in done.stdout

"""`simulate` as somebody runs it, on captures of knocks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.captures import ETHERNET, frame, packet, pcap
from tests.lab import NFKNOCK

AT = 1_700_000_000.0
DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
KNOCKS = [(AT + index / 10, frame(ETHERNET, packet(port))) for index, port in enumerate(("7101", "8203/udp", "9307"))]
OPENED = ["Stage 1", "Stage 2", "Stage 3", "OPEN SESAME", "opened 22/tcp for 30 s"]
LATER = (AT + 40, frame(ETHERNET, packet("80")))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "nfknock.toml").write_text(DOOR)
    return tmp_path


def simulate(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NFKNOCK_CONFIG": str(directory / "nfknock.toml")}
    return subprocess.run(
        [*NFKNOCK, "simulate", *arguments], capture_output=True, text=True, env=environment, cwd=directory
    )


def lines(*texts: str) -> str:
    return "".join(f"192.0.2.2: ssh: {text}\n" for text in texts)


def test_it_prints_what_the_daemon_would_have_logged(directory: Path) -> None:
    (directory / "x.pcap").write_bytes(pcap([*KNOCKS, LATER], link_type=ETHERNET))
    done = simulate(directory, "x.pcap")
    assert (done.returncode, done.stdout, done.stderr) == (0, lines(*OPENED, "closed after 30 s"), "")


def test_it_says_what_would_be_open_at_the_end(directory: Path) -> None:
    (directory / "x.pcap").write_bytes(pcap(KNOCKS, link_type=ETHERNET))
    done = simulate(directory, "x.pcap")
    assert (done.returncode, done.stdout) == (0, lines(*OPENED))
    assert done.stderr == lines("at the end of the capture 22/tcp is open, for 30 s more")


def test_the_instants_of_the_capture(directory: Path) -> None:
    (directory / "x.pcap").write_bytes(pcap([*KNOCKS, LATER], link_type=ETHERNET))
    first, *_others, last = simulate(directory, "x.pcap", "--times").stdout.splitlines()
    assert first == "2023-11-14T22:13:20.000Z 192.0.2.2: ssh: Stage 1"
    assert last == "2023-11-14T22:13:50.200Z 192.0.2.2: ssh: closed after 30 s"


def test_a_capture_that_was_cut_off_is_used_as_far_as_it_goes(directory: Path) -> None:
    path = directory / "x.pcap"
    path.write_bytes(pcap([*KNOCKS, LATER], link_type=ETHERNET)[:-10])
    done = simulate(directory, "x.pcap")
    assert (done.returncode, done.stdout) == (1, lines(*OPENED))
    assert done.stderr == (
        "nfknock: reading x.pcap: it is cut off or damaged behind packet 3; what stands before was used\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "missing argument 'CAPTURE'"),
        (["missing.pcap"], 1, "reading missing.pcap: no such file or directory"),
        (["."], 1, "reading .: is a directory"),
        (["nfknock.toml"], 1, "reading nfknock.toml: it is no capture that can be read; pcap and pcapng can"),
        (["-x", "missing.pcap"], 2, "no such option"),
    ],
)
def test_a_wrong_call_is_one_line(directory: Path, arguments: list[str], code: int, message: str) -> None:
    done = simulate(directory, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_configuration_that_is_wrong(directory: Path) -> None:
    (directory / "nfknock.toml").write_text("rubbish")
    assert simulate(directory, "missing.pcap").returncode == 2

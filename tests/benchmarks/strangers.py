"""What strangers achieve at nfknock's door, and at knockd's beside it.

    script/bench strangers [--rate PACKETS] [--seconds N]

Both have the same three-knock door, and get the same scans and floods from made-up addresses. A scan that opens the
door counts against them; in a flood, so does each of 30 honest clients that knocks once and is not let in within a
second.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nfknock.core.model import Port
from tests.kernel import packets
from tests.kernel.crowd import hit
from tests.lab import BASTION4, Lab

_SEQUENCE = (Port(7101), Port(8203), Port(9307))
_KNOCKS = [port.number for port in _SEQUENCE]
_DOOR = '[doors.ssh]\nsequence = ["7101", "8203", "9307"]\nopen = ["22/tcp"]\nopen_timeout = "2s"\n'
_KNOCKD = (
    "[options]\nlogfile = {log}\n[ssh]\nsequence = 7101,8203,9307\nseq_timeout = 5\ntcpflags = syn\ncommand = true\n"
)
_ALL = range(1, 65536)
_CLIENTS = 30
_WITHIN = 1.0
_PAUSE = 0.1
# As fast as nmap scans here.
_SCAN_RATE = 30_000.0
_SEED = 20261121

Lines = Callable[[], list[str]]


def main() -> None:
    """Measure and print a table."""
    options = argparse.ArgumentParser(prog="script/bench strangers", description="Scans and floods, beside knockd.")
    options.add_argument("--rate", type=int, default=100_000, help="packets a second of a flood (at most 200,000)")
    options.add_argument("--seconds", type=int, default=10, help="how long a flood lasts (at most 30)")
    chosen = options.parse_args()
    rate, seconds = min(chosen.rate, 200_000), min(chosen.seconds, 30)
    columns = []
    for program in (_nfknock, _knockd):
        with tempfile.TemporaryDirectory() as directory:
            lab = Lab(Path(directory))
            try:
                with program(lab) as lines:
                    columns.append(dict(_rows(lab, lines, rate, seconds)))
            finally:
                lab.stop()
    for what, figure in columns[0].items():
        sys.stdout.write(f"| {what} | {figure} | {columns[1][what]} |\n")


def _rows(lab: Lab, lines: Lines, rate: int, seconds: int) -> Iterator[tuple[str, str]]:
    chance = random.Random(_SEED)
    kinds: tuple[tuple[str, int, Callable[[], list[int]]], ...] = (
        ("scans of all ports upwards that open", 3, lambda: list(_ALL)),
        ("downwards", 3, lambda: list(_ALL)[::-1]),
        ("shuffled", 12, lambda: chance.sample(_ALL, len(_ALL))),
        ("shuffled scans of the knock ports and 100 others", 100, lambda: _few(chance)),
    )
    number = 0
    for what, times, ports in kinds:
        sources = [f"198.51.100.{number + each + 1}" for each in range(times)]
        number += times
        with lab.client.here():
            for source in sources:
                packets.scan(BASTION4, source, ports(), rate=_SCAN_RATE)
        time.sleep(_WITHIN)
        yield what, f"{len(_opened(lines(), sources))} of {times}"
    clients = [f"192.0.2.{20 + each}" for each in range(3 * _CLIENTS)]
    for client in clients:
        lab.client.run("ip", "addr", "add", f"{client}/24", "dev", "c0")
    for what, target in (("the first knock", "7101"), ("every knock", "7101,8203,9307"), ("any port", "0")):
        some, clients = clients[:_CLIENTS], clients[_CLIENTS:]
        sent, inside = _flood(lab, lines, target, some, (rate, seconds))
        yield f"clients let in, flood at {what}", f"{inside} of {len(some)} ({sent / seconds / 1000:.0f},000/s)"


def _few(chance: random.Random) -> list[int]:
    ports = _KNOCKS + chance.sample([port for port in _ALL if port not in (22, *_KNOCKS)], 100)
    chance.shuffle(ports)
    return ports


def _flood(lab: Lab, lines: Lines, ports: str, clients: list[str], how: tuple[int, int]) -> tuple[int, int]:
    rate, seconds = how
    command = [sys.executable, "-m", "tests.kernel.packets", BASTION4, str(rate), str(seconds), ports]
    sender = lab.client.start(*command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert sender.stdout is not None
    sender.stdout.readline()  # it is ready
    time.sleep(seconds / 10)
    knocked: dict[str, float] = {}
    inside: set[str] = set()
    while len(knocked) < len(clients) or time.monotonic() < max(knocked.values()) + _WITHIN:
        if len(knocked) < len(clients):
            client = clients[len(knocked)]
            knocked[client] = time.monotonic()
            with lab.client.here():
                hit(client, _SEQUENCE)
        time.sleep(_PAUSE)
        now = time.monotonic()
        inside |= {each for each in _opened(lines(), knocked) if now < knocked[each] + _WITHIN + _PAUSE}
    if sender.poll() is not None:
        raise SystemExit("the flood was over before everybody had knocked; let it last longer")
    out, _ = sender.communicate()
    return int(out), len(inside)


def _opened(lines: Iterable[str], sources: Iterable[str]) -> set[str]:
    said = {line.split(": ", 1)[0].rsplit(" ", 1)[-1] for line in lines if line.endswith("OPEN SESAME")}
    return said & set(sources)


@contextmanager
def _nfknock(lab: Lab) -> Iterator[Lines]:
    lab.configure(_DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()
    yield lambda: list(daemon.lines)


@contextmanager
def _knockd(lab: Lab) -> Iterator[Lines]:
    log = lab.directory / "knockd.log"
    config = lab.directory / "knockd.conf"
    config.write_text(_KNOCKD.format(log=log))
    lab.bastion.run("iptables-legacy", "-P", "INPUT", "DROP")
    knockd = lab.bastion.start("knockd", "-i", "b0", "-c", str(config), stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield lambda: log.read_text().splitlines() if log.exists() else []
    finally:
        knockd.terminate()
        knockd.wait()


if __name__ == "__main__":
    main()

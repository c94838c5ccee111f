"""How long it takes from the last knock to the first packet through the hole.

    script/bench [--knocks N] [--holes N]

A client in one namespace knocks at a daemon in another, each time from another address, and sends a datagram every
tenth of a millisecond to the port that the door opens until one is answered. The figure is from the moment the last
knock was sent to the moment the answer came: the way there and back, the queue, the decision and the rule.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from nfknock.backends.iptables import IptablesBackend
from nfknock.core.model import Hole, Opening, Port
from tests.lab import BASTION4, Lab

_DOOR = '[doors.echo]\nsequence = ["7101", "8203/udp", "9307/udp"]\nopen = ["5300/udp"]\nopen_timeout = "1h"\n'
_ECHO = (
    "import socket\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5300)); print(flush=True)\n"
    "while True: s.sendto(*s.recvfrom(100))\n"
)
_PAUSE = 0.0001
_PATIENCE = 5.0


def main() -> None:
    """Measure and print one line."""
    options = argparse.ArgumentParser(prog="script/bench", description="Last knock to first packet through the hole.")
    options.add_argument("--knocks", type=int, default=100, help="how often to measure (default 100, at most 200)")
    options.add_argument("--holes", type=int, default=0, help="how many other holes stand meanwhile (default none)")
    chosen = options.parse_args()
    knocks = min(chosen.knocks, 200)
    with tempfile.TemporaryDirectory() as directory, _bastion(Path(directory), chosen.holes) as lab:
        times = sorted(_measure(lab, f"192.0.2.{number}") for number in range(10, 10 + knocks))
    late = times[int(len(times) * 0.95)]
    sys.stdout.write(
        f"last knock to first packet, {knocks} knocks, {chosen.holes} other holes: "
        f"median {statistics.median(times) * 1000:.1f} ms, 95 % within {late * 1000:.1f} ms, "
        f"least {times[0] * 1000:.1f} ms, most {times[-1] * 1000:.1f} ms\n"
    )


@contextmanager
def _bastion(directory: Path, holes: int) -> Iterator[Lab]:
    lab = Lab(directory)
    try:
        for number in range(10, 210):
            lab.client.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "c0")
        lab.configure(_DOOR)
        lab.nfknock("apply")
        with lab.bastion.here():
            os.environ.update(lab.environment)
            IptablesBackend().open(_others(holes))
        echo = lab.bastion.start(sys.executable, "-c", _ECHO, stdout=-1)
        try:
            assert echo.stdout is not None
            echo.stdout.readline()
            lab.daemon()
            yield lab
        finally:
            echo.kill()
            echo.communicate()
    finally:
        lab.stop()


def _others(count: int) -> list[Hole]:
    now = time.time()
    return [
        Hole(
            door="echo",
            source=ip_address(f"198.51.{number // 256}.{number % 256}"),
            opens=(Opening(Port(5300, "udp")),),
            opened_at=now,
            closes_at=now + 3600,
        )
        for number in range(count)
    ]


def _measure(lab: Lab, source: str) -> float:
    with (
        lab.client.socket(socket.AF_INET, socket.SOCK_STREAM, source) as syn,
        lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM, source) as datagram,
    ):
        syn.settimeout(0)
        datagram.settimeout(0)
        syn.connect_ex((BASTION4, 7101))
        datagram.sendto(b"x", (BASTION4, 8203))
        began_at = time.perf_counter()
        datagram.sendto(b"x", (BASTION4, 9307))
        while time.perf_counter() - began_at < _PATIENCE:
            datagram.sendto(b"x", (BASTION4, 5300))
            time.sleep(_PAUSE)
            try:
                datagram.recv(100)
            except BlockingIOError:
                continue
            return time.perf_counter() - began_at
    raise SystemExit(f"nothing came through the hole for {source} within {_PATIENCE:g} s")


if __name__ == "__main__":
    main()

"""What a packet costs that is only read: the delay of one alone, and CPU time where there are many.

    script/bench reading [--rate N] [--seconds N]

`nfknock apply` puts in the rules, a reader of each kind reads in the bastion's namespace, and a client in another sends
datagrams to a knock port: 300 one by one, then as many a second as asked for. The delay is from before a datagram is
sent to when it is parsed. CPU time is that of whoever reads, with the system's share of it; nothing follows the knocks.
NFLOG is read by the daemon alone as well, to tell what it costs that another process takes packets apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nfknock.config import load
from nfknock.core.plan import Plan
from nfknock.readers import Reader, make_reader
from nfknock.readers.apart import ApartReader
from nfknock.readers.nflog import NflogReader
from tests.lab import BASTION4, Lab, inside
from tests.setting import Setting

_PORT = 8203
_DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
_ALONE = 300
_QUIET = 0.5


def main() -> None:
    """Measure and print one line for each reader."""
    options = argparse.ArgumentParser(prog="script/bench reading", description="What a packet costs that is read.")
    options.add_argument("--rate", type=int, default=40_000, help="packets a second (default 40000)")
    options.add_argument("--seconds", type=float, default=2.0, help="for so long (default 2, at most 30)")
    chosen = options.parse_args()
    for kind, title, make in (
        ("nfqueue", "nfqueue", make_reader),
        ("nflog", "nflog", make_reader),
        ("nflog", "nflog in one process", lambda plan: NflogReader(plan.queue)),
    ):
        with tempfile.TemporaryDirectory() as directory:
            lab = Lab(Path(directory), Setting(reader=kind))
            try:
                _measure(lab, title, make, chosen.rate, min(chosen.seconds, 30.0))
            finally:
                lab.stop()


def _measure(lab: Lab, title: str, make: Callable[[Plan], Reader], rate: int, seconds: float) -> None:
    lab.configure(_DOOR)
    lab.nfknock("apply")
    with lab.bastion.here():
        reader = make(load(lab.config).plan)
        reader.open()
    try:
        delays = sorted(_delays(lab, reader))
        got, cpu, elapsed = _flood(lab, reader, rate, seconds)
    finally:
        reader.close()
    sys.stdout.write(
        f"{title}: one alone after {statistics.median(delays) * 1e6:.0f} µs, 95 % within "
        f"{delays[len(delays) * 95 // 100] * 1e6:.0f} µs; {got / elapsed / 1000:.0f},000 a second: "
        f"{cpu / got * 1e6:.1f} µs of CPU a packet, {reader.count_lost()} lost\n"
    )


def _delays(lab: Lab, reader: Reader) -> list[float]:
    delays = []
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(_ALONE):
            # Not in step with the kernel's ticks.
            time.sleep(0.001 + number % 7 * 0.0007)
            began_at = time.perf_counter()
            sender.sendto(b"x", (BASTION4, _PORT))
            while not reader.read():
                select.select([reader], [], [], 1)
            delays.append(time.perf_counter() - began_at)
    return delays


def _flood(lab: Lab, reader: Reader, rate: int, seconds: float) -> tuple[int, float, float]:
    """Return how many packets were read, and the CPU time and the time that took, in seconds."""
    sender = multiprocessing.Process(target=_send, args=(lab.client.path, rate, seconds))
    sender.start()
    got, cpu, first, last = 0, _cpu(reader), 0.0, 0.0
    while sender.is_alive() or time.perf_counter() - last < _QUIET:
        if select.select([reader], [], [], 0.1)[0] and (count := len(reader.read())):
            last = time.perf_counter()
            first = first or last
            got += count
    sender.join()
    return got, _cpu(reader) - cpu, last - first


def _cpu(reader: Reader) -> float:
    """Return the CPU time of this process, and of the one that reads for it, in seconds."""
    spent = time.process_time()
    if isinstance(reader, ApartReader) and reader.child_pid is not None:
        # Behind the name, which may have anything in it: utime and stime are the 12th and the 13th.
        fields = Path(f"/proc/{reader.child_pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def _send(path: str, rate: int, seconds: float) -> None:
    with inside(path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((BASTION4, _PORT))
        began_at, sent = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began_at) < seconds:
            due = int(elapsed * rate) - sent
            for _ in range(min(due, 50)):
                sender.send(b"x")
                sent += 1
            if due <= 0:
                time.sleep(0.0002)


if __name__ == "__main__":
    main()

"""What holes cost when there are many: each backend with 10, 1,000 and 10,000 of them, in turn on the same machine.

    script/bench many [--holes N ...] [--backends NAME ...] [--rounds N]

`open`, `renew` and `close` are one hole as the daemon writes it; `adopt` is reading every hole back. The commands are
whole processes, Python's start included. Medians, in milliseconds; `times` is the median of what the last number of
holes costs in a round, by what the first one costs in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

from nfknock.backends import Backend, make_backend
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import BackendChoice
from tests.lab import Daemon, Lab
from tests.setting import Setting

_DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307/udp"]\nopen = ["22/tcp"]\nopen_timeout = "1h"\n'
_OTHER = "203.0.113.5"


def main() -> None:
    """Measure and print a table."""
    options = argparse.ArgumentParser(prog="script/bench many", description="What holes cost when there are many.")
    options.add_argument("--holes", type=int, nargs="+", default=[10, 1_000, 10_000])
    options.add_argument("--backends", nargs="+", default=["iptables", "ipset", "nftables"])
    options.add_argument("--rounds", type=int, default=9, help="how often each is measured (default 9)")
    chosen = options.parse_args()
    say(f"{'backend':9} {'what':>8}", *(f"{count:>9}" for count in chosen.holes), "    times")
    for name in chosen.backends:
        for what, rounds in compared(name, chosen.holes, chosen.rounds).items():
            medians = [statistics.median(times) * 1000 for times in zip(*rounds, strict=True)]
            ratio = statistics.median(times[-1] / times[0] for times in rounds)
            say(f"{name:9} {what:>8}", *(f"{median:9.1f}" for median in medians), f"{ratio:9.2f}")


def compared(name: str, counts: Sequence[int], rounds: int) -> dict[str, list[list[float]]]:
    """Return of each step, for each round, how long it takes with each number of holes, in seconds."""
    found: dict[str, list[list[float]]] = {}
    with ExitStack() as stack:
        places = []
        for count in counts:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            lab, backend = stack.enter_context(bastion(directory, name))
            with there(lab):
                for first in range(0, count, 1000):
                    backend.open(holes(range(first, min(first + 1000, count))))
                backend.holes()
            places.append((lab, backend))
        for number in range(rounds):
            # In turn, and one right after the other: no machine is equally fast for minutes.
            for what in steps(*places[0], number):
                times = []
                for lab, backend in places:
                    with there(lab):
                        times.append(measured(steps(lab, backend, number)[what]))
                found.setdefault(what, []).append(times)
    return found


def say(*columns: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{' '.join(columns)}\n")
    sys.stdout.flush()


@contextmanager
def bastion(directory: Path, name: str) -> Iterator[tuple[Lab, Backend]]:
    """Give a bastion with its firewall in place, and a backend as a daemon has it."""
    lab = Lab(directory, Setting(backend=name, reader="nflog"))
    try:
        lab.configure(_DOOR)
        lab.nfknock("apply")
        with there(lab):
            backend = make_backend(BackendChoice(name=name))
        yield lab, backend
    finally:
        lab.stop()


@contextmanager
def there(lab: Lab) -> Iterator[None]:
    """Be on a bastion, with its lock."""
    os.environ.update(lab.environment)
    with lab.bastion.here():
        yield


def holes(numbers: range) -> list[Hole]:
    """Return holes of one door, each for another source."""
    now = time.time()
    return [
        Hole(
            door="ssh",
            source=ip_address(f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}"),
            opens=(Opening(Port(22)),),
            opened_at=now,
            closes_at=now + 3600,
        )
        for number in numbers
    ]


def steps(lab: Lab, backend: Backend, number: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, in this order: what one step opens is shut by a later one."""
    [other] = holes(range(100_000 + number, 100_001 + number))
    keys = [other.key]
    return {
        "open": lambda: backend.open([other]),
        "renew": lambda: backend.open([other]),
        "close": lambda: backend.close(keys),
        "adopt": backend.holes,
        "sweep": backend.sweep,
        "state": backend.state,
        "$ open": lambda: lab.nfknock("open", "ssh", _OTHER),
        "$ close": lambda: lab.nfknock("close", "ssh", _OTHER),
        "$ status": lambda: lab.nfknock("status", "--json"),
        "$ run": lambda: adopted(lab),
    }


def adopted(lab: Lab) -> None:
    """Start a daemon, and end it as soon as it is ready: it has adopted all holes by then."""
    with Daemon(lab.bastion):
        pass


def measured(step: Callable[[], object]) -> float:
    """Return how long it takes, in seconds."""
    began_at = time.perf_counter()
    step()
    return time.perf_counter() - began_at


if __name__ == "__main__":
    main()

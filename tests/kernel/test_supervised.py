"""What a supervisor hears of the daemon: that it is ready, that it reloads and ends, and whether its loop turns."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, wait_until

CONFIG = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
"""


class Supervisor:
    """The end of a notification socket that systemd would have."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self._lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0)
        lab.bastion.environment["NOTIFY_SOCKET"] = str(path)

    def hears_next(self) -> str:
        """Wait for a line and return it; the daemon logs that it is ready before it says so here."""
        wait_until(lambda: bool(self._listen()), "something to be heard", within=20)
        return self._lines.pop(0)

    def heard(self) -> list[str]:
        """Return what was said since the last time."""
        self._listen()
        lines, self._lines = self._lines, []
        return lines

    def hears(self, text: str, *, within: float = 20) -> None:
        """Wait for a line; those up to it are done with."""
        wait_until(lambda: text in self._listen(), text, within=within)
        del self._lines[: self._lines.index(text) + 1]

    def _listen(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._lines += self._socket.recv(4096).decode().splitlines()
        return self._lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(lab: Lab, tmp_path: Path) -> Iterator[Supervisor]:
    lab.configure(CONFIG)
    lab.nfknock("apply")
    made = Supervisor(lab, tmp_path / "notify")
    yield made
    made.close()


def test_a_supervisor_hears_of_ready_reloading_and_stopping(lab: Lab, supervisor: Supervisor) -> None:
    daemon = lab.daemon()
    assert supervisor.hears_next() == "READY=1"
    daemon.signal(signal.SIGHUP)
    supervisor.hears("RELOADING=1")
    daemon.wait_for("reloaded")
    supervisor.hears("READY=1")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    assert supervisor.heard() == ["STOPPING=1"]


def test_a_watchdog_is_fed_by_a_loop_that_turns_and_by_no_other(lab: Lab, supervisor: Supervisor) -> None:
    lab.bastion.environment["WATCHDOG_USEC"] = "400000"
    daemon = lab.daemon()
    supervisor.hears("WATCHDOG=1")
    daemon.signal(signal.SIGSTOP)
    state = Path(f"/proc/{daemon.process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the daemon to be stopped")
    supervisor.heard()
    with pytest.raises(AssertionError, match="not within"):
        supervisor.hears("WATCHDOG=1", within=1)
    daemon.signal(signal.SIGCONT)
    supervisor.hears("WATCHDOG=1")


def test_a_watchdog_that_watches_somebody_else_is_not_fed(lab: Lab, supervisor: Supervisor) -> None:
    """Whoever starts the daemon from a unit of their own: the variables are inherited."""
    lab.bastion.environment.update(WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    lab.daemon()
    with pytest.raises(AssertionError, match="not within"):
        supervisor.hears("WATCHDOG=1", within=1)

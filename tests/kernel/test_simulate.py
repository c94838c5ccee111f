"""A capture of real knocks, taken beside a real daemon: `simulate` says what the daemon said."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.captures import ETHERNET, pcap
from tests.lab import BASTION4, BASTION6, STRANGER4, Lab

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "2s"
seq_timeout = "1s"
"""
KNOCKS = ("7101", "8203:udp", "9307")
_ALL_PROTOCOLS = 3


class Capture:
    """What goes over the bastion's cable, both ways."""

    def __init__(self, lab: Lab) -> None:
        self.frames: list[tuple[float, bytes]] = []
        with lab.bastion.here():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        self._socket.bind(("b0", _ALL_PROTOCOLS))
        self._socket.settimeout(0.2)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(TimeoutError):
                self.frames.append((time.time(), self._socket.recv(65535)))

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()


def test_a_capture_says_what_the_daemon_said(lab: Lab) -> None:
    lab.configure(DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()
    capture = Capture(lab)
    try:
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("closed after")
        # What is captured here is timed a little later than the daemon saw it.
        time.sleep(0.5)
        lab.knock(BASTION6, *KNOCKS)
        daemon.wait_for("closed after", count=2)
        time.sleep(0.5)
        lab.knock(BASTION4, "-I", STRANGER4, *KNOCKS[:2])
        daemon.wait_for("sequence timeout (stage 2)")
        # The seconds of the two clocks begin at different moments: the capture is to go on beyond the next.
        time.sleep(1)
        lab.knock(BASTION4, "9:udp")
    finally:
        capture.stop()
    path = lab.directory / "knocks.pcap"
    path.write_bytes(pcap(capture.frames, link_type=ETHERNET))
    done = lab.nfknock("simulate", str(path))
    assert done.stdout.splitlines() == daemon.lines[1:]
    assert done.stderr == ""

"""What the daemon may do: no more than it needs, which is two capabilities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import BASTION4, CLIENT4, NFKNOCK, Daemon, Lab
from tests.setting import with_every_reader

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
TWO = "-all,+net_admin,+net_raw"
# CAP_NET_ADMIN and CAP_NET_RAW (linux/capability.h).
_BITS = 1 << 12 | 1 << 13


@with_every_reader
def test_two_capabilities_are_all_that_the_daemon_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are root's here, and so is the daemon; whoever else runs it owns them."""
    lab.serve(22)
    lab.configure(DOOR)
    lab.nfknock("apply")
    bounded = ["setpriv", f"--bounding-set={TWO}", f"--inh-caps={TWO}", "--no-new-privs", *NFKNOCK]
    monkeypatch.setattr("tests.lab.NFKNOCK", bounded)
    with Daemon(lab.bastion) as daemon:
        lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
        has = {name: text for name, text in (line.split(":\t", 1) for line in lines) if name.startswith("Cap")}
        assert {int(has[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {_BITS}
        lab.knock(BASTION4, "7101", "8203:udp", "9307")
        daemon.wait_for(f"{CLIENT4}: ssh: opened")
        assert lab.reaches(BASTION4, 22)


def test_what_the_daemon_keeps_is_its_own_user_s(lab: Lab) -> None:
    """Also where somebody runs it without a umask."""
    lab.configure(DOOR + 'start_command = ["true"]\nstop_command = ["true"]\n')
    before = os.umask(0)
    try:
        lab.nfknock("apply")
        daemon = lab.daemon()
    finally:
        os.umask(before)
    lab.knock(BASTION4, "7101", "8203:udp", "9307")
    daemon.wait_for(f"{CLIENT4}: ssh: opened")
    kept = [path for name in ("run", "state") for path in (lab.directory / name).rglob("*")]
    assert kept
    assert [path for path in kept if path.stat().st_mode & 0o077] == []

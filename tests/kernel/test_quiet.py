"""From the last knock to the hole nothing is run and no file is opened, but the lock."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nfknock.readers import owners
from tests.lab import BASTION4, CLIENT4, STRANGER4, Lab, wait_until
from tests.setting import with_every_reader

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
CALLS = "execve,execveat,open,openat,openat2,creat,fork,vfork,clone,clone3"
_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_OPENED = re.compile(r'"([^"]*)"')
# What makes a thread, which is none of ours to count, and not a process.
_THREAD = "CLONE_THREAD"


@with_every_reader
def test_nothing_is_run_from_the_last_knock_to_the_hole(lab: Lab) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed; script/bootstrap installs it")
    lab.serve(22)
    lab.configure(DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()
    # The first hole of a door makes its set in nf_tables, by libnftables, which reads names of its own in /etc then.
    lab.knock(BASTION4, "-I", STRANGER4, "7101", "8203:udp", "9307")
    daemon.wait_for(f"{STRANGER4}: ssh: opened")
    trace = lab.directory / "trace"
    lab.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for(f"{CLIENT4}: ssh: Stage 2")
    tracing = subprocess.Popen(
        [strace, "-f", "-p", str(daemon.process.pid), "-e", f"trace={CALLS}", "-o", str(trace)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until_attached(tracing, daemon.process.pid)
        lab.knock(BASTION4, "9307")
        daemon.wait_for(f"{CLIENT4}: ssh: opened")
    finally:
        tracing.terminate()
        tracing.communicate(timeout=20)
    calls = [match.groups() for match in map(_CALL.match, trace.read_text().splitlines()) if match]
    opened = {_OPENED.findall(rest)[0] for name, rest in calls if name.startswith(("open", "creat"))}
    # These are questions to the kernel: how many packets it had to drop, once a second, and whether it has nf_tables.
    opened -= {*map(str, owners.TABLES.values()), "/proc/modules"}
    # nf_tables has no lock.
    assert opened == (set() if lab.setting.backend == "nftables" else {lab.environment["XTABLES_LOCKFILE"]})
    assert [call for call in calls if call[0].startswith("exec")] == []
    assert [call for call in calls if call[0] in ("fork", "vfork", "clone", "clone3") and _THREAD not in call[1]] == []


def _wait_until_attached(tracing: subprocess.Popen[str], pid: int) -> None:
    """Wait until every thread is traced; skip where nobody may trace."""

    def is_attached() -> bool:
        return tracing.poll() is not None or all(
            f"TracerPid:\t{tracing.pid}" in (task / "status").read_text()
            for task in Path(f"/proc/{pid}/task").iterdir()
        )

    wait_until(is_attached, "strace to be attached")
    if tracing.poll() is not None:
        assert tracing.stderr is not None
        pytest.skip(f"processes cannot be traced here: {tracing.stderr.read().strip()}")

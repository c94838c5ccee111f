"""`[daemon] user`: root starts the daemon, and from then on it is somebody else with two capabilities."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import nfknock
from tests.kernel.test_reader_apart import fields, readers
from tests.lab import BASTION4, CLIENT4, Lab
from tests.setting import Setting

pytestmark = pytest.mark.root
USER = "nobody"
CONFIG = f"""
daemon.user = "{USER}"
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
start_command = ["sh", "-c", "id -un; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"]
"""
KNOCKS = ("7101", "8203:udp", "9307")
# CAP_NET_ADMIN and CAP_NET_RAW.
BOTH = f"{1 << 12 | 1 << 13:016x}"


@pytest.fixture
def host(kernel: None, setting: Setting) -> Iterator[Lab]:
    """A bastion whose files another user can get at: pytest keeps its own directories for whoever runs it."""
    with tempfile.TemporaryDirectory(prefix="nfknock-") as place:
        Path(place).chmod(0o711)
        made = Lab(Path(place), setting)
        made.configure(CONFIG)
        os.chown(made.config, 0, pwd.getpwnam(USER).pw_gid)
        made.config.chmod(0o640)
        made.nfknock("apply")
        yield made
        made.stop()


def test_the_daemon_is_that_user_with_two_capabilities(host: Lab) -> None:
    daemon = host.daemon()
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    expected = str(pwd.getpwnam(USER).pw_uid)
    assert set(fields["Uid"].split()) == {expected}
    assert [fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs")] == [BOTH] * 4 + ["1"]
    host.serve(22)
    host.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    assert host.reaches(BASTION4, 22)
    daemon.wait_for(f"command says: {USER}")
    daemon.wait_for(BOTH, count=2)


def test_what_reads_for_it_has_not_even_those(host: Lab) -> None:
    """With NFLOG; and the daemon, and what it starts for a door, have lost nothing by it."""
    host.configure(Setting(reader="nflog").put_into(CONFIG))
    host.config.chmod(0o640)
    host.nfknock("apply")
    daemon = host.daemon()
    expected = str(pwd.getpwnam(USER).pw_uid)
    reading = readers(daemon)
    assert len(reading) == 2
    for pid in reading:
        has = fields(pid)
        assert set(has["Uid"].split()) == {expected}
        assert {int(has[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    host.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    daemon.wait_for(f"command says: {USER}")
    daemon.wait_for(BOTH, count=2)
    assert fields(daemon.process.pid)["CapAmb"] == BOTH


def test_root_goes_on_beside_it(host: Lab) -> None:
    daemon = host.daemon()
    host.nfknock("open", "ssh", CLIENT4)
    host.nfknock("close", "--all")
    host.nfknock("apply")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    assert '"running": true' in host.nfknock("status", "--json").stdout
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    # And a second one finds what the first one left.
    host.daemon()


def test_a_file_that_the_user_cannot_read_is_said_at_once(host: Lab) -> None:
    host.config.chmod(0o600)
    done = host.nfknock("run", check=False)
    assert done.returncode == 2
    assert done.stderr == f"nfknock: the configuration file {host.config} cannot be read: permission denied\n"


def test_a_user_that_does_not_exist(lab: Lab) -> None:
    lab.configure(CONFIG.replace(USER, "nobody-of-that-name"))
    lab.nfknock("apply")
    done = lab.nfknock("run", check=False)
    assert done.returncode == 2
    assert "daemon.user: there is no user 'nobody-of-that-name' on this host; run: useradd" in done.stderr


def test_another_user_needs_a_restart(lab: Lab) -> None:
    lab.configure(CONFIG.replace(f'daemon.user = "{USER}"', ""))
    lab.nfknock("apply")
    daemon = lab.daemon()
    lab.configure(CONFIG)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("another user needs a restart")
    assert daemon.process.poll() is None


def test_who_cannot_read_the_program_is_told_so(host: Lab, tmp_path: Path) -> None:
    """As after an installation below /root."""
    place = tmp_path / "hidden"
    shutil.copytree(Path(nfknock.__file__).parent, place / "nfknock")
    place.chmod(0o700)
    done = host.bastion.run(
        "env",
        "--chdir=/",
        f"PYTHONPATH={place}",
        sys.executable,
        "-m",
        "nfknock",
        "-c",
        str(host.config),
        "run",
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"nfknock: daemon.user: {USER} cannot read nfknock itself, in {place}/nfknock\n",
    )

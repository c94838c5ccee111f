"""The numbers of a sequence are in the configuration, in the kernel's rules, and nowhere that others read."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

from tests.lab import BASTION4, NFKNOCK, Lab
from tests.setting import with_every_reader

SECRETS = ("61387", "52093", "47911", "41771", "38653", "58477", "60013")
DOORS = """
[firewall]
repair = false
[guard]
knocks_a_second = 100
[doors.ssh]
sequence = ["61387", "52093/udp", "47911"]
open = ["22/tcp"]
close_sequence = ["47911", "52093/udp", "60013"]
start_command = ["true", "%IP%"]
[doors.once]
one_time_sequences = "once.ots"
open = ["23/tcp"]
"""
ONCE = " 41771,38653:udp,58477\n 58477,38653:udp,41771\n"
BROKEN = (
    DOORS.replace("52093/udp", "52093/upd"),
    DOORS.replace("47911", "479110"),
    DOORS.replace('"61387"', "61387.5"),
    DOORS.replace('["61387", "52093/udp", "47911"]', '["61387" "52093/udp"]'),
    DOORS.replace('["61387", "52093/udp", "47911"]', '"61387,52093:udp,47911"'),
    DOORS.replace('"22/tcp"', '"61387/tcp"').replace('["61387", "52093', '["61387/xxx", "52093'),
    DOORS.replace('["47911", "52093/udp", "60013"]', '["52093/udp", "47911"]'),
    "[ssh]\nsequence = 61387,52093:upd\n[knockd]\n",
    "[ssh]\nsequence = 479110,52093:udp\ntcpflags = syn\n",
)
UNWISE = (
    DOORS.replace('"22/tcp"', '"22/tcp", "47911/tcp"').replace('"23/tcp"', '"23/tcp", "61387/tcp"'),
    DOORS + '[doors.pair]\nsequence = ["61387", "52093/udp"]\nopen = ["24/tcp"]\n',
)


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def everything_that_runs(pid: int) -> str:
    """Return the arguments and the environment of a process and of its threads."""
    files = [Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ", "comm")]
    files += Path(f"/proc/{pid}/task").glob("*/comm")
    return "\n".join(file.read_text() for file in files)


@with_every_reader
def test_the_daemon_and_what_asks_it_never_tell(lab: Lab) -> None:
    (lab.directory / "once.ots").write_text(ONCE)
    lab.configure(DOORS)
    lab.nfknock("apply")
    NFKNOCK.append("-v")
    try:
        daemon = lab.daemon()
    finally:
        NFKNOCK.remove("-v")
    lab.knock(BASTION4, "61387", "52093:udp", "47911")
    daemon.wait_for("ssh: opened")
    lab.knock(BASTION4, "41771", "38653:udp", "58477")
    daemon.wait_for("once: opened")
    lab.knock(BASTION4, "61387", "58477")
    lab.knock(BASTION4, "47911", "52093:udp", "60013")
    daemon.wait_for("ssh: closed after")
    said = everything_that_runs(daemon.process.pid)
    for command in (["status"], ["status", "--json"], ["doctor"], ["check"], ["-v", "check"], ["apply"]):
        done = lab.nfknock(*command)
        said += done.stdout + done.stderr
    for count, text in enumerate(BROKEN, 1):
        lab.config.write_text(text)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("the new configuration was refused", count=count)
    lab.configure(DOORS)
    lab.bastion.run("iptables-legacy", "-F", "NFKNOCK_KNOCKS", check=False)
    for command in (["status"], ["status", "--json"], ["doctor"]):
        done = lab.nfknock(*command, check=False)
        said += done.stdout + done.stderr
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    assert told(said) == []
    assert told("\n".join(daemon.lines)) == []


def test_errors_and_warnings_never_tell(lab: Lab) -> None:
    (lab.directory / "once.ots").write_text(ONCE)
    for text in (*BROKEN, *UNWISE):
        lab.config.write_text(text)
        for arguments in (["check"], ["-v", "check"], ["status"], ["doctor"], ["run"], ["-v", "run"]):
            done = lab.nfknock(*arguments, check=False)
            assert told(done.stdout + done.stderr) == [], (arguments, text)


def test_a_crash_does_not_tell(lab: Lab) -> None:
    """What has no name of its own is one line; with -v it is a traceback, which has lines of code and no values."""
    lab.configure(DOORS.replace('one_time_sequences = "once.ots"', 'sequence = ["41771", "38653/udp"]'))
    lab.nfknock("apply")
    crash = (
        "import sys; from nfknock.core import tracker; from nfknock.cli import app\n"
        "def crash(*_): raise LookupError('a fault of ours')\n"
        "tracker.Tracker.__init__ = crash\n"
        "sys.exit(app.main())"
    )
    done = lab.bastion.run(sys.executable, "-c", crash, "-v", "run", check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert re.search("this should not happen: LookupError: a fault of ours", done.stderr)
    assert told(done.stderr) == []

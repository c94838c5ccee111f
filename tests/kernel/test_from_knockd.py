"""The two files of the tutorials that everybody copies, and Debian's `knock`, without an edit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Lab, wait_until

PAIR = """\
[options]
\tUseSyslog

[openSSH]
\tsequence    = 7000,8000,9000
\tseq_timeout = 5
\tcommand     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
\ttcpflags    = syn

[closeSSH]
\tsequence    = 9000,8000,7000
\tseq_timeout = 5
\tcommand     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
\ttcpflags    = syn
"""

START_STOP = """\
[options]
\tlogfile = {log}

[opencloseSSH]
\tsequence      = 2222:udp,3333:tcp,4444:udp
\tseq_timeout   = 15
\ttcpflags      = syn,ack
\tstart_command = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
\tcmd_timeout   = 5
\tstop_command  = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
"""

FAMILIES = pytest.mark.parametrize(("bastion", "client"), [(BASTION4, CLIENT4), (BASTION6, CLIENT6)])


@pytest.fixture(params=["imported", "as it is"])
def take_up(request: pytest.FixtureRequest, lab: Lab) -> object:
    """Have the bastion use a knockd.conf, by way of `nfknock import` or directly, and return the report."""

    def take(text: str) -> str:
        path = lab.directory / "knockd.conf"
        path.write_text(text)
        path.chmod(0o600)
        if request.param == "imported":
            report = lab.nfknock("import", str(path), "-o", str(lab.config)).stderr
            tomllib.loads(lab.config.read_text())
        else:
            lab.bastion.environment["NFKNOCK_CONFIG"] = str(path)
            report = ""
        report += lab.nfknock("check").stderr
        assert "fine, 1 door" in lab.nfknock("check").stdout
        lab.serve(22)
        lab.nfknock("apply")
        return report

    return take


def knock(lab: Lab, bastion: str, *ports: str) -> None:
    lab.client.run("knock", "-6" if ":" in bastion else "-4", bastion, *ports)


@FAMILIES
def test_the_open_and_close_pair(lab: Lab, take_up: object, bastion: str, client: str) -> None:
    assert callable(take_up)
    report = take_up(PAIR)
    assert "sequence: everybody knows this one" in report
    assert ":7: changed: command: becomes open = " in report
    assert ":10: changed: [closeSSH] becomes the close_sequence of doors.openSSH" in report
    lab.daemon()
    assert lab.is_shut(bastion, 22)
    knock(lab, bastion, "7000", "8000", "9000")
    # Its lines go to syslog, as the file wants it, where there is one.
    wait_until(lambda: "nfknock hole openSSH" in lab.rules(), "the hole")
    assert lab.reaches(bastion, 22)
    knock(lab, bastion, "9000", "8000", "7000")
    wait_until(lambda: "nfknock hole" not in lab.rules(), "the hole to be gone")
    assert lab.is_shut(bastion, 22)


@FAMILIES
def test_the_door_with_a_start_and_a_stop_command(lab: Lab, take_up: object, bastion: str, client: str) -> None:
    assert callable(take_up)
    log = lab.directory / "knockd.log"
    report = take_up(START_STOP.format(log=log))
    assert ":7: changed: tcpflags: syn,ack becomes" in report
    assert "which no ordinary client sends" in report
    lab.daemon()
    assert lab.is_shut(bastion, 22)
    knock(lab, bastion, "2222:udp", "3333:tcp", "4444:udp")
    wait_in(log, f"{client}: opencloseSSH: opened 22/tcp for 5 s")
    assert lab.reaches(bastion, 22)
    wait_in(log, f"{client}: opencloseSSH: closed after 5 s")
    assert lab.is_shut(bastion, 22)


def test_exactly_as_it_is_nobody_gets_in(lab: Lab) -> None:
    """As seen of knockd: a SYN does not satisfy `syn,ack`."""
    path = lab.directory / "knockd.conf"
    path.write_text(START_STOP.format(log=lab.directory / "knockd.log"))
    report = lab.nfknock("import", "--exact", str(path), "-o", str(lab.config)).stderr
    assert ":7: unwise: tcpflags: no ordinary client sends a packet with syn,ack" in report
    lab.nfknock("apply")
    lab.daemon()
    knock(lab, BASTION4, "2222:udp", "3333:tcp", "4444:udp")
    wait_in(lab.directory / "knockd.log", f"{CLIENT4}: opencloseSSH: Stage 1")
    assert "nfknock hole" not in lab.rules()


def wait_in(log: Path, text: str) -> None:
    wait_until(lambda: log.exists() and text in log.read_text(), f"{text!r} in {log}")

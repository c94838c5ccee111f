"""Every client that people knock with, against a firewall that drops."""

from __future__ import annotations

import shlex
import shutil

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, Lab

DOORS = """
[doors.tcp]
sequence = ["7101", "3203", "9307"]
seq_timeout = "20s"
open = ["22/tcp"]
[doors.udp]
sequence = ["7101/udp", "3203/udp", "9307/udp"]
seq_timeout = "20s"
open = ["22/tcp"]
"""

# Each as it is typed. Who waits for an answer is stopped after 1.3 s: its SYN has been repeated once by then.
CLIENTS = {
    "knock": "knock {host} 7101 3203 9307",
    "knock -u": "knock -u {host} 7101 3203 9307",
    "nfknock knock": "{nfknock} knock {host} 7101 3203 9307",
    "nfknock knock -u": "{nfknock} knock -u {host} 7101 3203 9307",
    "telnet": "for port in 7101 3203 9307; do timeout 1.3 telnet {host} $port; done",
    "nc -z": "for port in 7101 3203 9307; do nc -z -w 2 {host} $port; done",
    "nc -u": "for port in 7101 3203 9307; do echo | nc -u -w 1 {host} $port; done",
    # Without -v it sends nothing at all.
    "nc -vzu": "for port in 7101 3203 9307; do nc -vzu -w 1 {host} $port; done",
    "hping3 -S": "for port in 7101 3203 9307; do hping3 -q -S -c 1 -p $port {host}; done",
    "/dev/tcp": 'for port in 7101 3203 9307; do timeout 1.3 bash -c "echo >/dev/tcp/{host}/$port"; done',
    "/dev/udp": "for port in 7101 3203 9307; do echo >/dev/udp/{host}/$port; done",
}


# hping3 speaks IPv4 alone, and once is enough for a way of knocking that is slow.
TOO = ("knock", "knock -u", "nfknock knock", "nfknock knock -u", "telnet", "/dev/udp")
CASES = [(name, BASTION4, CLIENT4) for name in CLIENTS] + [(name, BASTION6, CLIENT6) for name in TOO]


@pytest.mark.parametrize(("name", "bastion", "client"), CASES)
def test_it_opens_a_door(lab: Lab, name: str, bastion: str, client: str) -> None:
    program = name.split(maxsplit=1)[0]
    assert program.startswith(("/dev", "nfknock")) or shutil.which(program), f"{program} is not installed"
    lab.serve(22)
    lab.configure(DOORS)
    lab.nfknock("apply")
    daemon = lab.daemon()
    assert lab.is_shut(bastion, 22)
    script = CLIENTS[name].format(host=bastion, nfknock=shlex.join(NFKNOCK))
    lab.client.run("bash", "-c", script, check=False)
    door = "udp" if "udp" in name or name.endswith("u") else "tcp"
    daemon.wait_for(f"{client}: {door}: OPEN SESAME")
    daemon.wait_for("opened 22/tcp")
    assert lab.reaches(bastion, 22)
    assert sum("OPEN SESAME" in line for line in daemon.lines) == 1

"""Another `backend`, then `apply`: holes and sessions come along, the daemon follows, nothing old is left."""

from __future__ import annotations

import itertools
import json

import pytest

from nfknock.backends import NAMES
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Lab, echo

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "60s"
[firewall]
backend = "{backend}"
[reader]
kind = "nflog"
"""
KNOCKS = ("7101:tcp", "8203:udp", "9307:tcp")
HOST_CHAIN = """
add table inet filter
add chain inet filter input { type filter hook input priority 0; policy drop; }
add rule inet filter input ct state established,related accept
add rule inet filter input meta l4proto ipv6-icmp accept
"""


def standing(lab: Lab) -> set[str]:
    """Which backends have anything in the bastion's kernel."""
    legacy = lab.rules()
    is_set = bool(lab.bastion.run("ipset", "list", "-n", check=False).stdout.strip())
    found = {"ipset" if is_set or "match-set" in legacy else "iptables"} if "NFKNOCK" in legacy else set()
    return found | ({"nftables"} if "nfknock" in lab.bastion.run("nft", "list", "ruleset").stdout else set())


def move(lab: Lab, backend: str) -> None:
    lab.configure(DOOR.format(backend=backend))
    lab.nfknock("apply")


def test_rules_that_are_flushed_are_put_back_where_the_sets_stand(lab: Lab) -> None:
    """The chains that are left look like those of another backend."""
    lab.serve(22)
    move(lab, "ipset")
    daemon = lab.daemon()
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    lab.bastion.run("iptables-legacy", "-F")
    daemon.wait_for("; put back, with ")
    assert lab.reaches(BASTION4, 22)
    assert json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["applied"]


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(NAMES, 2)))
def test_holes_sessions_and_the_daemon_come_along(lab: Lab, old: str, new: str) -> None:
    lab.serve(22)
    move(lab, old)
    daemon = lab.daemon()
    for bastion, client in ((BASTION4, CLIENT4), (BASTION6, CLIENT6)):
        lab.knock(bastion, *KNOCKS)
        daemon.wait_for(f"{client}: ssh: opened 22/tcp")
    session = lab.connect(BASTION4, 22)
    assert echo(session) == b"hello\n"
    before = json.loads(lab.nfknock("status", "--json").stdout)["holes"]

    move(lab, new)
    daemon.wait_for("reloaded")
    status = json.loads(lab.nfknock("status", "--json").stdout)
    assert (status["firewall"]["backend"], status["firewall"]["applied"]) == (new, True)
    times = [{key: hole[key] for key in ("source", "opened_at", "closes_at")} for hole in status["holes"]]
    assert times == [{key: hole[key] for key in ("source", "opened_at", "closes_at")} for hole in before]
    assert standing(lab) == {new}
    assert lab.reaches(BASTION4, 22)
    assert lab.reaches(BASTION6, 22)
    assert echo(session) == b"hello\n"

    lab.nfknock("close", "--all")
    assert lab.is_shut(BASTION4, 22)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp", count=2)
    assert lab.reaches(BASTION4, 22)
    assert not any("changed by somebody else" in line for line in daemon.lines)


def test_auto_moves_where_the_host_drops_and_the_daemon_follows(lab: Lab) -> None:
    lab.serve(22)
    move(lab, "auto")
    assert standing(lab) == {"iptables"}
    daemon = lab.daemon()
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    for command in HOST_CHAIN.strip().splitlines():
        lab.bastion.run("nft", command)
    host = lab.bastion.run("nft", "list", "ruleset").stdout
    assert lab.is_shut(BASTION4, 22)
    applied = lab.nfknock("apply")
    assert "the backend is nftables: the host's nf_tables ruleset (chain inet filter input) drops" in applied.stderr
    daemon.wait_for("reloaded")
    assert standing(lab) == {"nftables"}
    assert lab.reaches(BASTION4, 22)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for(f"{CLIENT6}: ssh: opened 22/tcp")
    assert lab.reaches(BASTION6, 22)
    lab.nfknock("remove")
    assert lab.bastion.run("nft", "list", "ruleset").stdout == host


def test_a_daemon_does_not_move_by_itself(lab: Lab) -> None:
    move(lab, "iptables")
    lab.configure(DOOR.format(backend="nftables"))
    ended = lab.nfknock("run", check=False)
    assert ended.returncode == 1
    assert "run `nfknock apply`" in ended.stderr
    assert standing(lab) == {"iptables"}


def test_a_trial_of_another_backend_goes_back(lab: Lab) -> None:
    lab.serve(22)
    move(lab, "iptables")
    daemon = lab.daemon()
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    before = lab.rules()
    lab.configure(DOOR.format(backend="nftables"))
    ended = lab.nfknock("apply", "--confirm", "2", check=False)
    assert ended.returncode == 1
    assert lab.rules() == before
    assert standing(lab) == {"iptables"}
    assert lab.reaches(BASTION4, 22)

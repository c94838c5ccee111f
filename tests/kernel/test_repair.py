"""Somebody else flushes, deletes and reloads: nfknock's part comes back, or it is said that it is gone."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Daemon, Lab, wait_until
from tests.setting import CHOSEN, only_for
from tests.vandal import has_rule_of_others, kinds, own_rules, vandalise

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp"]
open = ["22/tcp"]
open_timeout = "60s"
"""


def ready(lab: Lab, more: str = "") -> Daemon:
    lab.serve(22)
    lab.configure(DOOR + more)
    lab.nfknock("apply")
    daemon = lab.daemon()
    for bastion in (BASTION4, BASTION6):
        lab.knock(bastion, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp", count=2)
    return daemon


def firewall(lab: Lab) -> dict[str, Any]:
    return dict(json.loads(lab.nfknock("status", "--json").stdout)["firewall"])


ANY = kinds(
    "flush",
    "one family",
    "flush and delete",
    "the jump",
    "the policy",
    "one rule",
    "another rule",
    "another hole",
    "another ruleset",
)


@pytest.mark.parametrize("kind", ANY)
def test_it_is_back_within_five_seconds_open_holes_included(lab: Lab, kind: str) -> None:
    daemon = ready(lab)
    before = own_rules(lab)
    daemon.signal(signal.SIGSTOP)  # or it may be put back before anybody looks
    vandalise(lab, kind)
    assert own_rules(lab) != before
    assert not firewall(lab)["applied"]
    daemon.signal(signal.SIGCONT)
    wait_until(lambda: own_rules(lab) == before, "the rules to be back")
    daemon.wait_for("the firewall was changed by somebody else: ")
    for bastion in (BASTION4, BASTION6):
        assert lab.reaches(bastion, 22)
    assert firewall(lab)["applied"]
    if kind == "another ruleset":
        assert has_rule_of_others(lab), "what the others loaded stays"


@pytest.mark.parametrize(
    ("backend", "flushes"),
    [
        ("ipset", ["iptables-legacy -F NFKNOCK_HOLES", "ip6tables-legacy -F NFKNOCK_HOLES"]),
        ("nftables", ["nft flush chain inet nfknock holes"]),
    ],
)
def test_the_rules_that_look_at_sets_come_back(lab: Lab, backend: str, flushes: list[str]) -> None:
    daemon = ready(lab, f'[firewall]\nbackend = "{backend}"\n[reader]\nkind = "nflog"\n')
    for flush in flushes:
        lab.bastion.run(*flush.split())
    daemon.wait_for("; put back, with ")
    for bastion in (BASTION4, BASTION6):
        assert lab.reaches(bastion, 22)


def test_a_knock_repairs_what_it_needs(lab: Lab) -> None:
    daemon = ready(lab)
    lab.nfknock("close", "--all")
    # Nobody has looked yet when the knock comes.
    vandalise(lab, "the policy")
    lab.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp", count=3)
    assert firewall(lab)["policy"]["ipv4"] == "DROP"


@pytest.mark.parametrize("kind", ["flush", "the policy", "another ruleset"])
def test_what_was_shut_by_hand_does_not_come_back(lab: Lab, kind: str) -> None:
    daemon = ready(lab)
    lab.nfknock("close", "--all")
    vandalise(lab, kind)
    daemon.wait_for("; put back, with 0 holes")
    assert "nfknock hole" not in lab.rules()


@pytest.mark.parametrize("kind", ["flush", "the policy", "one rule"])
def test_without_repair_it_is_said_once_and_shown(lab: Lab, kind: str) -> None:
    daemon = ready(lab, "[firewall]\nrepair = false\n")
    assert firewall(lab) == {"backend": CHOSEN.backend, "applied": True, "policy": {"ipv4": "DROP", "ipv6": "DROP"}}
    vandalise(lab, kind)
    damaged = lab.rules()
    daemon.wait_for("the firewall was changed by somebody else, and stays so: ")
    report = firewall(lab)
    assert not report["applied"]
    assert any(line.startswith("+ ") for line in report["difference"])
    assert "NOT in place" in lab.nfknock("status").stdout
    wait_until(lambda: lab.rules() == damaged, "the damage to stay")
    assert sum("stays so" in line for line in daemon.lines) == 1
    lab.nfknock("apply")
    assert firewall(lab)["applied"]


def test_what_was_removed_on_purpose_stays_out(lab: Lab) -> None:
    daemon = ready(lab)
    lab.nfknock("remove")
    daemon.wait_for("the firewall was changed by somebody else, and stays so: ")
    assert own_rules(lab) == []
    assert not firewall(lab)["applied"]
    lab.nfknock("apply")
    lab.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp", count=3)
    # It may have looked while `apply` had written one family and not the other.
    before = sum("; put back, with " in line for line in daemon.lines)
    vandalise(lab, "flush")
    daemon.wait_for("; put back, with ", count=before + 1)
    assert lab.reaches(BASTION4, 22)


def test_an_apply_of_another_configuration_is_no_damage(lab: Lab) -> None:
    daemon = ready(lab)
    lab.configure(DOOR.replace("7101", "7102"))
    lab.nfknock("apply")
    changed = lab.rules()
    lab.bastion.run("sleep", "3")
    assert lab.rules() == changed
    assert not any("somebody else" in line for line in daemon.lines)


@only_for("iptables")
def test_what_nobody_owns_is_shut_at_the_start(lab: Lab) -> None:
    daemon = ready(lab, '[doors.web]\nsequence = ["6101", "6203/udp"]\nopen = ["80/tcp"]\nopen_timeout = 0\n')
    lab.knock(BASTION4, "6101", "6203:udp")
    daemon.wait_for("opened 80/tcp")
    daemon.process.kill()
    daemon.process.wait()
    edited = [line for line in lab.bastion.run("iptables-legacy", "-S").stdout.splitlines() if " hole ssh " in line]
    [rule] = [line.split(" ", 1)[1] for line in edited]
    # Somebody made a hole wider, put it in twice, and put a rule of their own among the holes.
    shell = f"iptables-legacy -A {rule.replace(CLIENT4 + '/32', '192.0.2.0/24')}"
    lab.bastion.run("sh", "-c", shell)
    lab.bastion.run("sh", "-c", f"iptables-legacy -A {rule}")
    lab.bastion.run("iptables-legacy", "-A", "NFKNOCK_HOLES", "-p", "tcp", "--dport", "23", "-j", "ACCEPT")
    lab.configure(DOOR)
    with Daemon(lab.bastion) as heir:
        said = "\n".join(heir.lines)
        assert f"{CLIENT4}: web: closed: there is no such door any more" in said
        assert "192.0.2.0: ssh: closed: its rule was edited" in said
        assert f"{CLIENT4}: ssh: closed: its rule stood twice" in said
        assert "ipv4: a rule in NFKNOCK_HOLES that is no hole was taken out" in said
        assert "adopted 2 open holes" in said
    holes = [line for line in lab.rules().splitlines() if line.startswith("-A NFKNOCK_HOLES")]
    assert len(holes) == 2
    assert CLIENT4 in holes[0]
    assert CLIENT6 in holes[1]


def test_a_reload_shuts_what_no_door_opens_any_more(lab: Lab) -> None:
    daemon = ready(lab)
    back = '[doors.back]\nsequence = ["5101", "5203/udp"]\nopen = ["22/tcp"]\n'
    lab.configure(DOOR.replace('"22/tcp"', '"2222/tcp"') + back)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(f"{CLIENT4}: ssh: closed: the door does not open that any more")
    daemon.wait_for("reloaded")
    assert "nfknock hole" not in lab.rules()

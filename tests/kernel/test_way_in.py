"""What was never applied does not take the way in away: not by `apply`, a boot, a start of the daemon, or a reload."""

from __future__ import annotations

import signal

import pytest

from tests.kernel.test_or_last import KNOCKS, reboot
from tests.kernel.test_refusals import UNCHANGED, over_ssh, rulesets
from tests.lab import BASTION4, CLIENT4, STRANGER4, Daemon, Lab

SSH = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
"""
# The same knocks: the firewall's rules stay as they are.
WEB = SSH.replace("22/tcp", "443/tcp")
# Other knocks: the rules change.
OTHER_WEB = WEB.replace("7101", "7102")
ALLOWED = f'[firewall]\nallow = [{{ open = "22/tcp", from = "{CLIENT4}" }}]\n{WEB}'
ALLOWED_ELSEWHERE = ALLOWED.replace(CLIENT4, STRANGER4)
LOST = f"shuts 22/tcp to {CLIENT4}, from where the last one was applied, and was never applied; run `nfknock apply"


@pytest.mark.parametrize("other", [WEB, OTHER_WEB])
def test_apply_refuses_it_whatever_the_rules_are_now(lab: Lab, other: str) -> None:
    """The hole that one came in by has ended, or the rules are the same."""
    lab.configure(SSH)
    assert over_ssh(lab, "apply").returncode == 0
    lab.configure(other)
    before = rulesets(lab)
    done = over_ssh(lab, "apply")
    assert done.returncode == 1
    assert f"refused: this shuts 22/tcp to {CLIENT4}" in done.stderr
    assert done.stderr.splitlines()[-1] == UNCHANGED
    assert rulesets(lab) == before
    assert over_ssh(lab, "apply", "--force").returncode == 0
    # Then it is what was wished.
    assert over_ssh(lab, "apply").stdout == "unchanged\n"


def nobody_applies(_lab: Lab) -> None:
    """Write it, and be killed."""


def refused(lab: Lab) -> None:
    assert over_ssh(lab, "apply", "--confirm", "60").returncode == 1


@pytest.mark.parametrize("what", [nobody_applies, refused])
@pytest.mark.parametrize(("before", "after"), [(SSH, WEB), (ALLOWED, ALLOWED_ELSEWHERE)])
def test_a_boot_takes_the_last_one_instead(lab: Lab, what: object, before: str, after: str) -> None:
    lab.configure(before)
    over_ssh(lab, "apply")
    stands = lab.rules()
    lab.configure(after)
    assert callable(what)
    what(lab)
    reboot(lab)
    done = lab.nfknock("apply", "--or-last")
    assert "the last configuration that was applied counts" in done.stderr
    assert lab.rules() == stands
    if what is nobody_applies:
        assert LOST in done.stderr


def test_so_does_a_daemon_that_is_started(lab: Lab) -> None:
    lab.serve(22)
    lab.configure(SSH)
    over_ssh(lab, "apply")
    lab.configure(WEB)
    done = lab.nfknock("run", check=False)
    assert done.returncode == 2
    assert LOST in done.stderr
    with Daemon(lab.bastion, "--or-last") as daemon:
        daemon.wait_for(LOST)
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("opened 22/tcp")
        assert lab.reaches(BASTION4, 22)


def test_a_reload_keeps_the_old_one_until_the_other_is_applied(lab: Lab) -> None:
    """Nobody is known to have come over SSH: then it is port 22, and anybody."""
    lab.configure(SSH)
    lab.nfknock("apply")
    before = lab.rules()
    daemon = lab.daemon()
    lab.configure(OTHER_WEB)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("the new configuration was refused and the old one stays: ")
    assert any("shuts 22/tcp to everybody, and was never applied; run `nfknock apply" in line for line in daemon.lines)
    assert lab.rules() == before
    # On trial somebody is asked, and what nobody confirms goes back.
    lab.nfknock("apply", "--confirm", "60", "--no-wait")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    lab.nfknock("confirm")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded", count=2)


def test_a_first_configuration_that_was_refused_counts_at_no_boot(bare: Lab) -> None:
    bare.serve(22)
    bare.configure(WEB)
    refused(bare)
    reboot(bare)
    done = bare.nfknock("apply", "--or-last", check=False)
    assert done.returncode == 2
    assert "was refused, or taken back since nobody confirmed it" in done.stderr
    assert bare.reaches(BASTION4, 22)


def test_a_refusal_speaks_not_against_what_counts(lab: Lab) -> None:
    lab.configure(WEB)
    lab.nfknock("apply")
    assert over_ssh(lab, "apply", "--confirm", "60", "--force").stdout == "unchanged\n"
    assert lab.nfknock("apply").stdout == "unchanged\n"


def test_what_takes_nothing_away_counts_at_a_reload(lab: Lab) -> None:
    lab.configure(SSH)
    over_ssh(lab, "apply")
    daemon = lab.daemon()
    lab.configure(ALLOWED)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")

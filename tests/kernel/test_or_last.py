"""A boot with a wrong configuration: the last one that was applied counts, for the firewall and for the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import BASTION4, NFKNOCK, Daemon, Lab
from tests.setting import only_for

GOOD = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
"""
OTHER = GOOD.replace("7101", "7102")
KNOCKS = ("7101", "8203:udp", "9307")


def reboot(lab: Lab) -> None:
    """Forget what a kernel forgets."""
    if lab.setting.backend == "nftables":
        lab.bastion.run("nft", "flush", "ruleset")
        return
    for command in ("iptables-legacy", "ip6tables-legacy"):
        for arguments in ("-P INPUT ACCEPT", "-F", "-X"):
            lab.bastion.run(command, *arguments.split())


def never_confirmed(lab: Lab) -> None:
    lab.configure(OTHER)
    lab.nfknock("apply", "--confirm", "1", check=False)


WRONG = {
    "a key that nobody knows": lambda lab: lab.configure("[doors.ssh]\nopn = 1\n"),
    "no file at all": lambda lab: lab.config.unlink(),
    "taken back, as nobody confirmed": never_confirmed,
}


@pytest.mark.parametrize("what", WRONG)
def test_the_last_one_that_was_applied_counts(lab: Lab, what: str) -> None:
    lab.serve(22)
    lab.configure(GOOD)
    lab.nfknock("apply")
    stands = lab.rules()
    WRONG[what](lab)
    reboot(lab)
    assert lab.nfknock("apply", check=False).returncode == 2
    done = lab.nfknock("apply", "--or-last")
    assert "; the last configuration that was applied counts" in done.stderr
    assert lab.rules() == stands
    with Daemon(lab.bastion, "--or-last") as daemon:
        lab.knock(BASTION4, *KNOCKS)
        daemon.wait_for("opened 22/tcp")
        assert lab.reaches(BASTION4, 22)
        assert daemon.process.poll() is None


def test_without_a_last_one_it_is_an_error(lab: Lab) -> None:
    lab.configure("[doors.ssh]\nopn = 1\n")
    for command in ("apply", "run"):
        done = lab.bastion.run(*NFKNOCK, command, "--or-last", check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"nfknock: {lab.config}: doors.ssh.opn: unknown key")


def test_a_right_configuration_is_what_is_applied(lab: Lab) -> None:
    lab.configure(GOOD)
    lab.nfknock("apply")
    lab.configure(OTHER)
    assert lab.nfknock("apply", "--or-last").stdout == "changed\n"
    assert "7102" in lab.rules()


@only_for("iptables", "ipset")
def test_what_cannot_be_applied_gives_way_too(lab: Lab) -> None:
    """As where an upgrade has taken a library away, or a new kernel lacks what the configuration needs."""
    [library] = Path("/usr/lib").glob("*/libnftables.so.1")
    lab.configure(GOOD)
    lab.nfknock("apply")
    stands = lab.rules()
    lab.config.write_text(f'[reader]\nkind = "nflog"\n[firewall]\nbackend = "nftables"\n{OTHER}')
    reboot(lab)
    hidden = f"mount --bind /dev/null {library} && exec {NFKNOCK[0]} apply"
    assert lab.bastion.run("unshare", "--mount", "sh", "-c", hidden, check=False).returncode == 1
    done = lab.bastion.run("unshare", "--mount", "sh", "-c", f"{hidden} --or-last")
    assert "; the last configuration that was applied counts" in done.stderr
    assert lab.rules() == stands


def test_what_was_taken_out_stays_out_until_it_is_applied(lab: Lab) -> None:
    """A start of the daemon wants the firewall to be in place, whoever took it out for a reason."""
    lab.configure(GOOD)
    lab.nfknock("apply")
    lab.nfknock("remove")
    without = lab.rules()
    done = lab.nfknock("apply", "--or-last", check=False)
    assert done.returncode == 1
    assert done.stderr == "nfknock: the firewall was taken out, and stays out; `nfknock apply` puts it back\n"
    assert lab.rules() == without
    lab.nfknock("apply")
    assert lab.nfknock("apply", "--or-last").stdout == "unchanged\n"

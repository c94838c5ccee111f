"""`nfknock remove` is the way out when somebody is locked out: it works whatever the configuration is."""

from __future__ import annotations

import pytest

from tests.lab import Lab

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
HOSTS_OWN = "table inet own { chain input { type filter hook input priority 0; policy drop; }; }"
# Not every kernel's nf_tables has a queue.
ATTACHED = f'[reader]\nkind = "nflog"\n[firewall]\nbackend = "nftables"\nattach = "inet own input"\n{DOOR}'
WRONG = {
    "no TOML": "[doors.ssh",
    "a key that nobody knows": "[doors.ssh]\nopn = 1\n",
    "no door": "",
}


@pytest.mark.parametrize("what", WRONG)
def test_with_a_configuration_that_is_wrong(lab: Lab, what: str) -> None:
    lab.configure(DOOR)
    lab.nfknock("apply")
    lab.nfknock("remove")  # so that there are tables to be compared
    before = lab.rules()
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", "192.0.2.2")
    lab.config.write_text(WRONG[what])
    done = lab.nfknock("remove")
    assert done.stdout.endswith("changed\n")
    assert "; whatever of nfknock's stands is taken out" in done.stderr
    assert lab.rules() == before


def test_out_of_a_chain_that_only_the_configuration_named(lab: Lab) -> None:
    lab.bastion.run("nft", HOSTS_OWN)
    before = lab.rules()
    lab.config.write_text(ATTACHED)
    lab.nfknock("apply")
    assert lab.rules() != before
    lab.config.write_text("[doors.ssh")
    lab.nfknock("remove")
    assert lab.rules() == before

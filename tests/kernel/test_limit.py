"""The limit on knocks of one source, which the kernel keeps before anybody reads them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from nfknock.core.model import Port
from nfknock.core.plan import KNOCKS_AT_ONCE
from tests.kernel.wire import Datagram, Wire
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, Daemon, Lab
from tests.setting import only_for, with_every_reader

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
LIMITED = DOOR + "[guard]\nknocks_a_second = 1\n"
KNOCKS = (Port(7101), Port(8203, "udp"), Port(9307))
MANY = 5 * KNOCKS_AT_ONCE
BASTIONS = {4: BASTION4, 6: BASTION6}
HONEST = {4: CLIENT4, 6: CLIENT6}
# Of IPv6 a whole net counts as one.
OF_ONE = {4: ["192.0.2.66"], 6: ["2001:db8:1::66", "2001:db8:1:0:ffff::67", "2001:db8:1::68"]}
OF_ANOTHER = {4: "192.0.2.67", 6: "2001:db8:1:1::66"}


def knocks(lab: Lab) -> int:
    return int(json.loads(lab.nfknock("status", "--json").stdout)["daemon"]["knocks"])


def ready(lab: Lab) -> Daemon:
    lab.serve(22)
    lab.configure(LIMITED)
    lab.nfknock("apply")
    return lab.daemon()


def opens(lab: Lab, daemon: Daemon, version: int) -> None:
    lab.knock(BASTIONS[version], "7101", "8203:udp", "9307")
    daemon.wait_for(f"{HONEST[version]}: ssh: opened")


@with_every_reader
@pytest.mark.parametrize("version", [4, 6])
def test_one_source_is_heard_so_often_and_the_others_are_heard(lab: Lab, version: int) -> None:
    daemon = ready(lab)
    began_at = time.monotonic()
    with Wire(lab) as wire:
        for number in range(MANY):
            source = OF_ONE[version][number % len(OF_ONE[version])]
            wire.send(Datagram(source=source, target=BASTIONS[version], port=KNOCKS[number % 3 // 2]).packet())
        for port in KNOCKS:
            wire.send(Datagram(source=OF_ANOTHER[version], target=BASTIONS[version], port=port).packet())
        daemon.wait_for(f"{OF_ANOTHER[version]}: ssh: opened")
        opens(lab, daemon, version)
    heard = knocks(lab) - 2 * len(KNOCKS)
    assert KNOCKS_AT_ONCE // 2 <= heard <= KNOCKS_AT_ONCE + time.monotonic() - began_at + 1
    assert heard < MANY


def test_who_was_limited_is_heard_again(lab: Lab) -> None:
    daemon = ready(lab)
    with Wire(lab) as wire:
        for _ in range(MANY):
            wire.send(Datagram(source=CLIENT4, target=BASTION4, port=KNOCKS[0]).packet())
        for port in KNOCKS[1:]:
            wire.send(Datagram(source=CLIENT4, target=BASTION4, port=port).packet())
    lab.knock(BASTION4, "8203:udp", "9307")
    assert not any("OPEN SESAME" in line for line in daemon.lines)
    time.sleep(3)  # the kernel forgets who has been quiet for a second
    opens(lab, daemon, 4)


def test_it_is_put_in_once_changed_and_taken_out(lab: Lab) -> None:
    lab.configure(DOOR)
    lab.nfknock("apply")
    before = everything(lab)
    for text in (LIMITED, LIMITED.replace("= 1", "= 10000")):
        lab.configure(text)
        assert "changed" in lab.nfknock("apply").stdout
        assert "too many of one source" in everything(lab)
        assert "unchanged" in lab.nfknock("apply").stdout
        assert "damage" not in lab.nfknock("status").stdout
    lab.configure(DOOR)
    lab.nfknock("apply")
    assert everything(lab) == before
    lab.configure(LIMITED)
    lab.nfknock("apply")
    lab.nfknock("remove")
    assert "nfknock" not in everything(lab).lower()


def everything(lab: Lab) -> str:
    """Return the rules of both kinds, but for what names a plan by its digest."""
    ruleset = lab.bastion.run("nft", "--stateless", "list", "ruleset").stdout
    return "\n".join(line for line in (lab.rules() + "\n" + ruleset).splitlines() if "(plan " not in line)


@only_for("iptables")
def test_a_kernel_that_cannot_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    lab.configure(LIMITED)
    done = lab.bastion.run(sys.executable, "-m", "tests.kernel.seccomp", "match", *NFKNOCK, "apply", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    lacking = "this kernel has no x_tables extension hashlimit, by which knocks are limited by source"
    mend = "say knocks_a_second = 0 under [guard], or load xt_hashlimit"
    # In front of it libxtables says that it misses everything else as well.
    assert done.stderr.splitlines()[-1] == f"nfknock: {lacking}; {mend}"
    assert "NFKNOCK" not in lab.rules()


@only_for("iptables")
def test_doctor_looks_for_it(lab: Lab) -> None:
    for text, is_looked_for in ((DOOR, False), (LIMITED, True)):
        lab.configure(text)
        lab.nfknock("apply")
        assert ("hashlimit" in lab.nfknock("doctor", check=False).stdout) is is_looked_for

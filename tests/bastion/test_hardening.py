"""The sandbox lets the daemon do all it has to do, and what goes too far is seen: a real knock says so, not systemd."""

from __future__ import annotations

import pytest

from tests.bastion.machine import BASTION4, ROOT, Machine
from tests.bastion.test_bastion import CONFIG, knock, wait_until_it_runs
from tests.lab import wait_until

pytestmark = [pytest.mark.root, pytest.mark.long]

DROP_IN = "/etc/systemd/system/nfknock.service.d/test.conf"
WORKS = {
    "as it is": ("", ""),
    "ipset": ("", 'firewall.backend = "ipset"'),
    "NFLOG": ("", 'reader.kind = "nflog"'),
    # Not every kernel's nf_tables has a queue.
    "nftables": ("", 'firewall.backend = "nftables"\nreader.kind = "nflog"'),
    "more rights": ((ROOT / "nfknock/systemd/more-rights.conf").read_text(), ""),
    "as root": ("[Service]\nUser=root\nGroup=root\n", ""),
    "as root without a sandbox": (
        "[Service]\nUser=root\nCapabilityBoundingSet=~\nSystemCallFilter=\nProtectSystem=no",
        "",
    ),
}
CAPABILITIES_OF_READERS = (
    "grep -slx nfknock-reader /proc/*/comm | sed s/comm/status/ | xargs awk '/^Cap(Eff|Prm|Amb)/ { print $2 }'"
)
GOES_TOO_FAR = ("PrivateUsers=yes", "CapabilityBoundingSet=~CAP_NET_ADMIN", "RestrictAddressFamilies=~AF_NETLINK")


def test_a_knock_opens_in_every_sandbox_that_is_offered(bastion: Machine) -> None:
    bastion.boot()
    bastion.run("mkdir", "-p", "/etc/hosts.allow.d")
    # sshd turns people away when it is connected to too often.
    bastion.lab.serve(2222)
    for name, (drop_in, keys) in WORKS.items():
        bastion.write("/etc/nfknock/nfknock.toml", keys + CONFIG.format(open_timeout="60s"), mode=0o640)
        bastion.write(DROP_IN, drop_in)
        bastion.run("systemctl", "daemon-reload")
        start(bastion, name)
        wait_until_it_runs(bastion)
        assert bastion.lab.is_shut(BASTION4, 2222), name
        knock(bastion.lab)
        assert bastion.ssh("id", "-un") == "root\n", name
        if 'kind = "nflog"' in keys:
            # Though this unit forbids capset(2).
            assert bastion.run("sh", "-c", CAPABILITIES_OF_READERS).split() == ["0" * 16] * 6, name
        bastion.run("nfknock", "close", "--all")
        bastion.lab.wait_until_shut(BASTION4, 2222)
        bastion.run("systemctl", "stop", "nfknock")
        bastion.run("nfknock", "remove")
        bastion.run("sh", "-c", "rm /run/nfknock/daemon-*.removed")  # as a reboot does


def test_commands_may_use_sudo_where_that_is_allowed(bastion: Machine) -> None:
    bastion.write("/etc/sudoers.d/nfknock", "nfknock ALL=(root) NOPASSWD: /usr/bin/id\n", mode=0o440)
    bastion.boot()
    bastion.run("mkdir", "-p", "/etc/hosts.allow.d")
    command = 'start_command = ["sudo", "-n", "id", "-u"]\n'
    bastion.write("/etc/nfknock/nfknock.toml", CONFIG.format(open_timeout="60s") + command, mode=0o640)
    bastion.write(DROP_IN, (ROOT / "nfknock/systemd/more-rights.conf").read_text())
    bastion.run("systemctl", "daemon-reload")
    start(bastion, "more rights")
    wait_until_it_runs(bastion)
    knock(bastion.lab)
    wait_until(lambda: "command says: 0" in bastion.journal("nfknock"), "what root is called")


def start(machine: Machine, name: str) -> None:
    try:
        machine.run("systemctl", "restart", "nfknock-apply", "nfknock")
    except AssertionError:
        pytest.fail(f"{name}: {machine.journal('nfknock-apply')}{machine.journal('nfknock')}")


def test_a_sandbox_that_goes_too_far_is_seen(bastion: Machine) -> None:
    bastion.boot()
    bastion.write("/etc/nfknock/nfknock.toml", CONFIG.format(open_timeout="60s"), mode=0o640)
    bastion.run("systemctl", "start", "nfknock-apply")
    for line in GOES_TOO_FAR:
        bastion.write(DROP_IN, f"[Service]\n{line}\n")
        bastion.run("systemctl", "daemon-reload")
        assert "failed" in bastion.run("systemctl", "restart", "nfknock", check=False), line
        bastion.run("systemctl", "stop", "nfknock")

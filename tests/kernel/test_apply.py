"""`apply`, `remove`, `open` and `close` as an administrator runs them, beside rules that are none of ours."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.kernel.crowd import put_foreign_rules
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, STRANGER4, Lab, echo
from tests.setting import Setting, only_for, with_every_reader
from tests.vandal import IS_NFTABLES, LEGACY, vandalise

DOOR = """
[firewall]
allow = ["8443/tcp", { open = "2222/tcp", from = "192.0.2.3" }]
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "30s"
"""


@pytest.fixture
def host(lab: Lab) -> Lab:
    lab.configure(DOOR)
    return lab


def test_apply_says_changed_and_then_unchanged(host: Lab) -> None:
    assert host.nfknock("apply").stdout == "changed\n"
    before = host.rules()
    assert host.nfknock("apply").stdout == "unchanged\n"
    assert json.loads(host.nfknock("apply", "--json").stdout) == {"changed": False, "difference": [], "warnings": []}
    assert host.rules() == before


@pytest.mark.parametrize(("policy4", "policy6"), [("ACCEPT", "DROP"), ("DROP", "ACCEPT")])
def test_remove_leaves_everything_as_it_was(host: Lab, policy4: str, policy6: str) -> None:
    put_foreign_rules(host, policy4=policy4, policy6=policy6)
    before = host.rules()
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    host.nfknock("open", "ssh", CLIENT6)
    assert host.rules() != before
    assert host.nfknock("remove").stdout == "changed\n"
    assert host.rules() == before
    assert host.nfknock("remove").stdout == "unchanged\n"


def test_every_rule_of_ours_says_so_and_comes_first(host: Lab) -> None:
    put_foreign_rules(host)
    before = set(host.rules().splitlines())
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    ours = [line for line in host.rules().splitlines() if line not in before and is_rule(line)]
    assert ours
    assert all('comment "nfknock' in line for line in ours)
    if IS_NFTABLES:
        # IPv6 is dropped by the host's own chain, which lets in what we do first of all.
        listing = host.bastion.run("nft", "--stateless", "list", "chain", "ip6", "filter", "INPUT").stdout.splitlines()
        assert listing[3].strip().startswith("meta mark 0x6e666b6e counter accept")
        assert host.bastion.run("ip6tables-nft", "-S", "INPUT").stdout.startswith("-P INPUT DROP\n")
    else:
        for family in LEGACY:
            listing = host.bastion.run(family, "-S", "INPUT").stdout.splitlines()
            assert listing[0] == "-P INPUT DROP"
            assert listing[1].endswith("-j NFKNOCK")
    assert policies(host) == {"ipv4": "DROP", "ipv6": "DROP"}


def is_rule(line: str) -> bool:
    """Whether a line of iptables-save or of nft's listing is a rule."""
    return line.startswith("-A") or (line.startswith("\t\t") and not line.startswith("\t\ttype "))


def policies(lab: Lab) -> dict[str, str]:
    return dict(json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["policy"])


@only_for("iptables", "ipset")
def test_a_rule_that_was_put_on_top_of_ours_goes_below(host: Lab) -> None:
    host.nfknock("apply")
    host.bastion.run("iptables-legacy", "-I", "INPUT", "-j", "DROP")
    assert host.nfknock("apply").stdout == "changed\n"
    listing = host.bastion.run("iptables-legacy", "-S", "INPUT").stdout.splitlines()
    assert [line.split()[-1] for line in listing[1:]] == ["NFKNOCK", "DROP", "NFKNOCK_STRAYS"]


def test_after_a_flush_apply_mends_and_remove_still_knows_the_first_policy(host: Lab) -> None:
    host.nfknock("apply")
    vandalise(host, "flush")
    assert host.nfknock("apply").stdout == "changed\n"
    assert host.nfknock("apply").stdout == "unchanged\n"
    assert policies(host) == {"ipv4": "DROP", "ipv6": "DROP"}
    host.nfknock("remove")
    assert policies(host) == {"ipv4": "ACCEPT", "ipv6": "ACCEPT"}


def test_a_ban_in_front_of_the_jump_does_not_put_the_firewall_out_of_place(host: Lab) -> None:
    """fail2ban puts its rules on top whenever it starts; the daemon must start and knocks must work all the same."""
    host.serve(22)
    host.nfknock("apply")
    host.bastion.run("iptables-legacy", "-I", "INPUT", "-s", STRANGER4, "-j", "DROP")
    assert json.loads(host.nfknock("status", "--json").stdout)["firewall"]["applied"]
    host.nfknock("open", "ssh", CLIENT4)
    assert host.reaches(BASTION4, 22)
    host.daemon()


def test_nothing_is_opened_behind_a_jump_that_is_gone(host: Lab) -> None:
    host.nfknock("apply")
    vandalise(host, "the jump")
    done = host.nfknock("open", "ssh", CLIENT4, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "nfknock: the firewall is not in place; run `nfknock apply` first\n",
    )


def test_chains_that_only_sound_like_ours_stay(host: Lab) -> None:
    for chain in ("NFKNOCK_mine", "NFKNOCK_FOUND_mine"):
        host.bastion.run("iptables-legacy", "-N", chain)
        host.bastion.run("iptables-legacy", "-A", chain, "-j", "ACCEPT")
        host.bastion.run("iptables-legacy", "-A", "FORWARD", "-j", chain)
    host.bastion.run("ip6tables-legacy", "-S")
    before = host.rules()
    host.nfknock("apply")
    host.nfknock("remove")
    assert host.rules() == before


@only_for("iptables", "ipset")
def test_a_foreign_rule_that_jumps_to_our_chains_is_named(host: Lab) -> None:
    host.nfknock("apply")
    host.bastion.run("iptables-legacy", "-A", "FORWARD", "-j", "NFKNOCK_HOLES")
    before = host.rules()
    done = host.nfknock("remove", check=False)
    assert done.returncode == 1
    assert "a rule that is not nfknock's jumps there; find it with `iptables-legacy -S`" in done.stderr
    assert host.rules() == before
    host.bastion.run("iptables-legacy", "-D", "FORWARD", "-j", "NFKNOCK_HOLES")
    host.nfknock("remove")


def test_a_chain_whose_name_is_no_utf8_disturbs_nothing(host: Lab) -> None:
    host.bastion.run("sh", "-c", "iptables-legacy -N $(printf 'caf\\351')")
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    assert json.loads(host.nfknock("status", "--json").stdout)["firewall"]["applied"]
    host.nfknock("remove")


@only_for("iptables", "ipset")
def test_remove_never_leaves_a_host_shut_off_without_a_word(host: Lab) -> None:
    """Without its record, or where DROP with no rule is what was found."""
    host.nfknock("apply")
    host.bastion.run("iptables-legacy", "-X", "NFKNOCK_FOUND_ACCEPT")
    done = host.nfknock("remove")
    assert "nothing tells which policy INPUT had; it is ACCEPT now" in done.stderr
    assert host.bastion.run("iptables-legacy", "-S", "INPUT").stdout == "-P INPUT ACCEPT\n"
    host.bastion.run("iptables-legacy", "-P", "INPUT", "DROP")
    assert "INPUT had policy DROP and no rule; `nfknock remove` will restore just that" in host.nfknock("apply").stderr
    assert "has policy DROP and no rule again, as it was found" in host.nfknock("remove").stderr
    assert host.bastion.run("iptables-legacy", "-S", "INPUT").stdout == "-P INPUT DROP\n"


def test_no_other_table_comes_to_be(host: Lab) -> None:
    host.nfknock("apply")
    host.nfknock("status")
    assert "*nat" not in host.rules()
    assert "*mangle" not in host.rules()


FIRST = (("- :INPUT ACCEPT", "+ :INPUT DROP"), ("# table inet nfknock, policy drop",))
"""What a dry run begins with, of iptables and of nftables, on a host with nothing of its own."""


@with_every_reader
def test_a_dry_run_prints_the_difference_and_touches_nothing(host: Lab, setting: Setting) -> None:
    put_foreign_rules(host, policy6="ACCEPT")
    before = host.rules()
    lines = host.nfknock("apply", "--dry-run").stdout.splitlines()
    assert set(FIRST[IS_NFTABLES]) <= set(lines)
    target = {"nfqueue": "-j NFQUEUE --queue-num 5", "nflog": "-j NFLOG --nflog-group 5"}[setting.reader]
    target = "log group 5" if IS_NFTABLES else target
    assert any(line.startswith("+ ") and target in line for line in lines)
    assert lines[-1] == "changed"
    assert host.rules() == before
    host.nfknock("apply")
    assert host.nfknock("apply", "--dry-run").stdout == "unchanged\n"
    host.configure(DOOR.replace("8443", "8444"))
    lines = host.nfknock("apply", "--dry-run").stdout.splitlines()
    # The jump in INPUT names the plan that stands behind it.
    difference = [line for line in lines if line[0] in "+-" and "-A INPUT" not in line and " (plan " not in line]
    if IS_NFTABLES:
        assert [re.sub(" comment.*", "", line) for line in difference] == [
            f"{sign} meta nfproto {family} tcp dport {port} goto admit"
            for sign, port in (("-", 8443), ("+", 8444))
            for family in ("ipv4", "ipv6")
        ]
        return
    assert [re.sub("-m comment.*?-j", "-j", line) for line in difference] == [
        "- -A NFKNOCK -p tcp -m tcp --dport 8443 -j ACCEPT",
        "+ -A NFKNOCK -p tcp -m tcp --dport 8444 -j ACCEPT",
    ] * 2


def test_what_is_allowed_is_open_and_the_rest_is_not(host: Lab) -> None:
    for port in (22, 2222, 8443):
        host.serve(port)
    host.nfknock("apply")
    assert host.reaches(BASTION4, 8443)
    assert host.reaches(BASTION6, 8443)
    assert host.reaches(BASTION4, 2222, source=STRANGER4)
    assert host.is_shut(BASTION4, 2222)
    assert host.is_shut(BASTION4, 22)
    assert host.is_shut(BASTION6, 22)


@pytest.mark.parametrize(("source", "bastion"), [(CLIENT4, BASTION4), (CLIENT6, BASTION6)])
def test_open_and_close_by_hand(host: Lab, source: str, bastion: str) -> None:
    host.serve(22)
    host.nfknock("apply")
    assert host.nfknock("open", "ssh", source, "--for", "1m").stdout == f"{source}: ssh: opened 22/tcp for 60 s\n"
    session = host.connect(bastion, 22)
    assert host.nfknock("close", source).stdout == f"{source}: ssh: closed\n"
    assert host.is_shut(bastion, 22)
    assert echo(session) == b"hello\n"
    again = host.nfknock("close", "ssh", source)
    assert (again.stdout, again.stderr) == ("", "warning: nothing was open there\n")


def test_close_all(host: Lab) -> None:
    host.nfknock("apply")
    for source in (CLIENT4, CLIENT6, STRANGER4):
        host.nfknock("open", "ssh", source, "--for", "0")
    assert len(json.loads(host.nfknock("status", "--json").stdout)["holes"]) == 3
    assert len(host.nfknock("close", "--all").stdout.splitlines()) == 3
    assert json.loads(host.nfknock("status", "--json").stdout)["holes"] == []


@pytest.mark.parametrize("width", [120, 80, 40, 20])
def test_an_address_is_whole_in_a_terminal_of_any_width(host: Lab, width: int) -> None:
    address = "2001:db8:1234:5678:9abc:def0:1234:5678"
    host.nfknock("apply")
    host.nfknock("open", "ssh", address, "--for", "0")
    lines = host.bastion.run("env", f"COLUMNS={width}", *NFKNOCK, "status").stdout.splitlines()
    assert any(address in line for line in lines)


def test_apply_verbose_says_what_it_changes(host: Lab) -> None:
    lines = host.nfknock("-v", "apply").stdout.splitlines()
    assert set(FIRST[IS_NFTABLES][-1:]) <= set(lines)
    assert lines[-1] == "changed"
    assert host.nfknock("-v", "apply").stdout == "unchanged\n"


def test_output_that_cannot_be_written_is_one_line(host: Lab) -> None:
    done = host.bastion.run("sh", "-c", f"{NFKNOCK[0]} status --json >/dev/full", check=False)
    assert (done.returncode, done.stderr) == (1, "nfknock: writing the output: no space left on device\n")


def test_sessions_that_stood_before_the_first_apply_go_on(host: Lab) -> None:
    """On a host without rules nothing is tracked: the next packet of an idle session would be a stranger's."""
    host.serve(22)
    sessions = [host.connect(address, 22) for address in (BASTION4, BASTION6)]
    for session in sessions:
        assert echo(session) == b"hello\n"
    host.nfknock("apply")
    for session in sessions:
        assert echo(session) == b"hello\n"
    assert host.is_shut(BASTION4, 22)


def test_a_session_that_carries_much_goes_on_through_apply_and_remove(host: Lab) -> None:
    host.serve(22)
    session = host.connect(BASTION4, 22)
    session.settimeout(20)
    block = bytes(1 << 20)
    for command in ("apply", "remove", "apply"):
        host.nfknock(command)
        session.sendall(block[:65536])
        received = 0
        while received < 65536:
            received += len(session.recv(65536))


def test_a_hole_closes_by_itself_in_the_kernel(host: Lab) -> None:
    host.serve(22)
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4, "--for", "2s")
    assert host.reaches(BASTION4, 22)
    host.wait_until_shut(BASTION4, 22, within=5)
    report = json.loads(host.nfknock("status", "--json").stdout)
    assert report["holes"] == []


def test_interfaces_limit_knocks_and_holes(host: Lab) -> None:
    host.serve(22)
    host.configure(DOOR.replace("[firewall]", '[firewall]\ninterfaces = ["other0"]'))
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    assert host.is_shut(BASTION4, 22)
    host.configure(DOOR.replace("[firewall]", '[firewall]\ninterfaces = ["other0", "b0"]'))
    host.nfknock("apply")
    assert host.reaches(BASTION4, 22)


@only_for("iptables", "ipset")
def test_a_racing_tool_and_nfknock_lose_nothing(host: Lab) -> None:
    host.nfknock("apply")
    code = "for i in $(seq 60); do iptables-legacy -w -I INPUT -p tcp --dport $((i + 100)) -j DROP || exit 1; done"
    racer = host.bastion.start("sh", "-c", code, stderr=subprocess.PIPE)
    for number in range(4, 10):
        host.nfknock("open", "ssh", f"192.0.2.{number}")
    assert racer.wait(60) == 0
    assert racer.stderr is not None
    racer.stderr.close()
    rules = host.bastion.run("iptables-legacy", "-S").stdout
    assert rules.count("-A INPUT -p tcp -m tcp --dport") == 60
    assert host.rules().count("nfknock hole ssh") == 6

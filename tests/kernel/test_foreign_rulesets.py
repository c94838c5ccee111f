"""Rulesets of others, in nf_tables, that drop what nfknock opens: refused, warned of, or let alone."""

from __future__ import annotations

import pytest

from tests.kernel.test_refusals import SSH, assert_refused, rulesets
from tests.lab import BASTION4, BASTION6, CLIENT4, Lab
from tests.setting import CHOSEN, only_for


def inet(rules: str, policy: str = "accept", more: str = "") -> str:
    """Return a ruleset as an administrator writes one."""
    chain = f"chain input {{ type filter hook input priority filter; policy {policy}; {rules}\n}}"
    return f"table inet filter {{ {more}\n{chain}\n}}\n"


UFW = """
table ip filter {
  chain ufw-before-input {
    iifname "lo" counter accept
    ct state related,established counter accept
    ct state invalid counter jump ufw-logging-deny
    ct state invalid counter drop
    counter jump ufw-not-local
    counter jump ufw-user-input
  }
  chain ufw-logging-deny { limit rate 3/minute burst 10 packets counter log prefix "[UFW BLOCK] "; }
  chain ufw-not-local { fib daddr type local counter return; fib daddr type broadcast counter return; counter drop; }
  chain ufw-user-input { @ufw@; }
  chain ufw-after-logging-input { limit rate 3/minute burst 10 packets counter log; }
  chain INPUT {
    type filter hook input priority filter; policy drop;
    counter jump ufw-before-input
    counter jump ufw-after-logging-input
  }
}
"""
FIREWALLD = """
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES { iifname "b0" goto filter_IN_public; goto filter_IN_public; }
  chain filter_IN_public {
    jump filter_IN_public_allow
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_IN_public_allow { ip daddr 224.0.0.251 udp dport 5353 accept; @firewalld@; }
}
"""
DROPPING = {
    "policy": (inet("", "drop"), "run: nft insert rule inet filter input tcp dport 22 accept"),
    "rule": (inet("tcp dport 22 drop"), "chain inet filter input) drops new connections to 22/tcp over IPv4 and IPv6"),
    "reject": (inet("ct state established accept; iif lo accept; reject"), "run: nft insert rule inet filter input"),
    "other ports": (inet("tcp dport { 80, 443 } accept; tcp dport 1000-2000 accept", "drop"), "22/tcp"),
    "set": (inet("tcp dport { 20-25, 443 } drop"), "22/tcp"),
    "named set": (inet("tcp dport @shut drop", more="set shut { type inet_service; elements = { 22 }; }"), "22/tcp"),
    "map": (inet("tcp dport vmap { 22 : drop, 80 : accept }"), "22/tcp"),
    "jump": (inet("tcp dport 22 jump mine", more="chain mine { counter; drop; }"), "22/tcp"),
    "goto": (inet("goto mine; accept", "drop", more="chain mine { tcp dport 80 accept; }"), "22/tcp"),
    "state map": (inet("ct state vmap { established : accept, invalid : drop }", "drop"), "22/tcp"),
    "th": (inet("meta l4proto { tcp, udp } th dport 22 drop"), "22/tcp"),
    "not": (inet("tcp dport != 80 drop"), "22/tcp"),
    "IPv6": (inet("meta nfproto ipv6 tcp dport 22 drop"), "drops new connections to 22/tcp over IPv6, which the door"),
    "two": (
        inet("accept") + "table ip mine { chain in { type filter hook input priority 5; policy drop; }; }",
        "ip mine in",
    ),
    "ufw": (UFW.replace("@ufw@", "tcp dport 80 accept"), "ufw (chain ip filter INPUT) drops"),
    "firewalld": (
        FIREWALLD.replace("@firewalld@", "tcp dport 80 accept"),
        "--add-port=22/tcp && firewall-cmd --reload",
    ),
}
PASSING = {
    "accept first": inet("tcp dport 22 accept; tcp dport 22 drop", "drop"),
    "accept policy": inet("ct state invalid drop; ct state established accept"),
    "state new": inet("ct state new tcp dport { 22, 80 } accept", "drop"),
    "flags": inet("tcp flags & (fin|syn|rst|ack) == syn tcp dport 22 accept", "drop"),
    "other protocol": inet("udp dport 22 drop; icmp type echo-request drop"),
    "loopback": inet("iifname lo drop; iif lo drop"),
    "interface": inet("iifname b0 tcp dport 22 accept; iifname != b0 drop", "drop"),
    "jump": inet("jump mine; drop", more="chain mine { tcp dport 80 drop; tcp dport 22 accept; }"),
    "return": inet("jump mine; accept", "drop", more="chain mine { tcp dport 22 return; drop; }"),
    "set": inet(
        "tcp dport @open accept", "drop", "set open { type inet_service; flags interval; elements = { 20-30 }; }"
    ),
    "bans": inet(
        "ip saddr @bad drop; ip6 saddr 2001:db8:9::/48 drop",
        more="set bad { type ipv4_addr; elements = { 198.51.100.1 }; }",
    ),
    "no bans": inet("ip saddr @bad drop", more="set bad { type ipv4_addr; flags interval; }"),
    "local": inet("fib daddr type local tcp dport 22 accept", "drop"),
    "host": inet("meta pkttype host tcp dport 22 accept", "drop"),
    "concatenation": inet("meta l4proto . th dport { tcp . 22, udp . 53 } accept", "drop"),
    "forward": "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }",
    "dormant": "table inet mine { flags dormant; chain in { type filter hook input priority 0; policy drop; }; }",
    "ufw": UFW.replace("@ufw@", "tcp dport 22 accept"),
    "firewalld": FIREWALLD.replace("@firewalld@", "tcp dport 22 accept"),
}
UNSURE = {
    "limit": inet("tcp dport 22 limit rate 3/second accept", "drop"),
    "source": inet("ip saddr 198.51.100.0/24 tcp dport 22 accept; meta nfproto ipv6 accept", "drop"),
    "mark": inet("meta mark 7 drop"),
    "owner": inet("tcp dport 22 meta cpu 0 drop"),
    "ttl": inet("ip ttl < 10 drop"),
}


@pytest.mark.parametrize("name", DROPPING)
def test_a_ruleset_that_drops_what_a_door_opens(bare: Lab, name: str) -> None:
    ruleset, said = DROPPING[name]
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=ruleset)
    before = rulesets(bare)
    if CHOSEN.backend == "nftables":
        assert_opens_through(bare, before)
        return
    done = bare.nfknock("apply", check=False)
    assert_refused(bare, done, said, before)
    assert bare.nfknock("apply", "--force").stdout == "changed\n"


def assert_opens_through(lab: Lab, before: tuple[str, str]) -> None:
    """The backend nftables has an entrance in what drops, which goes with it."""
    lab.serve(22)
    assert lab.nfknock("apply").stdout == "changed\n"
    assert not answers(lab)
    lab.nfknock("open", "ssh", CLIENT4)
    assert lab.reaches(BASTION4, 22)
    lab.nfknock("remove")
    assert rulesets(lab) == before


def answers(lab: Lab) -> bool:
    """Whether the service is reached; some of these rulesets refuse instead of dropping."""
    try:
        return not lab.is_shut(BASTION4, 22)
    except OSError:
        return False


@pytest.mark.parametrize("name", PASSING)
def test_a_ruleset_that_lets_through_what_a_door_opens(bare: Lab, name: str) -> None:
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=PASSING[name])
    done = bare.nfknock("apply")
    assert done.stdout == "changed\n"
    assert "new connections" not in done.stderr


@pytest.mark.parametrize("name", UNSURE)
def test_a_ruleset_that_may_drop_it_is_warned_of(bare: Lab, name: str) -> None:
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=UNSURE[name])
    done = bare.nfknock("apply")
    assert done.stdout == "changed\n"
    if CHOSEN.backend == "nftables" and "policy drop" in UNSURE[name]:
        assert "warning: what is let in passes inet filter input by a rule that is put there first" in done.stderr
        return
    assert "warning: the host's nf_tables ruleset (chain inet filter input) may drop new connections" in done.stderr


@pytest.mark.parametrize("command", ["iptables", "ip6tables"])
@pytest.mark.parametrize(
    ("rules", "is_refused"),
    [
        (["-p tcp --dport 22 -j DROP"], True),
        (["-p tcp -m multiport --dports 21,22,1000:2000 -m comment --comment shut -j REJECT"], True),
        (["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-i lo -j ACCEPT", "-j DROP"], True),
        (["-m state --state NEW -p tcp --dport 22 -j DROP"], True),
        (["-m addrtype --dst-type LOCAL -p tcp --dport 22 -j DROP"], True),
        (["-p tcp --dport 22 -j ACCEPT", "-j DROP"], False),
        (["-m conntrack --ctstate INVALID -j DROP", "-p tcp ! --syn -j DROP"], False),
        (["-m recent --name x --rcheck --seconds 30 --hitcount 6 -j REJECT"], False),
        (["-p tcp -m multiport ! --dports 22,80 -j DROP"], False),
        (["-i tun+ -j DROP", "! -i b0 -j DROP"], False),
    ],
)
def test_rules_of_the_nft_variant_of_iptables(bare: Lab, command: str, rules: list[str], *, is_refused: bool) -> None:
    bare.configure(SSH)
    for rule in rules:
        bare.bastion.run(command, "-A", "INPUT", *rule.split())
    before = rulesets(bare)
    done = bare.nfknock("apply", check=False)
    if is_refused and CHOSEN.backend != "nftables":
        assert_refused(bare, done, f"run: {command} -I INPUT -p tcp --dport 22 -j ACCEPT", before)
        bare.bastion.run(command, "-I", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
        done = bare.nfknock("apply")
    assert done.stdout == "changed\n"
    assert "new connections" not in done.stderr


@only_for("iptables", "ipset")
def test_the_mend_for_nft_mends_and_what_is_allowed_counts_too(bare: Lab) -> None:
    bare.configure(f'[firewall]\nallow = ["443/tcp", {{ open = "53/udp", from = "192.0.2.0/24" }}]\n{SSH}')
    bare.bastion.run("nft", "-f", "-", stdin=inet("ip saddr 192.0.2.0/25 accept; ip saddr 192.0.2.0/24 drop", "drop"))
    done = bare.nfknock("apply", check=False)
    refused = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    # From a part of that network, it is let through.
    assert [line.partition("connections to ")[2].split()[0] for line in refused] == ["22/tcp", "443/tcp"]
    assert "may drop new connections to 53/udp over IPv4, which `allow` opens" in done.stderr
    for line in refused:
        bare.bastion.run(*line.partition("run: ")[2].split())
    assert bare.nfknock("apply").stdout == "changed\n"


def test_a_thousand_rules_are_soon_read(bare: Lab) -> None:
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=inet("tcp dport 2999 drop;"))
    for start in range(3000, 4000, 100):
        # In portions: an ordinary user's socket does not take a thousand at once.
        rules = (f"add rule inet filter input tcp dport {n} drop\n" for n in range(start, start + 100))
        bare.bastion.run("nft", "-f", "-", stdin="".join(rules))
    assert bare.nfknock("apply").stdout == "changed\n"


KNOCKS = ("7101:tcp", "8203:udp", "9307:tcp")
SHUT = "ct state established accept; meta l4proto icmpv6 accept; tcp dport 22 accept"


def at_priority(priority: int, rules: str = SHUT) -> str:
    return "flush ruleset\n" + inet(rules, "drop").replace("priority filter", f"priority {priority}")


@only_for("iptables", "ipset")
def test_knocks_that_a_ruleset_drops_once_it_is_loaded_anew(lab: Lab) -> None:
    """Among chains of one priority, the one that came last comes first."""
    lab.configure(SSH)
    lab.bastion.run("nft", "-f", "-", stdin=at_priority(0))
    done = lab.nfknock("apply")
    assert "(chain inet filter input) may drop knocks over IPv4 and IPv6 before nfknock sees them:" in done.stderr
    assert "7101" not in done.stderr
    daemon = lab.daemon()
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
    # The warning is right, and so is its mend.
    lab.bastion.run("nft", "-f", "-", stdin=at_priority(0))
    lab.knock(BASTION6, *KNOCKS)
    lab.bastion.run(
        "nft", "-f", "-", stdin=at_priority(0, f"{SHUT}; tcp dport {{ 7101, 9307 }} accept; udp dport 8203 accept")
    )
    assert lab.nfknock("apply").stderr == ""
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: OPEN SESAME", count=2)
    assert not any("2001:db8" in line for line in daemon.lines)


def test_knocks_that_a_ruleset_drops_first(bare: Lab) -> None:
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=at_priority(-10))
    before = rulesets(bare)
    done = bare.nfknock("apply", check=False)
    assert_refused(bare, done, "drops knocks over IPv4 and IPv6 before nfknock sees them", before)


def test_what_comes_after_us_may_drop_knocks(bare: Lab) -> None:
    bare.configure(SSH)
    bare.bastion.run("nft", "-f", "-", stdin=at_priority(10))
    assert "knocks" not in bare.nfknock("apply").stderr

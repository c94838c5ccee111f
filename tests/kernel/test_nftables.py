"""The backend nftables beside rulesets of others: it opens through them, and what is theirs stays theirs."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfknock.backends.nftables import NftablesBackend, elements, library, room, script
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import BackendChoice, Plan
from nfknock.errors import BackendError
from tests.kernel.test_doctor import examine, levels
from tests.kernel.test_foreign_rulesets import DROPPING, inet
from tests.kernel.test_refusals import over_ssh
from tests.kernel.test_scans import EVERY_PORT, counters, scan
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, STRANGER4, Daemon, Lab, echo, wait_until

DOOR = """
[reader]
kind = "nflog"
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "60s"
"""
KNOCKS = ("7101", "8203:udp", "9307")
IPTABLES = f'[firewall]\nbackend = "iptables"\n{DOOR}'
NFT = f'[firewall]\nbackend = "nftables"\n{DOOR}'
ATTACHED = NFT.replace("[firewall]", '[firewall]\nattach = "inet filter input"')
AUTO = f'[firewall]\nbackend = "auto"\n{DOOR}'
# Without neighbour discovery there is no IPv6 at all.
NEEDED = "ct state established,related accept; meta l4proto ipv6-icmp accept"
DROP = inet(f"{NEEDED}; tcp dport 80 accept", "drop")
HOSTS = {
    "policy": DROP,
    "reject": inet(f"{NEEDED}; iif lo accept; reject"),
    "ufw": DROPPING["ufw"][0],
    "firewalld": DROPPING["firewalld"][0],
}
MDNS = bytes((224, 0, 0, 251))
PLAN = Plan(baseline=(), allowed=(), knock_ports=(Port(7101), Port(8203)), queue=5, reader="nflog", opens=(Port(22),))
BOTH = ((BASTION4, CLIENT4), (BASTION6, CLIENT6))


def ruleset(lab: Lab) -> str:
    """Return the nf_tables ruleset but for counters, as an administrator sees it."""
    return lab.bastion.run("nft", "--stateless", "list", "ruleset").stdout


def load(lab: Lab, text: str) -> None:
    lab.bastion.run("nft", "-f", "-", stdin=text)


def iptables_nft(lab: Lab, *lines: str) -> None:
    for line in lines:
        for command in ("iptables-nft", "ip6tables-nft"):
            lab.bastion.run(command, *line.split())


def ready(lab: Lab, text: str = NFT) -> Daemon:
    """Start a service and the daemon on a bastion with its firewall in place."""
    lab.serve(22)
    lab.configure(text)
    lab.nfknock("apply")
    return lab.daemon()


def knock(lab: Lab, daemon: Daemon, *, count: int = 1) -> None:
    """Knock by both families and wait until both are let in."""
    for bastion, client in BOTH:
        lab.knock(bastion, *KNOCKS)
        daemon.wait_for(f"{client}: ssh: opened 22/tcp", count=count)


def is_let_in(lab: Lab, address: str, port: int, *, source: str = "") -> bool:
    """Whether a connection is answered by a service; firewalld refuses those that it does not let in."""
    try:
        lab.connect(address, port, source=source, within=0.4).close()
    except OSError:
        return False
    return True


def hole(source: str, *, seconds: float | None = None) -> Hole:
    now = float(int(time.time()))
    end = None if seconds is None else now + seconds
    return Hole(door="ssh", source=ip_address(source), opens=(Opening(Port(22)),), opened_at=now, closes_at=end)


@pytest.mark.parametrize("kind", ["policy", "reject", "ufw", "firewalld", "iptables-nft"])
def test_where_the_host_drops_auto_opens_through_it(lab: Lab, kind: str) -> None:
    if kind == "iptables-nft":
        iptables_nft(lab, "-A INPUT -p tcp --dport 22 -j DROP")
    else:
        load(lab, HOSTS[kind])
    before = ruleset(lab)
    lab.serve(22)
    lab.configure(IPTABLES)
    refused = lab.nfknock("apply", check=False)
    assert refused.returncode == 1
    assert "drops new connections to 22/tcp over IPv4" in refused.stderr
    lab.configure(AUTO)
    applied = lab.nfknock("apply")
    assert "the backend is nftables: " in applied.stderr
    assert "drops new connections to 22/tcp over IPv4" in applied.stderr
    daemon = lab.daemon()
    assert not is_let_in(lab, BASTION4, 22)
    assert not is_let_in(lab, BASTION6, 22)
    knock(lab, daemon)
    assert lab.reaches(BASTION4, 22)
    assert lab.reaches(BASTION6, 22)
    assert not is_let_in(lab, BASTION4, 22, source=STRANGER4)
    lab.nfknock("remove")
    assert ruleset(lab) == before


@pytest.mark.parametrize("kind", ["policy", "firewalld"])
def test_what_the_host_lets_in_stays_open_where_it_has_the_last_word(lab: Lab, kind: str) -> None:
    load(lab, HOSTS[kind])
    lab.serve(80)
    lab.serve(8080)
    lab.configure(AUTO)
    lab.nfknock("apply")
    assert lab.reaches(BASTION4, 80)
    assert not is_let_in(lab, BASTION4, 8080)


def test_where_the_host_has_the_last_word_it_also_lets_in_what_goes_to_many(lab: Lab) -> None:
    """Neighbour discovery, without which there is no IPv6, and what a host says to itself."""
    load(lab, inet(f"{NEEDED}; iif lo accept; tcp dport 80 accept; udp dport 5353 accept", "drop"))
    lab.serve(80)
    ready(lab)
    lab.client.run("ip", "-6", "neigh", "flush", "all")
    assert lab.reaches(BASTION6, 80)
    for address in ("127.0.0.1", "::1"):
        lab.bastion.run("timeout", "5", "bash", "-c", f"exec 3<> /dev/tcp/{address}/22")
    with (
        lab.bastion.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing,
        lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaking,
    ):
        hearing.bind(("", 5353))
        hearing.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, MDNS + socket.inet_aton(BASTION4))
        speaking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(CLIENT4))
        speaking.sendto(b"hello", (socket.inet_ntoa(MDNS), 5353))
        assert hearing.recv(5) == b"hello"


@pytest.mark.parametrize("doors", [DOOR, f'{DOOR}[doors.web]\nsequence = ["7777", "8888"]\nopen = ["8080/tcp"]\n'])
def test_what_a_door_opens_is_hidden_though_the_host_lets_everybody_in(lab: Lab, doors: str) -> None:
    load(lab, inet(f"{NEEDED}; iif lo accept; tcp dport {{ 22, 80 }} accept", "drop"))
    lab.serve(80)
    lab.serve(22)
    lab.configure(f'[firewall]\nbackend = "nftables"\n{doors}')
    warnings = lab.nfknock("apply").stderr
    assert "22/tcp is shut to whoever has not knocked, though the host's own rules let somebody in" in warnings
    assert "8080/tcp is shut" not in warnings
    daemon = lab.daemon()
    assert lab.reaches(BASTION4, 80)
    assert not is_let_in(lab, BASTION4, 22)
    assert not is_let_in(lab, BASTION6, 22)
    lab.bastion.run("timeout", "5", "bash", "-c", "exec 3<> /dev/tcp/127.0.0.1/22")
    knock(lab, daemon)
    connection = lab.connect(BASTION4, 22)
    lab.nfknock("close", "ssh", CLIENT4)
    assert echo(connection) == b"hello\n"
    assert not is_let_in(lab, BASTION4, 22)


def test_what_the_host_lets_in_stays_open_whatever_ports_are_knocked_at(lab: Lab) -> None:
    """A chain that drops by its last rule does so though it lets in what is a knock."""
    load(lab, inet(f"{NEEDED}; iif lo accept; tcp dport 80 accept; udp dport 8000-9000 accept; reject"))
    lab.serve(80)
    ready(lab)
    assert lab.reaches(BASTION4, 80)
    assert not is_let_in(lab, BASTION4, 22)


def test_a_host_that_drops_high_ports_alone_is_shut_by_nfknock(lab: Lab) -> None:
    load(lab, inet(f"{NEEDED}; iif lo accept; tcp dport 1024-65535 drop; udp dport 1024-65535 drop"))
    lab.serve(80)
    daemon = ready(lab)
    assert lab.is_shut(BASTION4, 80)
    assert lab.is_shut(BASTION4, 22)
    knock(lab, daemon)
    assert lab.reaches(BASTION4, 22)


@pytest.mark.parametrize("kind", ["policy", "ufw", "firewalld"])
def test_scans_are_seen_where_the_host_has_the_last_word(lab: Lab, kind: str) -> None:
    """A port at which nobody listens is closed, whatever the host's chain would say; others are the host's business."""
    load(lab, HOSTS[kind])
    lab.serve(80)
    daemon = ready(lab, NFT.replace("8203/udp", "8203") + "[guard]\nports = 0\n")
    for knock in ("7101", "8203", "9307"):
        lab.connect(BASTION4, 80).close()
        lab.knock(BASTION4, knock)
    daemon.wait_for(f"{CLIENT4}: ssh: OPEN SESAME")
    assert counters(lab)["strays"] == 0
    for address in ("198.51.100.1", "198.51.100.2", "198.51.100.3"):
        scan(lab, address, EVERY_PORT)
    wait_until(lambda: counters(lab)["strays"] > 1000, "the strays to be heard")
    assert sum("OPEN SESAME" in line for line in daemon.lines) == 1


def test_where_the_host_drops_one_port_alone_everything_else_is_shut_by_nfknock(lab: Lab) -> None:
    load(lab, inet("tcp dport 22 drop"))
    lab.serve(80)
    lab.configure(AUTO)
    lab.nfknock("apply")
    assert lab.is_shut(BASTION4, 80)
    assert json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["policy"] == {"ipv4": "DROP", "ipv6": "DROP"}


def test_a_flush_of_everything_and_a_reload_are_repaired_with_what_is_open(lab: Lab) -> None:
    load(lab, DROP)
    daemon = ready(lab)
    knock(lab, daemon)
    before = lab.rules()
    load(lab, f"flush ruleset\n{DROP}")
    assert "nfknock" not in ruleset(lab)
    wait_until(lambda: lab.rules() == before, "what was there to be back", within=5)
    assert lab.reaches(BASTION4, 22)
    assert lab.reaches(BASTION6, 22)
    daemon.wait_for("put back, with 2 holes")


@pytest.mark.parametrize("how", ["the entrance", "its verdict", "the chain", "a rule in front", "the set"])
def test_what_others_do_to_the_entrance_is_repaired(lab: Lab, how: str) -> None:
    load(lab, DROP)
    daemon = ready(lab)
    knock(lab, daemon)
    before = lab.rules()
    match how:
        case "the entrance":
            load(lab, f"flush chain inet filter input\n{DROP}")
        case "its verdict":
            listed = lab.bastion.run(
                "nft", "--stateless", "--handle", "list", "chain", "inet", "filter", "input"
            ).stdout
            [(what, handle)] = re.findall(r"(meta mark \S+).* accept .*# handle (\d+)", listed)
            load(lab, f"replace rule inet filter input handle {handle} {what} drop")
        case "the chain":
            load(lab, f"delete table inet filter\n{DROP}")
        case "a rule in front":
            load(lab, "insert rule inet filter input tcp dport 22 drop")
        case _:
            load(lab, "flush set inet nfknock h4_ssh\nflush chain inet nfknock main")
    daemon.wait_for("the firewall was changed by somebody else: ")
    wait_until(lambda: json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["applied"], "the repair")
    assert lab.reaches(BASTION6, 22)
    if how in ("the entrance", "the chain"):
        assert sorted(lab.rules().splitlines()) == sorted(before.splitlines())


def test_a_ruleset_that_comes_later_and_drops_gets_its_entrance(lab: Lab) -> None:
    """At boot ufw, say, is later than nfknock."""
    daemon = ready(lab)
    knock(lab, daemon)
    load(lab, DROP)
    daemon.wait_for("the firewall was changed by somebody else: inet filter input drops what is let in")
    wait_until(lambda: "meta mark 0x6e666b6e" in ruleset(lab).partition("chain input")[2], "the entrance")
    assert lab.reaches(BASTION4, 22)
    lab.nfknock("remove")
    host = ruleset(lab)
    load(lab, f"flush ruleset\n{DROP}")
    assert host == ruleset(lab)


@pytest.mark.parametrize("kind", ["reject", "firewalld"])
def test_one_that_comes_later_and_drops_by_its_last_rule_does_too(lab: Lab, kind: str) -> None:
    daemon = ready(lab)
    load(lab, HOSTS[kind])
    daemon.wait_for(" drops what is let in; put back, with 0 holes")
    knock(lab, daemon)
    assert lab.reaches(BASTION4, 22)
    assert lab.reaches(BASTION6, 22)
    assert not is_let_in(lab, BASTION4, 22, source=STRANGER4)
    assert json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["applied"]


@pytest.mark.parametrize("how", ["chain inet filter input { policy accept; }", "delete table inet filter"])
def test_what_the_host_no_longer_shuts_is_shut(lab: Lab, how: str) -> None:
    load(lab, DROP)
    lab.serve(8080)
    daemon = ready(lab)
    load(lab, how)
    daemon.wait_for("put back, with 0 holes")
    assert lab.is_shut(BASTION4, 8080)
    assert lab.is_shut(BASTION6, 8080)


def test_to_look_after_it_costs_little_however_many_rules_there_are(namespace: None) -> None:
    """As many as a program that bans strangers may have, and a FORWARD that drops, as beside Docker."""
    forward = "chain forward { type filter hook forward priority filter; policy drop; }"
    library.run(inet("", more=forward))
    for some in range(6):
        # An ordinary user's socket has no room for all of them.
        bans = (f"ip saddr 198.51.{some}.{each} tcp dport 22 drop" for each in range(100))
        library.run("\n".join(f"add rule inet filter input {ban}" for ban in bans))
    backend = NftablesBackend()
    backend.apply(PLAN)

    def looking(*, changing: bool) -> float:
        began_at = time.process_time()
        assert backend.state(PLAN).applied
        passed = time.process_time() - began_at
        if changing:
            library.run("add rule inet filter input tcp dport 23 drop")
        return passed

    whole = looking(changing=False)
    assert sum(looking(changing=False) for _ in range(4)) < 2 * whole
    library.run("add rule inet filter input tcp dport 23 drop")
    assert sum(looking(changing=True) for _ in range(4)) < 2 * whole


def save_and_restore(lab: Lab) -> None:
    for command in ("iptables-nft", "ip6tables-nft"):
        lab.bastion.run(f"{command}-restore", stdin=lab.bastion.run(f"{command}-save").stdout)


def test_what_iptables_saves_and_restores_keeps_the_entrance(lab: Lab) -> None:
    """As netfilter-persistent does it; a set in that table would come back as an ACCEPT for everybody."""
    iptables_nft(lab, "-P INPUT DROP", "-A INPUT -p ipv6-icmp -j ACCEPT")
    save_and_restore(lab)
    before = ruleset(lab)
    daemon = ready(lab)
    knock(lab, daemon)
    save_and_restore(lab)
    assert lab.reaches(BASTION4, 22)
    assert lab.reaches(BASTION6, 22)
    assert lab.is_shut(BASTION4, 22, source=STRANGER4)
    assert json.loads(lab.nfknock("status", "--json").stdout)["firewall"]["applied"]
    assert not any("somebody else" in line for line in daemon.lines)
    lab.nfknock("remove")
    assert ruleset(lab) == before


def test_the_chain_that_is_asked_for_brings_its_twin(lab: Lab) -> None:
    iptables_nft(lab, "-A INPUT -p tcp --dport 99 -j DROP")
    before = ruleset(lab)
    lab.configure(NFT.replace("[firewall]", '[firewall]\nattach = "ip filter INPUT"'))
    lab.nfknock("apply")
    for family in ("ip", "ip6"):
        chain = lab.bastion.run("nft", "list", "chain", family, "filter", "INPUT").stdout
        assert chain.splitlines()[3].split()[:3] == ["meta", "mark", "0x6e666b6e"]
    assert lab.nfknock("apply").stdout == "unchanged\n"
    lab.nfknock("remove")
    assert ruleset(lab) == before


def test_a_chain_that_is_not_there_cannot_be_asked_for(lab: Lab) -> None:
    load(lab, DROP)
    lab.configure(NFT.replace("[firewall]", '[firewall]\nattach = "inet filter nothing"'))
    before = ruleset(lab)
    done = lab.nfknock("apply", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("refused: firewall.attach: 'inet filter nothing' is no chain with hook input ")
    assert "; there is inet filter input; name another one, or none" in done.stderr
    assert ruleset(lab) == before
    assert any("is no chain" in text for _level, text in examine(lab)["nf_tables"])


def test_a_chain_that_comes_first_cannot_be_asked_for(lab: Lab) -> None:
    """Nothing has been let in there yet."""
    load(lab, DROP.replace("priority filter", "priority -10"))
    lab.configure(NFT.replace("[firewall]", '[firewall]\nattach = "inet filter input"'))
    done = lab.nfknock("apply", check=False)
    assert done.returncode == 1
    assert "'inet filter input' has no hook input or forward, or comes before nfknock" in done.stderr


def test_without_the_chain_that_is_asked_for_nothing_stands_open(lab: Lab) -> None:
    """A flush of everything took it; when the host's ruleset is back, so is the entrance."""
    load(lab, DROP)
    lab.serve(80)
    daemon = ready(lab, ATTACHED)
    knock(lab, daemon)
    before = lab.rules()
    load(lab, "flush ruleset")
    daemon.wait_for("'inet filter input' is no chain with hook input or forward here; there is none, so nfknock stands")
    lab.wait_until_shut(BASTION4, 80)
    assert lab.is_shut(BASTION6, 80)
    assert lab.reaches(BASTION4, 22)
    load(lab, DROP)
    # In another order: the host's table is the later one now.
    wait_until(lambda: sorted(lab.rules().splitlines()) == sorted(before.splitlines()), "what was there to be back")
    assert lab.reaches(BASTION4, 80)
    assert lab.reaches(BASTION6, 22)


def test_a_boot_without_the_chain_that_is_asked_for(lab: Lab) -> None:
    load(lab, DROP)
    lab.serve(80)
    lab.configure(ATTACHED)
    lab.nfknock("apply")
    load(lab, "flush ruleset")
    assert lab.nfknock("apply", check=False).returncode == 1
    done = lab.nfknock("apply", "--or-last")
    assert "warning: firewall.attach: 'inet filter input' is no chain" in done.stderr
    assert lab.is_shut(BASTION4, 80)
    with Daemon(lab.bastion, "--or-last") as daemon:
        load(lab, DROP)
        daemon.wait_for("the firewall was changed by somebody else: inet filter input ")
        assert lab.reaches(BASTION4, 80)


def test_what_legacy_rules_drop_is_refused(lab: Lab) -> None:
    lab.bastion.run("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
    before = ruleset(lab)
    lab.configure(NFT)
    done = lab.nfknock("apply", check=False)
    assert done.returncode == 1
    assert (
        "refused: the legacy tables drop new connections to 22/tcp over IPv4, which the door ssh opens" in done.stderr
    )
    assert ruleset(lab) == before
    # What it says helps.
    lab.configure(IPTABLES)
    assert lab.nfknock("apply").stdout == "changed\n"
    # What is our own in there goes with the move.
    lab.bastion.run("iptables-legacy", "-D", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
    lab.configure(NFT)
    assert lab.nfknock("apply").stdout == "changed\n"


@pytest.mark.parametrize("host", [inet("tcp dport 22 accept; ct state established accept", "drop"), ""])
def test_a_session_that_the_host_lets_in_is_shut_by_nobody(lab: Lab, host: str) -> None:
    if host:
        load(lab, host)
    lab.configure(NFT.replace("22/tcp", "2222/tcp"))
    done = over_ssh(lab, "apply")
    if host:
        assert (done.returncode, done.stdout) == (0, "changed\n")
        return
    assert (done.returncode, done.stdout) == (1, "")
    assert f"refused: this shuts 22/tcp to {CLIENT4}" in done.stderr


def test_nor_one_that_comes_where_nobody_knocks(lab: Lab) -> None:
    """What doors open is hidden at the interfaces where they are."""
    load(lab, inet(f"{NEEDED}; tcp dport 22 accept", "drop"))
    lab.serve(22)
    lab.configure(NFT.replace("[firewall]", '[firewall]\ninterfaces = ["wan0"]'))
    done = over_ssh(lab, "apply")
    assert (done.returncode, done.stdout) == (0, "changed\n")
    assert lab.reaches(BASTION4, 22)


def test_a_port_that_is_shut_already_is_not_shut_again(lab: Lab) -> None:
    lab.configure(NFT.replace("22/tcp", "2222/tcp"))
    over_ssh(lab, "apply", "--force")
    lab.configure(NFT.replace("22/tcp", "2222/tcp").replace("[firewall]", '[firewall]\nallow = ["8080/tcp"]'))
    assert over_ssh(lab, "apply").stdout == "changed\n"


def test_a_trial_that_nobody_confirms_goes_back(lab: Lab) -> None:
    load(lab, DROP)
    lab.configure(NFT)
    before = ruleset(lab)
    assert lab.nfknock("apply", "--confirm", "3", check=False).returncode == 1
    assert ruleset(lab) == before
    lab.nfknock("apply", "--force")
    lab.nfknock("open", "ssh", CLIENT4)
    before = lab.rules()
    lab.configure(NFT.replace("9307", "9308"))
    assert lab.nfknock("apply", "--confirm", "3", check=False).returncode == 1
    assert lab.rules() == before


def test_a_trial_is_taken_back_though_the_hosts_chain_is_another_one_by_then(lab: Lab) -> None:
    load(lab, DROP)
    lab.serve(22)
    lab.configure(NFT)
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", CLIENT4)
    lab.configure(NFT.replace("9307", "9308"))
    lab.nfknock("apply", "--confirm", "4", "--no-wait")
    load(lab, f"delete table inet filter; {DROP.replace('inet filter', 'inet other')}")
    # Without a daemon: it would write what it knows.
    wait_until(lambda: "9308" not in lab.rules(), "the roll-back")
    assert lab.reaches(BASTION4, 22)
    assert not is_let_in(lab, BASTION4, 22, source=STRANGER4)
    lab.configure(NFT)
    assert "is gone" not in lab.nfknock("status", "--json").stdout
    lab.daemon()


def test_a_trial_is_taken_back_though_the_hosts_chain_is_gone(lab: Lab) -> None:
    """Then nobody shuts anything until somebody who knows the plan looks: the daemon does, as it is told to reload."""
    load(lab, DROP)
    lab.serve(80)
    ready(lab)
    lab.configure(NFT.replace("9307", "9308"))
    lab.nfknock("apply", "--confirm", "3", "--no-wait")
    load(lab, "delete table inet filter")
    wait_until(lambda: "9308" not in lab.rules(), "the roll-back")
    lab.wait_until_shut(BASTION4, 80)
    wait_until(lambda: '"applied": true' in lab.nfknock("status", "--json").stdout, "the repair")


def test_a_trial_is_taken_back_however_much_is_open(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace, as in a container, libnftables has no room for a thousand holes in one transaction."""
    backend, run = NftablesBackend(), library.run
    backend.apply(PLAN)
    many = [hole(f"198.51.{100 + at // 200}.{at % 200}") for at in range(1600)]
    for at in range(0, len(many), 200):
        backend.open(many[at : at + 200])
    take_back = backend.remember()
    backend.apply(replace(PLAN, knock_ports=(Port(7999),), knocks_a_second=5))
    written: list[str] = []

    def runs(commands: str) -> str:
        written.append(commands)
        return run(commands)

    monkeypatch.setattr(library, "run", runs)
    take_back()
    assert "198.51." not in "".join(written)
    assert "limited4" not in run("list table inet nfknock")
    assert backend.state(PLAN).applied
    assert not backend.apply(PLAN).changed
    assert sorted(backend.holes(), key=str) == sorted(many, key=str)


@pytest.mark.parametrize("write", ["apply", "take_back"])
def test_a_door_that_is_opened_first_while_rules_are_written_is_open(
    namespace: None, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its set is made after the others were looked for, by another process."""
    backend, run = NftablesBackend(), library.run
    backend.apply(PLAN)
    take_back = backend.remember()

    def runs(commands: str) -> str:
        if "flush chain" in commands:
            monkeypatch.setattr(library, "run", run)
            NftablesBackend().open([hole(CLIENT4)])
        return run(commands)

    monkeypatch.setattr(library, "run", runs)
    if write == "apply":
        backend.apply(replace(PLAN, knock_ports=(Port(7999),)))
    else:
        take_back()
    assert backend.state().damage == ()
    assert run("list chain inet nfknock holes").count("@h4_ssh") == 1


def test_interfaces_by_their_beginning(lab: Lab) -> None:
    daemon = ready(lab, NFT.replace("[firewall]", '[firewall]\ninterfaces = ["b+"]'))
    knock(lab, daemon)
    assert lab.reaches(BASTION4, 22)
    lab.configure(NFT.replace("[firewall]", '[firewall]\ninterfaces = ["c+"]'))
    lab.nfknock("apply")
    assert lab.is_shut(BASTION4, 22)


def test_a_knock_is_answered_as_a_closed_port_would(lab: Lab) -> None:
    daemon = ready(lab, NFT.replace("[reader]", '[reader]\nanswer = "reject"'))
    for bastion in (BASTION4, BASTION6):
        with pytest.raises(ConnectionRefusedError):
            lab.connect(bastion, 7101)
    daemon.wait_for("ssh: Stage 1", count=2)
    assert lab.is_shut(BASTION4, 7100)


def test_a_full_set_is_said_and_shuts_nobody_out(lab: Lab) -> None:
    lab.configure(NFT.replace("[firewall]", "[firewall]\nset_size = 1"))
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", CLIENT4)
    done = lab.nfknock("open", "ssh", STRANGER4, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "nfknock: a set of holes is full; raise `set_size` under [firewall] and run `nfknock apply`, or close some\n",
    )
    [hole] = json.loads(lab.nfknock("status", "--json").stdout)["holes"]
    assert hole["source"] == CLIENT4
    lab.nfknock("open", "ssh", CLIENT4)


def sized(size: int) -> NftablesBackend:
    return NftablesBackend(choice=BackendChoice(name="nftables", set_size=size))


@pytest.mark.parametrize("linux", ["6.5 or later", "before"])
def test_a_larger_set_has_what_the_smaller_had(namespace: None, linux: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 6.5 a kernel gives no set another size, so the set is made anew."""
    if linux == "before":
        monkeypatch.setattr(room, "_ask_for", lambda _names, _size: None)
    sized(2).apply(PLAN)
    first = [replace(hole(CLIENT4), packets=7, bytes=420), hole(STRANGER4, seconds=30)]
    sized(2).open(first)
    with pytest.raises(BackendError, match="a set of holes is full; raise `set_size`"):
        sized(2).open([hole("192.0.2.9")])
    larger = sized(100)
    assert larger.apply(PLAN, dry_run=True).difference == ("# the set h4_ssh has room for 100 elements instead of 2",)
    assert larger.apply(PLAN).changed
    assert not larger.apply(PLAN).changed
    assert larger.state(PLAN).applied
    assert sorted(larger.holes(), key=str) == sorted(first, key=str)
    larger.open([hole("192.0.2.9")])


def test_a_set_that_would_be_too_small_stays(namespace: None) -> None:
    sized(100).apply(PLAN)
    sized(100).open([hole(CLIENT4), hole(STRANGER4)])
    assert not sized(1).apply(PLAN).changed
    assert len(sized(1).holes()) == 2
    assert sized(2).apply(PLAN).changed
    assert list(elements.sizes().values()) == [2]


def test_what_somebody_wrote_into_a_set_is_taken_out(lab: Lab) -> None:
    lab.serve(22)
    lab.configure(NFT)
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", CLIENT4)
    says = 'comment "nfknock hole ssh opened 2026-11-21T04:00:00.000Z closes 2099-11-21T04:00:00.000Z"'
    others = (f"192.0.2.9 . tcp . 22 {says}", "192.0.2.10 . tcp . 22 timeout 1h", '* comment "x"')
    for element in (f"{STRANGER4} . tcp . 22", *others):
        load(lab, f"add element inet nfknock h4_ssh {{ {element} }}")
    assert lab.reaches(BASTION4, 22, source=STRANGER4)
    with Daemon(lab.bastion) as daemon:
        daemon.wait_for("what was in h4_ssh and is no hole was taken out")
        assert lab.is_shut(BASTION4, 22, source=STRANGER4)
        assert lab.reaches(BASTION4, 22)
        [hole] = json.loads(lab.nfknock("status", "--json").stdout)["holes"]
        assert hole["source"] == CLIENT4
        # Nor is it in the way of who knocks.
        load(lab, "add element inet nfknock h4_ssh { 192.0.2.9 . tcp . 22, * }")
        lab.nfknock("open", "ssh", "192.0.2.9")
        assert len(json.loads(lab.nfknock("status", "--json").stdout)["holes"]) == 2


def test_holes_that_a_move_left_half_way_let_nobody_in(namespace: None) -> None:
    """It was killed before it wrote a rule; another backend's firewall stood, and they were shut there since."""
    left = hole(CLIENT4)
    name = elements.Name.of(left, left.opens[0])
    library.run(f"add table inet nfknock; {script.add_set(name, 10)}")
    elements.write((), [left], 1.0)
    backend = NftablesBackend()
    assert not backend.stands()
    backend.apply(PLAN)
    assert backend.holes() == []


@pytest.mark.parametrize("shape", ["type ipv4_addr; flags interval", "type inet_service", "type mark; flags timeout"])
def test_what_cannot_be_read_is_no_hole(namespace: None, shape: str) -> None:
    name = elements.Name("odd", 4, is_behind=False)
    library.run(f"add table inet nfknock; add set inet nfknock {name} {{ {shape}; }}")
    # What stands for all the rest, among intervals, is more than this library's parser can take.
    values = "192.0.2.0/24, 198.51.100.0/24" if "interval" in shape else "22, *"
    library.run(f"add element inet nfknock {name} {{ {values} }}")
    assert list(elements.read(name)) == []
    assert elements.take_out_others(name)[0] >= 2
    assert elements.take_out_others(name) == (0, [])


def test_nfqueue_in_nf_tables_or_the_mend_where_it_has_none(lab: Lab) -> None:
    probe = "add table inet t; add chain inet t c; add rule inet t c queue num 5; delete table inet t"
    has_queue = lab.bastion.run("nft", probe, check=False).returncode == 0
    lab.configure(NFT.replace('"nflog"', '"nfqueue"'))
    if has_queue:
        lab.serve(22)
        lab.nfknock("apply")
        knock(lab, lab.daemon())
        assert lab.reaches(BASTION4, 22)
        assert lab.reaches(BASTION6, 22)
        return
    done = lab.nfknock("apply", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        'nfknock: nf_tables of this kernel cannot send packets to NFQUEUE; say kind = "nflog" under [reader]\n',
    )
    assert ruleset(lab) == ""


def test_a_host_without_the_library_is_told_which_one(lab: Lab) -> None:
    [library] = Path("/usr/lib").glob("*/libnftables.so.1")
    lab.configure(NFT)
    hidden = f"mount --bind /dev/null {library} && exec {NFKNOCK[0]} apply"
    done = lab.bastion.run("unshare", "--mount", "sh", "-c", hidden, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "nfknock: libnftables.so.1 is not installed; on Debian and Ubuntu: apt install libnftables1\n",
    )


def test_doctor_says_how_it_stands(lab: Lab) -> None:
    lab.configure(NFT)
    found = examine(lab)
    assert found["nf_tables"] == [
        ("ok", "nf_tables: no chain of the host's own drops what nfknock lets in; it stands alone; ")
    ]
    assert found["libraries"][0][1].startswith("installed: libnftables, pyroute2")
    assert not {"legacy", "extensions", "lock", "iptables-command"} & found.keys()
    load(lab, HOSTS["ufw"])
    found = examine(lab)
    assert "what nfknock lets in passes ip filter INPUT by a rule of its own" in found["nf_tables"][0][1]
    assert levels(found, "ufw") == ["ok"]
    assert levels(found, "nftables") == ["ok"]
    lab.nfknock("apply")
    found = examine(lab, exit_code=0)
    assert levels(found, "firewall") == levels(found, "ipv6") == ["ok"]
    lab.bastion.run("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
    assert levels(examine(lab), "legacy-rules") == ["fault"]


def test_doctor_takes_auto_for_what_it_would_come_to(lab: Lab) -> None:
    lab.configure(AUTO)
    assert "nf_tables" not in examine(lab)
    load(lab, DROP)
    assert "passes inet filter input" in examine(lab)["nf_tables"][0][1]


def test_a_session_from_before_goes_on(lab: Lab) -> None:
    lab.serve(22)
    lab.configure(NFT)
    session = lab.connect(BASTION4, 22)
    lab.nfknock("apply")
    assert echo(session) == b"hello\n"

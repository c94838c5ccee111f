"""Doors that open a port on a host behind the bastion: a client, a bastion that forwards, and that host."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.kernel.test_apply import is_rule
from tests.kernel.test_cutting import is_dead, is_deaf, talkative
from tests.lab import (
    BASTION4,
    BASTION6,
    CLIENT4,
    CLIENT6,
    NFKNOCK,
    STRANGER4,
    STRANGER6,
    Daemon,
    Host,
    Lab,
    Service,
    echo,
    wait_until,
)
from tests.setting import only_for
from tests.vandal import IS_NFTABLES, LEGACY, own_rules, vandalise

BEHIND4, BEHIND6 = "198.51.100.5", "2001:db8:1::5"
GATE4, GATE6 = "198.51.100.1", "2001:db8:1::1"
"""The bastion's addresses on the cable to the host behind."""

DOOR = f"""
[doors.db]
sequence = ["7101", "8203/udp", "9307"]
open = [
    "22/tcp",
    {{ port = "5432/tcp", to = "{BEHIND4}" }},
    {{ port = "9999/udp", to = "{BEHIND4}" }},
    {{ port = "5432/tcp", to = "{BEHIND6}" }},
    {{ port = "9999/udp", to = "{BEHIND6}" }},
]
open_timeout = "30s"
"""
PLAIN = '[doors.db]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'
KNOCKS = ("7101:tcp", "8203:udp", "9307:tcp")
FAMILIES = pytest.mark.parametrize(
    ("bastion", "client", "stranger", "behind"),
    [(BASTION4, CLIENT4, STRANGER4, BEHIND4), (BASTION6, CLIENT6, STRANGER6, BEHIND6)],
)
COMMANDS = ("iptables-nft", "ip6tables-nft") if IS_NFTABLES else LEGACY
"""What the host has rules of its own by: tables of the kind that nfknock writes."""
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "status.schema.json").read_text())


@pytest.fixture
def host_behind(lab: Lab) -> Iterator[Host]:
    host = Host(lab.environment)
    yield host
    host.stop()


@pytest.fixture
def path(lab: Lab, host_behind: Host) -> Iterator[Lab]:
    """The lab, with a host behind the bastion that has a service to hide (5432) and another (8080)."""
    _wire(lab, host_behind)
    with Service(host_behind, 5432), Service(host_behind, 8080):
        lab.serve(22)
        wait_until(lambda: lab.reaches(BEHIND4, 8080) and lab.reaches(BEHIND6, 8080), "the way through")
        yield lab


def _wire(lab: Lab, behind: Host) -> None:
    bastion = lab.bastion
    bastion.run("ip", "link", "add", "b1", "type", "veth", "peer", "name", "h0", "netns", str(behind.pid))
    for host, device, addresses in ((bastion, "b1", (GATE4, GATE6)), (behind, "h0", (BEHIND4, BEHIND6))):
        host.run("sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
        for address in addresses:
            host.run("ip", "addr", "add", f"{address}/{'64' if ':' in address else '24'}", "dev", device)
        host.run("ip", "link", "set", device, "up")
    forward(lab, on=True)
    for host, here, there in ((lab.client, BASTION4, BEHIND4), (lab.client, BASTION6, BEHIND6)):
        host.run("ip", "route", "add", there, "via", here)
    for gate in (GATE4, GATE6):
        behind.run("ip", "-6" if ":" in gate else "-4", "route", "add", "default", "via", gate)


def forward(lab: Lab, *, on: bool) -> None:
    for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        lab.bastion.run("sysctl", "-qw", f"{setting}={on:d}")


def on_both(lab: Lab, *arguments: str) -> None:
    for command in COMMANDS:
        lab.bastion.run(command, *arguments)


def ready(lab: Lab, timeout: str = "30s", more: str = "") -> Daemon:
    lab.configure(DOOR.replace("30s", timeout) + more)
    lab.nfknock("apply")
    return lab.daemon()


def opened(lab: Lab, daemon: Daemon, *bastions: str) -> None:
    for count, bastion in enumerate(bastions, 1):
        lab.knock(bastion, *KNOCKS)
        daemon.wait_for(": db: opened", count=count)


def status(lab: Lab) -> dict[str, Any]:
    report = json.loads(lab.nfknock("status", "--json").stdout)
    jsonschema.validate(report, SCHEMA)
    return dict(report)


@FAMILIES
def test_a_knock_opens_what_is_behind_for_its_address_alone(
    path: Lab, bastion: str, client: str, stranger: str, behind: str
) -> None:
    daemon = ready(path)
    assert path.is_shut(behind, 5432)
    opened(path, daemon, bastion)
    daemon.wait_for(f"{client}: db: opened 22/tcp, 5432/tcp to {behind}, 9999/udp to {behind} for 30 s")
    assert path.reaches(behind, 5432)
    assert path.reaches(bastion, 22)
    assert path.is_shut(behind, 5432, source=stranger)
    assert path.reaches(behind, 8080, source=stranger), "other traffic passes as before"
    path.nfknock("close", client)
    assert path.is_shut(behind, 5432)


@FAMILIES
def test_it_closes_in_time_and_the_session_lives_on(
    path: Lab, bastion: str, client: str, stranger: str, behind: str
) -> None:
    daemon = ready(path, "3s")
    opened(path, daemon, bastion)
    opened_at = time.time()
    session = path.connect(behind, 5432)
    daemon.wait_for(f"{client}: db: closed after 3 s")
    assert 2 < time.time() - opened_at < 4.5
    assert path.is_shut(behind, 5432)
    assert echo(session) == b"hello\n"
    assert "nfknock hole" not in path.rules()


@FAMILIES
def test_behind_a_killed_daemon_the_kernel_closes(
    path: Lab, bastion: str, client: str, stranger: str, behind: str
) -> None:
    daemon = ready(path, "3s")
    opened(path, daemon, bastion)
    opened_at = time.time()
    session = path.connect(behind, 5432)
    daemon.process.kill()
    path.wait_until_shut(behind, 5432)
    assert 2 <= time.time() - opened_at <= 4.5
    assert echo(session) == b"hello\n"


def test_knocking_again_renews_and_a_restart_adopts(path: Lab) -> None:
    daemon = ready(path)
    opened(path, daemon, BASTION4, BASTION6)
    path.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: db: renewed 22/tcp, 5432/tcp to {BEHIND4}, 9999/udp to {BEHIND4} for 30 s")
    assert path.rules().count("nfknock hole") == 6
    daemon.process.kill()
    daemon.process.wait()
    before = path.rules()
    with Daemon(path.bastion) as heir:
        assert heir.lines[0] == "adopted 2 open holes"
    assert path.rules() == before


@pytest.mark.parametrize("how", ["-P FORWARD DROP", "-A FORWARD -j DROP"])
@FAMILIES
def test_a_host_that_drops_what_it_forwards(
    path: Lab, bastion: str, client: str, stranger: str, behind: str, how: str
) -> None:
    """Replies pass, and so does what ICMP has to say about a session."""
    on_both(path, *how.split())
    daemon = ready(path, "4s")
    opened(path, daemon, bastion)
    session = path.connect(behind, 5432)
    with path.client.socket(socket.AF_INET6 if ":" in behind else socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.connect((behind, 9999))
        datagram.send(b"nobody listens")
        with pytest.raises(ConnectionRefusedError):
            datagram.recv(1)
    assert path.is_shut(behind, 8080)
    daemon.wait_for("closed after")
    assert echo(session) == b"hello\n"
    assert how in path.bastion.run(COMMANDS[":" in behind], "-S", "FORWARD").stdout.splitlines()


@FAMILIES
def test_what_the_administrator_translates_is_guarded_too(
    path: Lab, bastion: str, client: str, stranger: str, behind: str
) -> None:
    """FORWARD sees the address behind, whichever the client used; so does whoever counts sessions."""
    to = f"[{behind}]:5432" if ":" in behind else f"{behind}:5432"
    nat = ("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", bastion, "--dport", "15432")
    path.bastion.run(COMMANDS[":" in behind], *nat, "-j", "DNAT", "--to-destination", to)
    assert path.reaches(bastion, 15432)
    daemon = ready(path)
    # From another address: who asks and gives up goes on asking for a while, and would be counted.
    assert path.is_shut(bastion, 15432, source=stranger)
    opened(path, daemon, bastion)
    sessions = [path.connect(bastion, 15432), path.connect(behind, 5432), path.connect(bastion, 22)]
    path.connect(behind, 8080)
    [hole] = status(path)["holes"]
    assert hole["sessions"] == 3
    assert hole["packets"] >= 3
    path.nfknock("close", "--all")
    assert path.is_shut(bastion, 15432)
    assert [echo(session) for session in sessions] == [b"hello\n"] * 3


def test_status_says_where_holes_lead(path: Lab) -> None:
    path.configure(DOOR)
    path.nfknock("apply")
    path.nfknock("open", "db", CLIENT4)
    [hole] = status(path)["holes"]
    assert hole["open"] == ["22/tcp", "5432/tcp", "9999/udp"]
    assert hole["forwarded"] == [{"port": "5432/tcp", "to": BEHIND4}, {"port": "9999/udp", "to": BEHIND4}]
    assert f"22/tcp, 5432/tcp to {BEHIND4}, 9999/udp to {BEHIND4}" in path.nfknock("status").stdout
    path.configure(PLAIN)
    path.nfknock("apply")
    [hole] = status(path)["holes"]
    assert (hole["open"], "forwarded" in hole) == (["22/tcp"], False)


def test_a_source_whose_family_gets_nothing(path: Lab) -> None:
    door = f'[doors.db]\nsequence = ["7101", "8203/udp", "9307"]\nopen = [{{ port = 5432, to = "{BEHIND4}" }}]\n'
    path.configure(door)
    path.nfknock("apply")
    assert BEHIND4 in path.rules()
    assert BEHIND6 not in path.rules()
    assert path.reaches(BEHIND6, 5432)
    daemon = path.daemon()
    path.knock(BASTION6, *KNOCKS)
    daemon.wait_for(f"{CLIENT6}: db: opens nothing for IPv6 addresses")
    done = path.nfknock("open", "db", CLIENT6, check=False)
    assert (done.returncode, done.stderr) == (2, "nfknock: the door db opens nothing for IPv6 addresses\n")
    opened(path, daemon, BASTION4)
    assert path.reaches(BEHIND4, 5432)


def test_interfaces_limit_what_is_shut_and_what_is_opened(path: Lab) -> None:
    path.configure(DOOR + '[firewall]\ninterfaces = ["other0"]\n')
    path.nfknock("apply")
    assert path.reaches(BEHIND4, 5432)
    path.configure(DOOR + '[firewall]\ninterfaces = ["other0", "b0"]\n')
    path.nfknock("apply")
    assert path.is_shut(BEHIND4, 5432)
    path.nfknock("open", "db", CLIENT4)
    assert path.reaches(BEHIND4, 5432)


def test_apply_warns_where_nothing_is_forwarded(path: Lab) -> None:
    path.configure(DOOR)
    assert path.nfknock("apply").stderr == ""
    forward(path, on=False)
    warnings = [
        f"warning: IPv{version} forwarding is off, so nothing is forwarded; turn it on with `sysctl {setting}=1`"
        for version, setting in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding"))
    ]
    assert path.nfknock("apply").stderr.splitlines() == warnings
    assert path.nfknock("apply", "--dry-run").stderr.splitlines() == warnings
    path.configure(PLAIN)
    assert path.nfknock("apply").stderr == ""


FOREIGN = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -p tcp -m tcp --dport 8080 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


def foreign(lab: Lab) -> str:
    for command in COMMANDS:
        lab.bastion.run(f"{command}-restore", stdin=FOREIGN)
    return lab.rules()


def test_remove_leaves_forward_as_it_was(path: Lab) -> None:
    before = foreign(path)
    path.configure(DOOR)
    path.nfknock("apply")
    for source in (CLIENT4, CLIENT6):
        path.nfknock("open", "db", source)
    for command in COMMANDS:
        listing = path.bastion.run(command, "-S", "FORWARD").stdout.splitlines()
        assert [line.split()[-1] for line in listing] == [
            "DROP",
            "ACCEPT" if IS_NFTABLES else "NFKNOCK_FORWARD",
            "DOCKER-USER",
            "ACCEPT",
            "ACCEPT",
        ]
    ours = set(path.rules().splitlines()) - set(before.splitlines())
    assert ours
    assert all('comment "nfknock' in line for line in ours if is_rule(line))
    path.nfknock("remove")
    assert path.rules() == before


def test_with_the_last_door_that_forwards_the_chains_go(path: Lab) -> None:
    foreign(path)
    path.configure(PLAIN)
    path.nfknock("apply")
    plain = path.rules()
    assert BEHIND4 not in plain
    path.configure(DOOR)
    path.nfknock("apply")
    assert BEHIND4 in path.rules()
    path.configure(PLAIN)
    assert path.nfknock("apply").stdout == "changed\n"
    assert path.rules() == plain


def test_a_reload_shuts_what_is_forwarded_no_more(path: Lab) -> None:
    daemon = ready(path)
    opened(path, daemon, BASTION4)
    path.configure(PLAIN)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    assert f"{CLIENT4}: db: closed: the door does not open that any more" in daemon.lines
    assert path.reaches(BEHIND4, 5432), "nobody guards it now"
    assert path.reaches(BASTION4, 22)


def test_a_dry_run_prints_the_difference(path: Lab) -> None:
    before = foreign(path)
    path.configure(PLAIN)
    assert "forward" not in path.nfknock("apply", "--dry-run").stdout.lower()
    path.configure(DOOR)
    lines = path.nfknock("apply", "--dry-run").stdout.splitlines()
    assert path.rules() == before
    if IS_NFTABLES:
        assert any(re.fullmatch(r"\+ jump forwarded comment .*", line) for line in lines)
        for family, behind in (("ip", BEHIND4), ("ip6", BEHIND6)):
            start = f"+ {family} daddr {behind} tcp dport 5432 "
            ends = [line.removeprefix(start).partition(" comment")[0] for line in lines if line.startswith(start)]
            assert ends == ["jump forward_holes", "drop"]
    else:
        assert any(re.fullmatch(r"\+ -A FORWARD -m comment .* -j NFKNOCK_FORWARD", line) for line in lines)
        for behind in (f"{BEHIND4}/32", f"{BEHIND6}/128"):
            start = f"+ -A NFKNOCK_FORWARD -d {behind} -p tcp -m tcp --dport 5432 "
            assert [line.split()[-1] for line in lines if line.startswith(start)] == ["NFKNOCK_FORWARD_HOLES", "DROP"]
    assert not any("DOCKER-USER" in line for line in lines)
    path.nfknock("apply")
    assert path.nfknock("apply", "--dry-run").stdout == "unchanged\n"
    on_both(path, "-I", "FORWARD", "-j", "ACCEPT")
    assert path.nfknock("apply", "--dry-run").stdout.splitlines()[-1] == "changed"


DAMAGE = (
    "flush FORWARD",
    "flush",
    "flush and delete",
    "delete FORWARD",
    "one rule of FORWARD",
    "another rule of FORWARD",
    "in front",
    "another jump",
)


@pytest.mark.parametrize("kind", DAMAGE)
def test_it_is_put_back_open_holes_included(path: Lab, kind: str) -> None:
    daemon = ready(path)
    opened(path, daemon, BASTION4, BASTION6)
    before = own_rules(path)
    daemon.signal(signal.SIGSTOP)  # or it may be put back before anybody looks
    vandalise(path, kind)
    assert not json.loads(path.nfknock("status", "--json").stdout)["firewall"]["applied"]
    daemon.signal(signal.SIGCONT)
    wait_until(lambda: own_rules(path) == before, "the rules to be back")
    daemon.wait_for("the firewall was changed by somebody else: ")
    for behind, stranger in ((BEHIND4, STRANGER4), (BEHIND6, STRANGER6)):
        assert path.reaches(behind, 5432)
        assert path.is_shut(behind, 5432, source=stranger)
    for command in () if IS_NFTABLES else COMMANDS:
        assert path.bastion.run(command, "-S", "FORWARD").stdout.splitlines()[1].endswith("-j NFKNOCK_FORWARD")


def test_a_knock_repairs_the_way_that_it_opens(path: Lab) -> None:
    daemon = ready(path)
    vandalise(path, "flush FORWARD")
    opened(path, daemon, BASTION4)
    assert path.reaches(BEHIND4, 5432)


def test_nothing_is_opened_behind_a_jump_that_is_gone(path: Lab) -> None:
    path.configure(DOOR)
    path.nfknock("apply")
    vandalise(path, "flush FORWARD")
    done = path.nfknock("open", "db", CLIENT4, check=False)
    assert (done.returncode, done.stderr) == (1, "nfknock: the firewall is not in place; run `nfknock apply` first\n")
    path.nfknock("apply")
    path.configure(DOOR.replace("5432", "5433"))
    done = path.nfknock("open", "db", CLIENT4, check=False)
    line = f"nfknock: the firewall does not guard 5433/tcp to {BEHIND4} yet; run `nfknock apply` first\n"
    assert (done.returncode, done.stderr) == (1, line)


@only_for("iptables")
def test_what_nobody_wrote_among_the_holes_goes(path: Lab) -> None:
    path.configure(DOOR)
    path.nfknock("apply")
    path.nfknock("open", "db", CLIENT4)
    rules = path.bastion.run("iptables-legacy", "-S", "NFKNOCK_FORWARD_HOLES").stdout.splitlines()
    [rule] = [line for line in rules if " 5432 " in line]
    # For a whole network, to a whole network, among the bastion's own holes, and something else altogether.
    wider = rule.replace(f"{CLIENT4}/32", "192.0.2.0/24")
    further = rule.replace(f"{BEHIND4}/32", "198.51.100.0/24")
    misplaced = rule.replace("NFKNOCK_FORWARD_HOLES", "NFKNOCK_HOLES")
    for line in (wider, further, misplaced, "-A NFKNOCK_FORWARD_HOLES -j ACCEPT"):
        path.bastion.run("sh", "-c", f"iptables-legacy {line}")
    with Daemon(path.bastion) as daemon:
        said = "\n".join(daemon.lines)
        assert "192.0.2.0: db: closed: its rule was edited" in said
        assert f"{CLIENT4}: db: closed: its rule was edited" in said
        assert f"{CLIENT4}: db: closed: the door does not open that any more" in said
        assert "ipv4: a rule in NFKNOCK_FORWARD_HOLES that is no hole was taken out" in said
        assert "adopted 1 open hole" in said
    assert path.bastion.run("iptables-legacy", "-S", "NFKNOCK_FORWARD_HOLES").stdout.splitlines() == rules


@only_for("iptables", "ipset")
def test_the_second_family_cannot_be_written(path: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both families or none, in FORWARD as well."""
    monkeypatch.chdir(Path(__file__).parents[2])
    failing = [sys.executable, "-m", "tests.kernel.seccomp", "memory6", *NFKNOCK]
    for configuration in (DOOR, PLAIN):
        before = foreign(path)
        path.configure(configuration)
        assert path.bastion.run(*failing, "apply", check=False).returncode == 1
        assert path.rules() == before
        path.configure(DOOR)
        path.nfknock("apply")
        path.nfknock("open", "db", CLIENT4)
        before = path.rules()
        path.configure(PLAIN)
        for verb in ("apply", "remove"):
            assert path.bastion.run(*failing, verb, check=False).returncode == 1
            assert path.rules() == before


def test_a_tracked_session_goes_on_through_the_first_apply(path: Lab) -> None:
    path.bastion.run(COMMANDS[0], "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    session = path.connect(BEHIND4, 5432)
    ready(path)
    assert echo(session) == b"hello\n"
    assert path.is_shut(BEHIND4, 5432)


@FAMILIES
@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_an_untracked_session_is_cut_until_the_host_behind_speaks(
    path: Lab, host_behind: Host, policy: str, bastion: str, client: str, stranger: str, behind: str
) -> None:
    """Without any rule the kernel tracks nothing, and what comes in on a standing session is a stranger's.

    What the host behind says is picked up as a session of its own, if FORWARD lets that through.
    """
    with host_behind.socket(socket.AF_INET6 if ":" in behind else socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((behind, 5433))
        listener.listen()
        session = path.connect(behind, 5433)
        server, _ = listener.accept()
    with server:
        path.configure(DOOR.replace("5432", "5433"))
        path.nfknock("apply")
        on_both(path, "-P", "FORWARD", policy)
        server.settimeout(0.5)
        session.send(b"is anybody there?")
        with pytest.raises(TimeoutError):
            server.recv(100)
        server.send(b"it is me")
        session.settimeout(1)
        if policy == "DROP":
            with pytest.raises(TimeoutError):
                session.recv(100)
            return
        assert session.recv(100) == b"it is me"
        server.settimeout(5)
        assert server.recv(100) == b"is anybody there?"
    assert path.is_shut(behind, 5433)


def test_sessions_are_picked_up_by_an_apply_that_guards_nothing_behind(path: Lab) -> None:
    """The way round that docs/configuration.md names."""
    session = path.connect(BEHIND4, 5432)
    path.configure(PLAIN)
    path.nfknock("apply")
    assert echo(session) == b"hello\n"
    path.configure(DOOR)
    path.nfknock("apply")
    assert echo(session) == b"hello\n"
    assert path.is_shut(BEHIND4, 5432)


def test_without_repair_what_is_in_front_is_said_and_knocks_work(path: Lab) -> None:
    daemon = ready(path, more="[firewall]\nrepair = false\n")
    said = "ipv4: FORWARD has rules in front of its jump to NFKNOCK_FORWARD"
    if IS_NFTABLES:
        said = "the rules of forward were changed"
        path.bastion.run("nft", "insert", "rule", "inet", "nfknock", "forward", "ip", "saddr", STRANGER4, "drop")
    else:
        path.bastion.run("iptables-legacy", "-I", "FORWARD", "-s", STRANGER4, "-j", "DROP")
    daemon.wait_for(said)
    assert status(path)["firewall"]["damage"] == [said]
    opened(path, daemon, BASTION4)
    assert path.reaches(BEHIND4, 5432)


@FAMILIES
def test_shutting_early_cuts_the_session_behind_and_nothing_revives_it(
    path: Lab, host_behind: Host, bastion: str, client: str, stranger: str, behind: str
) -> None:
    lab = path
    lab.configure(DOOR.replace("5432/tcp", "5433/tcp") + "cut_sessions = true\n")
    lab.nfknock("apply")
    daemon = lab.daemon()
    with talkative(host_behind, 5433) as heard:
        opened(lab, daemon, bastion)
        here, session = lab.connect(bastion, 22), lab.connect(behind, 5433)
        session.sendall(b"before\n")
        assert session.recv(100)
        assert lab.nfknock("close", "db", client).stdout.endswith(f"2 sessions were cut\n{client}: db: closed\n")
        assert is_deaf(session, heard)
        assert is_dead(here)

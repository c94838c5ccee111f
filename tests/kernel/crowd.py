"""Many clients at once, whose knocks leave as fast as a socket is made; what the firewall lists; and when it shuts."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nfknock.core.model import Port
from tests.lab import BASTION4, BASTION6, Host, Lab
from tests.setting import CHOSEN

# Rules and chains of the host's own, which nfknock finds and leaves. The policies differ: `remove` has to know them.
FOREIGN = """*filter
:INPUT {policy} [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:f2b-sshd - [0:0]
:NFKNOCKERS - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -p tcp -m tcp --dport 25 -m comment --comment "nfknock is not ours here" -j ACCEPT
-A INPUT -m limit --limit 5/sec -j NFKNOCKERS
-A FORWARD -i eth0 -o eth1 -j ACCEPT
-A NFKNOCKERS -j RETURN
-A f2b-sshd -s {stranger} -j DROP
-A f2b-sshd -j RETURN
COMMIT
"""
_NEEDED = """-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
"""
_HOLE = re.compile(
    r"-A \S+ -s (?P<source>[^\s/]+)(?:/32|/128)? -p (?P<protocol>tcp|udp) (?:-m (?:tcp|udp) )?--dport (?P<port>\d+) "
    r"(?:-m time --datestop \S+ )?"
    r'(?:-m comment )?--comment "nfknock hole (?P<door>\S+) opened \S+ closes (?P<closes>\S+)" -j ACCEPT'
)
_FORCED_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE, which Python does not name
_BUFFER = 1 << 23
_ANSWER_TIMEOUT = 0.2
_UNANSWERED = 3
_MOST_IPV4 = 2 * 230


def say(text: str) -> None:
    """Print figures and seeds: pytest shows them when a test fails, and always with -s."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def put_foreign_rules(lab: Lab, *, policy4: str = "ACCEPT", policy6: str = "DROP") -> None:
    """Let the bastion have rules of its own, in both families, in the kind of tables that nfknock writes."""
    variant = "nft" if CHOSEN.backend == "nftables" else "legacy"
    for command, policy, stranger, icmp in (
        ("iptables", policy4, "198.51.100.7", "icmp"),
        ("ip6tables", policy6, "2001:db8:7::7", "ipv6-icmp"),
    ):
        text = FOREIGN.format(policy=policy, stranger=stranger)
        if variant == "nft":
            # What this chain does not let in stays out, whatever nfknock's baseline says.
            text = text.replace("COMMIT", _NEEDED.format(icmp=icmp) + "COMMIT")
        lab.bastion.run(f"{command}-{variant}-restore", stdin=text)


def move_in(lab: Lab, count: int) -> list[str]:
    """Give the client's host so many addresses more, of both families in turn, and return them."""
    sources = [
        f"192.0.2.{20 + n // 2}" if n % 2 == 0 and n < _MOST_IPV4 else f"2001:db8::{0x1000 + n:x}" for n in range(count)
    ]
    lines = [
        f"addr add {source}/64 dev c0 nodad preferred_lft 0" if ":" in source else f"addr add {source}/24 dev c0"
        for source in sources
    ]
    lab.client.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    return sources


def hit(source: str, sequence: Iterable[Port]) -> None:
    """Knock once, from the client's namespace, where the calling thread has to be."""
    family, bastion = (socket.AF_INET6, BASTION6) if ":" in source else (socket.AF_INET, BASTION4)
    for port in sequence:
        with socket.socket(family, socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM) as knock:
            knock.settimeout(0)
            knock.bind((source, 0))
            if port.protocol == "udp":
                knock.sendto(b"x", (bastion, port.number))
            else:
                knock.connect_ex((bastion, port.number))


@contextlib.contextmanager
def beside(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let each work in a thread of its own, until the block ends and sets its event. One that fails, fails the test."""
    enough = threading.Event()
    failures: list[BaseException] = []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(enough)
        except BaseException as exc:  # noqa: BLE001  (raised again below)
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def widen(end: socket.socket) -> None:
    """Give a socket room for what comes while this process is held up: as much as it may have."""
    try:
        end.setsockopt(socket.SOL_SOCKET, _FORCED_RECEIVE_BUFFER, _BUFFER)
    except PermissionError:
        # An ordinary user, in whatever namespace, gets what everybody gets.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


def segments(host: Host) -> dict[str, int]:
    """Return how many TCP segments a host has sent, received and sent again, of both families.

    Received are those alone that the firewall let in.
    """
    found = _counters(host)
    return {"sent": found["TcpOutSegs"], "received": found["TcpInSegs"], "repeated": found["TcpRetransSegs"]}


def delivered(host: Host) -> int:
    """Return how many TCP segments and UDP datagrams the firewall has let in, of both families."""
    found = _counters(host)
    datagrams = ("UdpInDatagrams", "UdpNoPorts", "Udp6InDatagrams", "Udp6NoPorts")
    return found["TcpInSegs"] + sum(found[name] for name in datagrams)


def _counters(host: Host) -> dict[str, int]:
    there = Path(f"/proc/{host.pid}/net")
    found: dict[str, int] = {}
    lines = iter((there / "snmp").read_text().splitlines())
    for names, values in zip(lines, lines, strict=True):
        kind, *each = names.replace(":", "").split()
        found |= {kind + name: int(value) for name, value in zip(each, values.split()[1:], strict=True)}
    return found | {name: int(value) for name, value in map(str.split, (there / "snmp6").read_text().splitlines())}


@dataclass(frozen=True, slots=True)
class HoleRule:
    """One part of a hole as `Lab.rules` lists it. Its end is in epoch seconds, None if it has none."""

    door: str
    source: str
    port: Port
    closes_at: float | None


def hole_rules(rules: str) -> list[HoleRule]:
    """Return what stands among the holes; what stands there and is no hole fails."""
    found = []
    for line in rules.splitlines():
        if "nfknock hole " in line or (line.startswith("-A NFKNOCK_HOLES") and "--match-set" not in line):
            match = _HOLE.fullmatch(line)
            assert match, f"this is no hole: {line}"
            port = Port.parse(f"{match['port']}/{match['protocol']}")
            closes = None if match["closes"] == "never" else datetime.fromisoformat(match["closes"]).timestamp()
            found.append(HoleRule(match["door"], match["source"], port, closes))
    return found


def owned_holes(rules: str, doors: dict[str, frozenset[Port]], sources: Iterable[str]) -> list[HoleRule]:
    """Return the holes; a rule that stands twice, or that no door and no source owns, or half a hole fails."""
    families: list[list[str]] = [[]]
    for line in rules.splitlines():
        if line == "*filter":
            families.append([])
        elif line.startswith("-A"):
            families[-1].append(line)
    for listed in families:
        twice = [line for line, count in Counter(listed).items() if count > 1]
        assert not twice, f"these rules stand twice: {twice}"
    found = hole_rules(rules)
    ports: dict[tuple[str, str], list[Port]] = {}
    for rule in found:
        ports.setdefault((rule.door, rule.source), []).append(rule.port)
    known = set(sources)
    for (door, source), opened in ports.items():
        assert source in known, f"{source} is nobody's"
        assert sorted(opened) == sorted(doors.get(door, ())), f"{door} {source}: not all of it, or too much: {opened}"
    return found


class Watch:
    """Tries holes again and again, until they have shut, and remembers between which moments that was.

    Nobody listens behind them: a refusal is as good an answer, and takes no program's time.
    """

    def __init__(self, holes: Iterable[tuple[str, int]]) -> None:
        self.last_answered: dict[tuple[str, int], float] = {}
        """When the last try that was answered was made, not earlier than that, in epoch seconds."""
        self.first_unanswered: dict[tuple[str, int], float] = {}
        """When the first try after that was made, not later than that."""
        self._silences = dict.fromkeys(holes, 0)

    def until_shut(self, within: float) -> None:
        """Watch from the client's namespace, where the calling thread has to be, until all are shut."""
        give_up_at = time.monotonic() + within
        while open_ones := [hole for hole, count in self._silences.items() if count < _UNANSWERED]:
            assert time.monotonic() < give_up_at, f"still open after {within:g} s: {open_ones}"
            self._try(open_ones)

    def _try(self, holes: list[tuple[str, int]]) -> None:
        with contextlib.ExitStack() as closing:
            tries: dict[int, tuple[socket.socket, tuple[str, int], float, float]] = {}
            for source, port in holes:
                family, bastion = (socket.AF_INET6, BASTION6) if ":" in source else (socket.AF_INET, BASTION4)
                attempt = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
                attempt.settimeout(0)
                attempt.bind((source, 0))
                before = time.time()
                attempt.connect_ex((bastion, port))
                tries[attempt.fileno()] = (attempt, (source, port), before, time.time())
            answered = _answered(set(tries))
            for number, (_attempt, hole, before, after) in tries.items():
                if number in answered:
                    self._silences[hole] = 0
                    self.last_answered[hole] = before
                    self.first_unanswered.pop(hole, None)
                else:
                    self._silences[hole] += 1
                    self.first_unanswered.setdefault(hole, after)


def _answered(descriptors: set[int]) -> set[int]:
    """Return those that are answered in time; a moment's pause first, so that trying is no flood."""
    poll = select.poll()
    for number in descriptors:
        poll.register(number, select.POLLOUT)
    answered: set[int] = set()
    give_up_at = time.monotonic() + _ANSWER_TIMEOUT
    time.sleep(0.02)
    while answered != descriptors and (left := give_up_at - time.monotonic()) > 0:
        for number, _event in poll.poll(left * 1000):
            answered.add(number)
            poll.unregister(number)
    return answered

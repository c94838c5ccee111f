"""Scans open nothing, in whatever order they come; and who does not scan is not taken for somebody who does."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterable
from itertools import pairwise
from threading import Thread

import pytest

from nfknock.readers.nflog import NflogReader
from tests.core.story import FIN, SYN
from tests.kernel import packets
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, STRANGER4, Daemon, Lab, wait_until
from tests.setting import only_for

SEED = 20261121
DOOR = """
[doors.ssh]
sequence = ["7101", "8203", "9307"]
open = ["22/tcp"]
open_timeout = "2s"
"""
KNOCKS = ("7101", "8203", "9307")
NOBODY_IS_IGNORED = "[guard]\nports = 0\n"
GUARDED_OR_NOT = pytest.mark.parametrize("more", ["", NOBODY_IS_IGNORED], ids=["guarded", "ends attempts alone"])
NMAP = ("nmap", "-n", "-Pn", "-sS", "--min-rate", "20000", "--max-retries", "0", "-oG", "-")
EVERY_PORT = list(range(1, 65536))


def ready(lab: Lab, more: str = "", door: str = DOOR) -> Daemon:
    lab.configure(door + more)
    lab.nfknock("apply")
    return lab.daemon()


def counters(lab: Lab) -> dict[str, int]:
    return dict(json.loads(lab.nfknock("status", "--json").stdout)["daemon"])


def last_knock_opens(lab: Lab, daemon: Daemon) -> None:
    """Knock; what opens is the first that did, as whatever was sent before has been read by then."""
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: OPEN SESAME")
    assert [line for line in daemon.lines if "OPEN SESAME" in line] == [f"{CLIENT4}: ssh: OPEN SESAME"]


@GUARDED_OR_NOT
def test_a_scan_of_all_ports_opens_nothing(lab: Lab, more: str) -> None:
    """Upwards, downwards, shuffled, and three at once from as many addresses."""
    daemon = ready(lab, more)
    shuffled = random.Random(SEED).sample(EVERY_PORT, len(EVERY_PORT))
    for source, ports in (("198.51.100.1", EVERY_PORT), ("198.51.100.2", EVERY_PORT[::-1]), ("198.51.100.3", shuffled)):
        scan(lab, source, ports)
    threads = [Thread(target=scan, args=(lab, f"198.51.100.{4 + number}", EVERY_PORT)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last_knock_opens(lab, daemon)
    assert counters(lab)["strays_lost"] == 0


@pytest.mark.skipif("NFKNOCK_TEST_ALL" not in os.environ, reason="takes a minute; script/test --all")
@GUARDED_OR_NOT
def test_nmap_opens_nothing(lab: Lab, more: str) -> None:
    """Upwards, in its own order, three at once, IPv6; and hping3, which has a way of its own."""
    daemon = ready(lab, more)
    lab.client.run(*NMAP, "-S", STRANGER4, "-e", "c0", "-r", "-p-", BASTION4)
    for _ in range(3):
        lab.client.run(*NMAP, "-S", STRANGER4, "-e", "c0", "-p-", BASTION4)
    lab.client.run(*NMAP, "-6", "-r", "-p-", BASTION6)
    command = (*NMAP, "-S", STRANGER4, "-e", "c0", "-p-", BASTION4)
    several = [lab.client.start(*command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [each.wait(120) for each in several] == [0] * 3
    lab.client.run("hping3", "-q", "-a", STRANGER4, "--scan", "7000-9400", "-S", "-i", "u50", BASTION4, check=False)
    last_knock_opens(lab, daemon)


@GUARDED_OR_NOT
def test_a_hundred_shuffled_scans_of_few_ports_open_nothing(lab: Lab, more: str) -> None:
    """The knock ports and a hundred others, as fast as they can be sent, each scan from another address."""
    daemon = ready(lab, more)
    chance = random.Random(SEED)
    knocks = list(map(int, KNOCKS))
    for number in range(100):
        ports = knocks + chance.sample([port for port in EVERY_PORT if port not in (22, *knocks)], 100)
        chance.shuffle(ports)
        at = [ports.index(knock) for knock in knocks]
        assert [second - first for first, second in pairwise(at)] != [1, 1], "that would be the sequence itself"
        scan(lab, f"198.51.100.{number + 1}", ports)
    last_knock_opens(lab, daemon)


def test_who_scans_is_ignored_and_it_is_said_once(lab: Lab) -> None:
    daemon = ready(lab, '[guard]\nports = 10\nignore_timeout = "4s"\n')
    for _ in range(3):
        scan(lab, CLIENT4, range(1000, 1100))
    daemon.wait_for(f"{CLIENT4}: hit 10 closed ports; ignored until it has hit none for 4 s")
    lab.knock(BASTION4, *KNOCKS)
    assert "1 source ignored, 3 of their knocks" in lab.nfknock("status").stdout
    lab.knock(BASTION4, "-I", STRANGER4, *KNOCKS)
    daemon.wait_for(f"{STRANGER4}: ssh: opened")
    wait_until(lambda: counters(lab)["sources_ignored"] == 0, "the end of it")
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{CLIENT4}: ssh: opened")
    assert sum("closed ports" in line for line in daemon.lines) == 1


def test_who_first_tried_what_the_door_opens_can_knock(lab: Lab) -> None:
    """Its SYNs are repeated all the while: they hit a closed port, and are no strays."""
    lab.serve(22)
    daemon = ready(lab, '[firewall]\nallow = ["443/tcp"]\n')
    for _ in range(3):
        with lab.client.socket(socket.AF_INET, socket.SOCK_STREAM) as impatient:
            impatient.settimeout(0)
            impatient.connect_ex((BASTION4, 22))
            for knock in KNOCKS:
                scan(lab, CLIENT4, [22, 443])
                lab.knock(BASTION4, knock)
    daemon.wait_for("OPEN SESAME", count=3)
    assert lab.reaches(BASTION4, 22)
    assert counters(lab)["strays"] == 0


def test_what_is_said_to_everybody_is_no_stray(lab: Lab) -> None:
    """Discovery in a LAN goes on while somebody knocks."""
    daemon = ready(lab)
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM, CLIENT4) as chatter:
        chatter.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        chatter.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(CLIENT4))
        for knock in KNOCKS:
            for address, port in (("192.0.2.255", 137), ("255.255.255.255", 67), ("224.0.0.251", 5353)):
                chatter.sendto(b"x", (address, port))
            lab.knock(BASTION4, knock)
    daemon.wait_for("OPEN SESAME")
    assert counters(lab)["strays"] == 0


@only_for("iptables")
def test_rules_of_the_host_s_own_come_first(lab: Lab) -> None:
    """Also those that are added later: what they let in is no stray, and our jump is the last again."""
    lab.serve(8080)
    append = ("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport")
    lab.bastion.run(*append, "25", "-j", "ACCEPT")
    daemon = ready(lab)
    for _ in range(2):
        rules = lab.bastion.run("iptables-legacy", "-S", "INPUT").stdout.splitlines()
        assert rules[-1].endswith("-j NFKNOCK_STRAYS")
        assert rules[1].endswith("-j NFKNOCK")
        lab.bastion.run(*append, "8080", "-j", "ACCEPT")
        daemon.wait_for("INPUT does not jump to NFKNOCK_STRAYS last of all; put back", count=1 + _)
    assert lab.reaches(BASTION4, 8080)
    lab.nfknock("remove")
    assert "NFKNOCK" not in lab.rules()


@only_for("iptables")
@pytest.mark.parametrize("target", ["DROP", "REJECT"])
def test_a_rule_that_hides_strays_is_named(lab: Lab, target: str) -> None:
    lab.bastion.run("iptables-legacy", "-A", "INPUT", "-s", "203.0.113.1", "-j", target)
    lab.configure(DOOR)
    assert lab.nfknock("apply").stderr == ""
    lab.bastion.run("iptables-legacy", "-A", "INPUT", "-j", target)
    done = lab.nfknock("apply")
    assert "ipv4: INPUT has a rule of its own that takes everything, so port scans are not seen" in done.stderr
    assert "ipv6" not in done.stderr


def test_a_scan_with_other_flags_opens_no_door_that_hears_them(lab: Lab) -> None:
    door = DOOR + 'tcpflags = "fin,!syn,!ack"\n'
    daemon = ready(lab, NOBODY_IS_IGNORED, door)
    scan(lab, CLIENT4, EVERY_PORT, FIN)
    wait_until(lambda: counters(lab)["knocks"] == 1, "the first of the knocks to be heard")
    wait_until(lambda: counters(lab)["strays"] > 1000, "the strays to be heard")
    assert not any("OPEN SESAME" in line for line in daemon.lines)


@only_for("iptables")
def test_strays_can_be_left_alone(lab: Lab) -> None:
    lab.configure(DOOR + "[guard]\nstrays = false\n")
    lab.nfknock("apply")
    assert "NFKNOCK_STRAYS" not in lab.rules()
    daemon = lab.daemon()
    lab.configure(DOOR + "[guard]\ngroup = 17\n")
    daemon.signal(1)
    daemon.wait_for("reloaded")
    assert "--nflog-group 17" in lab.rules()
    scan(lab, CLIENT4, [1234])
    wait_until(lambda: counters(lab)["strays"] == 1, "the stray")
    lab.configure(DOOR + "[guard]\nstrays = false\n")
    daemon.signal(1)
    daemon.wait_for("reloaded", count=2)
    assert "NFKNOCK_STRAYS" not in lab.rules()
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("OPEN SESAME")


def scan(lab: Lab, source: str, ports: Iterable[int], flags: int = SYN) -> None:
    """Send one packet to each of these ports, in this order, as fast as can be."""
    with lab.client.here():
        packets.scan(BASTION4, source, ports, flags)


def test_a_group_that_somebody_had_is_read_as_soon_as_it_is_free(lab: Lab) -> None:
    """A reload asks for it: doors go on, scans are not seen until that program ends, and `status` says so."""
    daemon = ready(lab, NOBODY_IS_IGNORED)
    assert counters(lab)["strays_trouble"] is None
    somebody = NflogReader(17)
    with lab.bastion.here():
        somebody.open()
    try:
        for count in (1, 2):
            lab.configure(DOOR + "[guard]\ngroup = 17\nports = 0\n")
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reloaded", count=count)
            trouble = counters(lab)["strays_trouble"]
            assert str(trouble).startswith("binding NFLOG group 17: ")
            assert [line for line in daemon.lines if "not seen" in line] == [
                f"port scans are not seen: {trouble}"
            ] * count
            assert "port scans are not seen: binding NFLOG group 17: " in lab.nfknock("status").stdout
        last_knock_opens(lab, daemon)
    finally:
        somebody.close()
    daemon.wait_for("port scans are seen again")
    assert counters(lab)["strays_trouble"] is None
    lab.knock(BASTION4, "7101", "8203", "1234")
    wait_until(lambda: counters(lab)["strays"] > 0, "the stray to be read")
    lab.knock(BASTION4, "9307")
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for(f"{CLIENT6}: ssh: OPEN SESAME")
    assert sum(f"{CLIENT4}: ssh: OPEN SESAME" in line for line in daemon.lines) == 1

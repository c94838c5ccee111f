"""The NFLOG reader: what it hands over, what it cannot, and what it needs for that."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfknock.apart import logged
from nfknock.apart.copies import Copies
from nfknock.core.packet import UDP, Packet
from nfknock.errors import ReaderError
from nfknock.readers import nflog
from nfknock.readers.nflog import NflogReader
from tests.kernel.test_doctor import examine, levels
from tests.kernel.test_knocking import DOORS, KNOCKS, ready, reload, status
from tests.kernel.test_refusals import UNCHANGED
from tests.lab import BASTION4, BASTION6, CLIENT4, NFKNOCK, Lab, wait_until
from tests.setting import Setting, only_for
from tests.vandal import IS_NFTABLES, own_rules, vandalise

FAMILIES = pytest.mark.parametrize(
    ("command", "address"), [("iptables-legacy", "127.0.0.1"), ("ip6tables-legacy", "::1")]
)
KNOCK, OTHER_KNOCK = 8203, 9307
MEND = "stop that program, or choose another number with `queue` under [reader]"


@pytest.fixture
def setting() -> Setting:
    return Setting(reader="nflog")


def put_rules(command: str, *options: str) -> None:
    """Copy datagrams to the knock ports, and drop them, in the namespace of this thread."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for target in (["NFLOG", "--nflog-group", "5", *options], ["DROP"]):
        ports = ["-p", "udp", "-m", "multiport", "--dports", f"{KNOCK},{OTHER_KNOCK}"]
        subprocess.run([command, "-A", "INPUT", *ports, "-j", *target], check=True)


@contextlib.contextmanager
def reading(group: int = 5) -> Iterator[NflogReader]:
    reader = NflogReader(group)
    reader.open()
    try:
        yield reader
    finally:
        reader.close()


def send(address: str, port: int, count: int = 1, content: bytes = b"x") -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(content, (address, port))


def read_all(reader: NflogReader, *, until: int | None = None) -> list[Packet]:
    """Read until nothing comes any more, or a packet to that port has come."""
    found: list[Packet] = []

    def is_done() -> bool:
        more = reader.read()
        found.extend(more)
        return any(packet.port == until for packet in more) if until else not more

    wait_until(is_done, f"packets; there are {len(found)}")
    return found


@FAMILIES
def test_a_packet_is_as_it_was_sent(namespace: None, command: str, address: str) -> None:
    put_rules(command, "--nflog-threshold", "1")
    with reading() as reader:
        send(address, KNOCK)
        [packet] = reader.read()
        assert (packet.protocol, packet.port) == (UDP, KNOCK)
        assert packet.source == packet.target == socket.inet_pton(
            socket.AF_INET6 if ":" in address else socket.AF_INET, address
        )  # fmt: skip
        assert (reader.counters.unreadable, reader.count_lost()) == (0, 0)


@FAMILIES
def test_fragments_are_one_packet(namespace: None, command: str, address: str) -> None:
    """Where connections are tracked, as nfknock's own rules have it, they are put together before any rule."""
    put_rules(command, "--nflog-threshold", "1")
    subprocess.run([command, "-I", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1280"], check=True)
    with reading() as reader:
        send(address, KNOCK, content=bytes(5000))
        [packet] = reader.read()
        assert packet.port == KNOCK
        assert reader.counters.unreadable == 0


@FAMILIES
def test_many_come_together_and_one_alone_comes_too(namespace: None, command: str, address: str) -> None:
    put_rules(command)
    with reading() as reader:
        send(address, KNOCK, 320)
        send(address, OTHER_KNOCK)
        sizes: list[int] = []
        copies = reader._copies
        assert copies is not None

        def is_all() -> bool:
            if datagram := copies._receive():
                sizes.append(len(list(logged.read(datagram))))
            return sum(sizes) == 321

        wait_until(is_all, f"all packets in {sizes}")
        assert len(sizes) < 160


@FAMILIES
def test_losses_are_counted_to_a_packet(
    namespace: None, command: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nflog, "_SOCKET_BUFFER", 20_000)
    put_rules(command, "--nflog-threshold", "1")
    with reading() as reader:
        send(address, KNOCK, 500)
        # Not read empty: there is room for one more, and it comes.
        assert reader._copies is not None
        assert len(list(logged.read(reader._copies._receive() or b""))) == 1
        send(address, OTHER_KNOCK)
        read = read_all(reader, until=OTHER_KNOCK)
        assert 1 < len(read) < 400
        assert reader.count_lost() == 501 - len(read)


def test_numbers_go_round() -> None:
    source: Any = Rubbish(*((numbered(number), 0) for number in (0xFFFFFFFF, 0, 2)))
    copies = Copies(source)
    copies.next_number = 0xFFFFFFFE
    assert copies.take(10).lost == 2
    assert copies.next_number == 3


def numbered(number: int) -> bytes:
    """A message of the kernel's about a packet without anything in it."""
    return struct.pack("=IHHII4x", 28, 0x400, 0, 0, 0) + struct.pack("=HH", 8, 12) + struct.pack("!I", number)


class Rubbish:
    """A netlink socket on which something else than the kernel's messages arrives."""

    def __init__(self, *arrivals: tuple[bytes, int] | OSError) -> None:
        self._arrivals = list(arrivals)

    def recvfrom_into(self, buffer: memoryview, _size: int, _flags: int) -> tuple[int, tuple[int, int]]:
        if not self._arrivals:
            raise BlockingIOError
        arrival = self._arrivals.pop(0)
        if isinstance(arrival, OSError):
            raise arrival
        content, sender = arrival
        buffer[: len(content)] = content[: len(buffer)]
        return len(content), (sender, 0)


def test_rubbish_is_counted_and_the_loop_goes_on(namespace: None) -> None:
    good = numbered(0)
    source: Any = Rubbish(
        (b"x", 0), (good, 4711), OSError(105, "No buffer space available"), (bytes(70_000), 0), (good, 0)
    )
    reader = NflogReader(5)
    reader._copies = Copies(source)
    assert reader.read() == []
    # The last one is a packet without anything in it.
    assert (reader.counters.unreadable, reader.count_lost()) == (4, 0)
    source = Rubbish(OSError(9, "Bad file descriptor"))
    reader._copies = Copies(source)
    with pytest.raises(ReaderError, match="reading NFLOG group 5: bad file descriptor"):
        reader.read()


POWERLESS = """
import ctypes, pathlib, select, sys
from nfknock.readers.nflog import NflogReader
reader = NflogReader(5)
reader.open()
libc = ctypes.CDLL(None, use_errno=True)
for number in range(64):
    libc.prctl(24, number, 0, 0, 0)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capset(header, sets) == 0
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
print("ready", flush=True)
while select.select([reader], [], [], 20)[0]:
    print(*(packet.port for packet in reader.read()), reader.count_lost(), flush=True)
"""


@FAMILIES
def test_it_goes_on_without_any_capability(namespace: None, command: str, address: str) -> None:
    put_rules(command, "--nflog-threshold", "1")
    with subprocess.Popen([sys.executable, "-c", POWERLESS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            send(address, KNOCK)
            assert process.stdout.readline() == f"{KNOCK} 0\n"
            send(address, OTHER_KNOCK)
            assert process.stdout.readline() == f"{OTHER_KNOCK} 0\n"
        finally:
            process.kill()


def test_without_capabilities_it_is_not_opened(lab: Lab) -> None:
    lab.configure(DOORS.format(timeout="30s"))
    lab.nfknock("apply")
    done = lab.bastion.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", *NFKNOCK, "run", check=False)
    assert done.stderr.startswith("nfknock: binding NFLOG group 5: permission denied")
    assert len(done.stderr.splitlines()) == 1


def test_a_group_that_another_program_has(lab: Lab) -> None:
    lab.configure(DOORS.format(timeout="30s"))
    with lab.bastion.here(), reading() as other:
        done = lab.nfknock("apply", check=False)
        refused, last = done.stderr.splitlines()
        assert last == UNCHANGED
        who = f"process {other.port} ({_name()})"
        assert refused.startswith(f"refused: {who} has NFLOG group 5, and would get the knocks; ")
        assert refused.endswith(MEND)
        assert levels(examine(lab, exit_code=1), "queue") == ["fault"]
        lab.nfknock("apply", "--force")
        done = lab.nfknock("run", check=False)
        assert done.stderr.startswith(f"nfknock: binding NFLOG group 5: process {other.port} (")
        assert done.stderr.endswith(
            " has it already; stop that program, or choose another number with `queue` under [reader]\n"
        )
    lab.daemon()
    assert levels(examine(lab), "queue") == ["ok"]


def _name() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_doctor_looks_for_what_this_reader_needs(lab: Lab) -> None:
    lab.configure(DOORS.format(timeout="30s"))
    lab.nfknock("apply")
    lab.daemon()
    found = examine(lab, exit_code=0)
    assert found["reader"] == [("ok", "NFLOG; ")]
    assert found["queue"] == [("ok", "NFLOG group 5 is free, or our own daemon's; ")]
    assert IS_NFTABLES or "NFLOG" in found["extensions"][0][1]
    assert "NFQUEUE (" in found["netfilter"][0][1]
    assert "NetfilterQueue" not in found["libraries"][0][1]


@only_for("iptables", "ipset")
def test_few_knocks_are_heard_at_once_and_a_flood_is_gathered(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    assert _copied(lab, "NFKNOCK_AT_ONCE") == 3
    assert _copied(lab, "NFKNOCK_COPIES") == 0
    with lab.client.here():
        send(BASTION4, KNOCK, 20_000)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened", count=2)
    assert _copied(lab, "NFKNOCK_COPIES") > _copied(lab, "NFKNOCK_AT_ONCE")


def _copied(lab: Lab, chain: str) -> int:
    listing = lab.bastion.run("iptables-legacy", "-xnvL", chain).stdout.splitlines()
    return sum(int(line.split()[0]) for line in listing if " NFLOG " in line)


@pytest.mark.parametrize("group", [0, 65535])
def test_the_first_and_the_last_group(lab: Lab, group: int) -> None:
    daemon = ready(lab, more=f"[reader]\nqueue = {group}\n")
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened")
    assert levels(examine(lab), "queue") == ["ok"]


def test_losses_are_in_status_and_in_the_log(lab: Lab) -> None:
    """A daemon that is stopped for a moment reads nothing, and the flood goes on."""
    daemon = ready(lab)
    daemon.signal(signal.SIGSTOP)
    with lab.client.here():
        for _ in range(100):
            send(BASTION4, KNOCK, 1000, bytes(600))
    daemon.signal(signal.SIGCONT)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("packets were lost: they came faster than they are read")
    assert status(lab)["daemon"]["lost"] > 1000
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened")


@only_for("iptables", "ipset")
@pytest.mark.parametrize("there", [Setting(reader="nfqueue"), Setting(reader="nflog")], ids=str)
def test_sighup_moves_to_another_reader(lab: Lab, there: Setting) -> None:
    back = lab.setting = Setting(reader="nflog" if there.reader == "nfqueue" else "nfqueue")
    daemon = ready(lab)
    before = lab.rules()
    lab.setting = there
    reload(lab, daemon, DOORS.format(timeout="30s"), "reloaded")
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    report = status(lab)["daemon"]["reader"]
    assert (report["kind"], report["queue"]) == (there.reader, 5)
    lab.setting = back
    lab.nfknock("close", CLIENT4)
    reload(lab, daemon, DOORS.format(timeout="30s"), "reloaded")
    wait_until(lambda: lab.rules() == before, "the rules to be as they were")


def test_the_rules_behind_the_copy_are_put_back(lab: Lab) -> None:
    daemon = ready(lab)
    before = lab.rules()
    for damage in ("at once", "the copies"):
        vandalise(lab, damage)
        wait_until(lambda: lab.rules() == before, "the rules to be back")
    lab.nfknock("remove")
    assert own_rules(lab) == []
    assert re.search("the rules of (NFKNOCK_AT_ONCE|at_once) were changed", "".join(daemon.lines))

"""python-iptables' defects, one test each: that they are there, or that what we do about them holds."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from nfknock.backends.iptables.limit import limit_by_source
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Spec, encode, iptc
from nfknock.backends.xtables.lock import lock_path, xtables_lock
from nfknock.backends.xtables.table import FilterTable, TableChangedError
from nfknock.core.model import Family
from nfknock.errors import BackendError, LockHeldError

FAMILIES: list[Family] = ["ipv4", "ipv6"]
SAVE = {"ipv4": "iptables-legacy-save", "ipv6": "ip6tables-legacy-save"}
LISTING = {"ipv4": "iptables-legacy", "ipv6": "ip6tables-legacy"}
NET = {"ipv4": ip_network("192.0.2.2/32"), "ipv6": ip_network("2001:db8::2/128")}


@pytest.fixture(params=FAMILIES)
def table(request: pytest.FixtureRequest, namespace: None) -> FilterTable:
    made = FilterTable(request.param)
    made.refresh()
    return made


def saved(family: Family) -> list[str]:
    text = subprocess.run([SAVE[family]], capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if line.startswith("-A")]


def test_loading_runs_no_program(tmp_path: Path) -> None:
    """The library by itself runs ldconfig, and gcc, ld and modprobe where they are."""
    code = """
import sys
ran = []
programs = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system")
sys.addaudithook(lambda event, args: ran.append(args) if event in programs else None)
from nfknock.backends.xtables.binding import iptc
iptc()
sys.exit(str(ran) if ran else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_mask_covers_the_name_of_an_interface_and_its_end(table: FilterTable) -> None:
    """Rule6.in_interface writes 0x01 bytes for the mask: eth0 would match dth0 (issue 244)."""
    for name in ("eth0", "eth+"):
        entry = encode(table.family, Spec(jump="ACCEPT", interface=name)).entry
        header = 16 if table.family == "ipv4" else 64
        assert entry.raw[header : header + 16] == name.encode().ljust(16, b"\0")
        mask = entry.raw[header + 32 : header + 48]
        assert mask == (b"\xff" * (3 if name == "eth+" else 5)).ljust(16, b"\0")
        table.append("INPUT", entry)
    table.commit()
    assert saved(table.family) == ["-A INPUT -i eth0 -j ACCEPT", "-A INPUT -i eth+ -j ACCEPT"]


@pytest.mark.parametrize("size", [48, 56])
def test_options_are_found_in_steps_of_either_size(size: int) -> None:
    """iptables 1.8.11 made an option 56 bytes long; the library always takes 48 (issue 353)."""
    kind = iptc().xtables.xt_option_entry
    array = (ctypes.c_ubyte * (size * 3))()
    names = [ctypes.create_string_buffer(b"sport"), ctypes.create_string_buffer(b"dport")]
    for index, name in enumerate(names):
        ctypes.c_void_p.from_buffer(array, index * size).value = ctypes.addressof(name)
    address = ctypes.addressof(array)
    assert binding.measured_step(address) == size
    assert [option.name for option in binding.option_entries(address, kind, size)] == [b"sport", b"dport"]


def test_the_second_option_of_an_extension_is_seen(table: FilterTable) -> None:
    matches: tuple[tuple[str, Any], ...] = (("udp", (("sport", "67"), ("dport", "68"))),)
    table.append("INPUT", encode(table.family, Spec(jump="ACCEPT", protocol="udp", matches=matches)).entry)
    table.commit()
    assert saved(table.family) == ["-A INPUT -p udp -m udp --sport 67 --dport 68 -j ACCEPT"]


def test_encoding_creates_no_other_table(table: FilterTable) -> None:
    """The library asks nat, mangle, raw and security for a chain called NFQUEUE, and asking creates them."""
    encode(table.family, Spec(jump="NFQUEUE", options=(("queue-num", "5"),)))
    names = Path("/proc/net/ip_tables_names" if table.family == "ipv4" else "/proc/net/ip6_tables_names")
    assert names.read_text().split() == ["filter"]


def test_rules_do_not_write_into_each_other(table: FilterTable) -> None:
    """Two rules under construction at once share a buffer: both got the second one's queue number."""
    specs = [Spec(jump="NFQUEUE", options=(("queue-num", str(number)),)) for number in (5, 6)]
    encoded = [encode(table.family, spec) for spec in specs]
    for each in encoded:
        table.append("INPUT", each.entry)
    table.commit()
    assert [line.split()[-1] for line in saved(table.family)] == ["5", "6"]


def test_nothing_is_written_before_commit(table: FilterTable) -> None:
    """With autocommit an error is swallowed and the rule silently missing; we commit by hand."""
    table.append("INPUT", encode(table.family, Spec(jump="ACCEPT")).entry)
    assert saved(table.family) == []
    table.refresh()
    table.commit()
    assert saved(table.family) == []


def test_what_libiptc_refuses_is_an_error(table: FilterTable) -> None:
    with pytest.raises(BackendError, match=r"adding a rule to NOWHERE in the ipv. filter table"):
        table.append("NOWHERE", encode(table.family, Spec(jump="ACCEPT")).entry)
    with pytest.raises(BackendError, match=r"creating the chain INPUT in the ipv. filter table"):
        table.create_chain("INPUT")
    with pytest.raises(BackendError, match=r"building the ipv. rule"):
        encode(table.family, Spec(jump="ACCEPT", matches=(("tcp", (("no-such-option", "1"),)),)))


def test_a_change_in_between_is_noticed(table: FilterTable) -> None:
    table.append("INPUT", encode(table.family, Spec(jump="DROP")).entry)
    subprocess.run([LISTING[table.family], "-A", "INPUT", "-j", "ACCEPT"], check=True)
    with pytest.raises(TableChangedError):
        table.commit()
    assert saved(table.family) == ["-A INPUT -j ACCEPT"]


def test_what_the_kernel_returns_equals_what_was_encoded(table: FilterTable) -> None:
    """Extensions with data of the kernel's own (limit) and without, verdicts, jumps and extension targets."""
    reject = "icmp-port-unreachable" if table.family == "ipv4" else "icmp6-port-unreachable"
    specs = [
        Spec(jump="NFLOG", options=(("nflog-group", "5"), ("nflog-threshold", "1"))),
        Spec(jump="ACCEPT", source=NET[table.family], matches=(("conntrack", (("ctstate", "ESTABLISHED,RELATED"),)),)),
        Spec(jump="DROP", matches=(("limit", (("limit", "5/sec"),)), ("comment", (("comment", "nfknock: x"),)))),
        Spec(jump="OTHER", matches=(("mark", (("mark", "0x1"),)),)),
        Spec(jump="REJECT", options=(("reject-with", reject),)),
        Spec(jump="ACCEPT", matches=(("time", (("datestop", "2030-01-01T00:00:00"),)),)),
        Spec(jump="ACCEPT", protocol="tcp", matches=(("multiport", (("dports", "1,2,3"),)),)),
    ]
    table.create_chain("OTHER")
    encoded = [encode(table.family, spec) for spec in specs]
    for each in encoded:
        table.append("INPUT", each.entry)
    table.commit()
    assert table.holds("INPUT", encoded)
    assert not table.holds("INPUT", encoded[:-1])
    assert not table.holds("INPUT", [*encoded[1:], encoded[0]])


def test_no_difference_is_too_small(namespace: None) -> None:
    options: list[Spec] = [
        Spec(jump="ACCEPT", protocol="tcp"),
        Spec(jump="DROP", protocol="tcp"),
        Spec(jump="ACCEPT", protocol="udp"),
        Spec(jump="ACCEPT", protocol="tcp", source=ip_network("192.0.2.2/32")),
        Spec(jump="ACCEPT", protocol="tcp", source=ip_network("192.0.2.2/31")),
        Spec(jump="ACCEPT", protocol="tcp", interface="eth0"),
        Spec(jump="ACCEPT", protocol="tcp", interface="eth+"),
        Spec(jump="ACCEPT", protocol="tcp", matches=(("tcp", (("dport", "22"),)),)),
        Spec(jump="ACCEPT", protocol="tcp", matches=(("tcp", (("dport", "23"),)),)),
        Spec(jump="ACCEPT", matches=(("comment", (("comment", "nfknock: a"),)),)),
        Spec(jump="ACCEPT", matches=(("comment", (("comment", "nfknock: b"),)),)),
        Spec(jump="NFQUEUE", options=(("queue-num", "5"),)),
        Spec(jump="NFQUEUE", options=(("queue-num", "6"),)),
        Spec(jump="NFLOG", options=(("nflog-group", "5"),)),
        Spec(jump="NFLOG", options=(("nflog-group", "6"),)),
        Spec(jump="NFLOG", options=(("nflog-group", "5"), ("nflog-threshold", "1"))),
        Spec(jump="DROP", matches=(("limit", (("limit", "1000/sec"), ("limit-burst", "100"))),)),
        Spec(jump="DROP", matches=(("limit", (("limit", "1000/sec"), ("limit-burst", "101"))),)),
    ]
    encoded = [encode("ipv4", spec) for spec in options]
    for i, one in enumerate(encoded):
        assert [j for j, other in enumerate(encoded) if one.equals(other.entry)] == [i]


def test_the_table_follows_the_namespace(table: FilterTable) -> None:
    """The library keeps a table for the process, bound to the namespace that it was opened in."""
    from tests.lab import own_namespace

    table.append("INPUT", encode(table.family, Spec(jump="DROP")).entry)
    table.commit()
    with own_namespace():
        table.refresh()
        assert table.entries("INPUT") == []
    table.refresh()
    assert len(table.entries("INPUT")) == 1


@contextmanager
def somebody_holds(path: Path) -> Iterator[int]:
    code = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f,2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield holder.pid
        assert holder.stdin is not None
        holder.stdin.close()


def test_the_lock_keeps_others_out_and_says_who_has_it(namespace: None) -> None:
    with (
        somebody_holds(lock_path()) as pid,
        pytest.raises(LockHeldError, match=rf"is held by process {pid} \(python"),
        xtables_lock(timeout=0.1),
    ):
        raise AssertionError("never in here")
    with xtables_lock(timeout=0.1):
        listing = subprocess.run(["iptables-legacy", "-w", "1", "-A", "INPUT", "-j", "DROP"], capture_output=True)
        assert listing.returncode == 4
    subprocess.run(["iptables-legacy", "-A", "INPUT", "-j", "DROP"], check=True)


def test_a_lock_that_cannot_be_made_is_an_error(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", "/nonexistent/lock")
    with pytest.raises(BackendError, match="opening the xtables lock /nonexistent/lock: no such file"), xtables_lock():
        raise AssertionError("never in here")


def test_an_extension_keeps_the_memory_that_it_asks_for(table: FilterTable) -> None:
    """hashlimit works out its rate there while its options are read, and the library has freed it by then."""
    for number in range(1, 200):
        encoded = encode(table.family, Spec(jump="DROP", matches=(limit_by_source(number, table.family),)))
    table.append("INPUT", encoded.entry)
    table.commit()
    [rule] = saved(table.family)
    assert "--hashlimit-above 199/sec --hashlimit-burst 199 --hashlimit-mode srcip" in rule
    assert table.holds("INPUT", [encoded])

"""A configuration is right, or one line says what is wrong where and what would be right."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.config import Config, load
from nfknock.config.baseline import read_baseline
from nfknock.core.model import BARE_SYN, Opening, Port, TcpFlags
from nfknock.core.plan import Strays
from nfknock.core.scanners import Thresholds
from nfknock.errors import ConfigError

DOOR = '[doors.ssh]\nsequence = ["7101", "8203/udp", "9307"]\nopen = ["22/tcp"]\n'


def read(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "nfknock.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path)


def test_one_door_is_enough(tmp_path: Path) -> None:
    config = read(tmp_path, DOOR)
    [door] = config.doors
    assert door.sequence == (Port(7101), Port(8203, "udp"), Port(9307))
    assert (door.opens, door.seq_timeout, door.open_timeout) == ((Opening(Port(22)),), 5.0, 30.0)
    assert (door.close_sequence, door.tcpflags, door.target) == ((), BARE_SYN, None)
    assert (config.backend.name, config.plan.reader) == ("iptables", "nfqueue")
    assert (config.plan.queue, config.plan.answer, config.plan.interfaces) == (5, "drop", ())
    assert config.plan.knock_ports == (Port(7101), Port(8203, "udp"), Port(9307))


def test_sets(tmp_path: Path) -> None:
    config = read(tmp_path, f'[firewall]\nbackend = "ipset"\nset_size = 100\n{DOOR}')
    assert (config.backend.name, config.backend.set_size) == ("ipset", 100)
    assert read(tmp_path, DOOR).backend.set_size == 65536


def test_every_key(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [firewall]
        backend = "iptables"
        interfaces = ["eth0", "ppp+"]
        allow = ["443/tcp", 80, { open = "22/tcp", from = "192.168.0.100" }, { open = 25, from = "2001:db8::/32" }]
        [reader]
        kind = "nfqueue"
        queue = 65535
        answer = "reject"
        [doors.ssh]
        sequence = [7101, "7102/tcp", "7103:udp", "7104 : UDP"]
        seq_timeout = 2.5
        open = ["22/tcp", "53/udp"]
        open_timeout = 0
        close_sequence = ["9307"]
        tcpflags = "SYN,!ack"
        target = "192.0.2.1"
        """,
    )
    [door] = config.doors
    assert [str(port) for port in door.sequence] == ["7101/tcp", "7102/tcp", "7103/udp", "7104/udp"]
    assert (door.seq_timeout, door.open_timeout, door.target) == (2.5, 0.0, ip_address("192.0.2.1"))
    assert config.plan.interfaces == ("eth0", "ppp+")
    assert config.allowed_ports == (Port(443), Port(80))
    assert [rule.source for rule in config.plan.allowed] == [
        None,
        None,
        ip_network("192.168.0.100"),
        ip_network("2001:db8::/32"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "doors: at least one is needed"),
        ("doors = 5", "doors: at least one is needed"),
        ("[doors]", "doors: at least one is needed"),
        ("[door.ssh]\n", "door: unknown key; known are firewall, reader, guard, daemon, log, doors"),
        ("[doors.ssh\n", "not valid TOML: "),
        (f"[firewall]\nset_size = 2000000\n{DOOR}", "firewall.set_size: 2000000 is out of range (1 to 1048576)"),
        (DOOR + DOOR, "doors.ssh: is there already, and again in line 4"),
        (DOOR.replace("sequence", "sequense"), "doors.ssh.sequense: unknown key; did you mean 'sequence'?"),
        (DOOR + "xyzzy = 1", "doors.ssh.xyzzy: unknown key; known are sequence, open"),
        (DOOR.replace("sequence", "#"), "doors.ssh: the key 'sequence' is missing"),
        (DOOR.replace("open", "#"), "doors.ssh: the key 'open' is missing"),
        (DOOR.replace('["22/tcp"]', "[]"), "doors.ssh.open: is empty"),
        (DOOR.replace('["7101", "8203/udp", "9307"]', "[]"), "doors.ssh.sequence: is empty"),
        (DOOR.replace('["7101", "8203/udp", "9307"]', '"7101"'), "doors.ssh.sequence: expected array, got str"),
        (DOOR.replace('"7101"', "0"), "doors.ssh.sequence[0]: this is no port from 1 to 65535; write 7101"),
        (DOOR.replace("9307", "70000"), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", "abc"), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", "-1"), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", ""), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", "7000:"), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", "7000:sctp"), "doors.ssh.sequence[2]: this is no port"),
        (DOOR.replace("9307", "\u0667"), "this is no port"),
        (DOOR.replace('"9307"', "9.5"), "doors.ssh.sequence[2]: expected int | str, got float"),
        (DOOR.replace('"9307"', ",".join(["1"] * 32)), "doors.ssh: a sequence has at most 32 knocks"),
        (DOOR.replace("ssh", '"two words"'), "doors.two words: a door's name is one word"),
        (DOOR + 'seq_timeout = "soon"', "doors.ssh.seq_timeout: 'soon' is not a duration; write 30"),
        (DOOR.replace("9307", "1" * 5000), "doors.ssh.sequence[2]: this is no port from 1 to 65535"),
        (DOOR + "seq_timeout = " + "1" * 5000, "not valid TOML: exceeds the limit"),
        ("a = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ('"a\\nb" = 1', "unknown key; known are firewall, reader, guard, daemon, log, doors"),
        (DOOR + '"a\\nb" = 1', "unknown key; known are sequence, open"),
        (DOOR + 'close_sequence = ["8203/udp", "9307"]', "doors.ssh: close_sequence and sequence end alike"),
        (DOOR + 'close_sequence = ["1", "7101", "8203/udp", "9307"]', "close_sequence and sequence end alike"),
        (DOOR + '[firewall]\ninterfaces = ["a\\u0000b"]', "is not the name of an interface"),
        (DOOR + '[firewall]\nrules = "a\\u0000b"', "firewall.rules: 'a\\x00b' is not a path"),
        (DOOR + "seq_timeout = 0", "doors.ssh.seq_timeout: 0 s is out of range (0.1 s to 3600 s)"),
        (DOOR + "seq_timeout = -1", "doors.ssh.seq_timeout: -1 is not a duration"),
        (DOOR + "seq_timeout = nan", "doors.ssh.seq_timeout: nan is not a duration"),
        (DOOR + "open_timeout = 0.5", "doors.ssh.open_timeout: 0.5 s is out of range (0, or 1 s to"),
        (DOOR + "open_timeout = true", "doors.ssh.open_timeout: expected int | float | str, got bool"),
        (DOOR + 'tcpflags = "ece"', "doors.ssh.tcpflags: 'ece' is not a TCP flag; known are fin, syn"),
        (DOOR + 'tcpflags = "syn,!syn"', "doors.ssh.tcpflags: the TCP flag 'syn' is named twice"),
        (DOOR + 'target = "here"', "doors.ssh.target: 'here' does not appear to be an IPv4 or IPv6 address"),
        (DOOR + 'target = "fe80::1%eth0"', "doors.ssh.target: 'fe80::1%eth0' has a zone"),
        (DOOR + "[reader]\nqueue = 65536", "reader.queue: 65536 is out of range (0 to 65535)"),
        (DOOR + '[reader]\nqueue = "5"', "reader.queue: expected int, got str"),
        (DOOR + "[guard]\ngroup = 65536", "guard.group: 65536 is out of range (0 to 65535)"),
        (DOOR + '[reader]\nkind = "nflog"\n[guard]\ngroup = 5', "guard.group: 5 is that of the knocks"),
        (DOOR + "[guard]\nknocks_a_second = -1", "guard.knocks_a_second: -1 is out of range (0 to 10000)"),
        (DOOR + "[guard]\nports = 1001", "guard.ports: 1001 is out of range (0 to 1000)"),
        (DOOR + '[guard]\nwithin = "0s"', "guard.within: 0 s is out of range (0.1 s to 3600 s)"),
        (DOOR + '[guard]\nignore_timeout = 0', "guard.ignore_timeout: 0 s is out of range (1 s to 86400 s)"),
        (DOOR + '[reader]\nanswer = "maybe"', "reader.answer: 'maybe' is not known; known are drop, reject"),
        (DOOR + '[reader]\nkind = "pcap"', "reader.kind: 'pcap' is not known; known are nflog, nfqueue"),
        (DOOR + '[firewall]\nattach = "inet filter input"', "firewall.attach: only the backend nftables stands in"),
        (
            DOOR + '[firewall]\nbackend = "nftables"\nattach = "filter"',
            "firewall.attach: 'filter' is no chain; write it as \"inet filter input\"",
        ),
        (DOOR + '[firewall]\nbackend = "ipset"\nset_size = 0', "firewall.set_size: 0 is out of range (1 to "),
        (DOOR + '[firewall]\nbackend = "pf"', "firewall.backend: 'pf' is not known; known are auto, ipset"),
        (DOOR + '[firewall]\ninterfaces = ["a/b"]', "firewall.interfaces: 'a/b' is not the name of an interface"),
        (DOOR + '[firewall]\ninterfaces = ["abcdefghijklmnop"]', "is not the name of an interface"),
        (DOOR + '[firewall]\nallow = ["x"]', "firewall.allow[0]: 'x' is not a port"),
        (DOOR + '[firewall]\nallow = [{ open = 22 }]', "firewall.allow[0]: the key 'from' is missing"),
        (DOOR + '[firewall]\nallow = [{ open = 22, from = "me" }]', "firewall.allow[0].from: 'me' does not appear"),
        (DOOR + '[firewall]\nallow = [{ open = 22, from = "192.0.2.1/24" }]', "192.0.2.1/24 has host bits set"),
        (DOOR + '[firewall]\nrules = "/nonexistent.toml"', "there is no rules file /nonexistent.toml"),
        (b"\xff\xfe", "line 1 is not UTF-8 text"),
        (DOOR.encode() + b"# caf\xe9", "line 4 is not UTF-8 text"),
        (DOOR + "\0", "not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*`nfknock init` writes one"):
        load(tmp_path / "missing.toml")


def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"cannot be read: not a regular file"):
            load(path)
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    with pytest.raises(ConfigError, match=r"cannot be read: file too large"):
        load(tmp_path / "large")


def test_an_ipv4_address_that_is_written_as_ipv6_is_ipv4(tmp_path: Path) -> None:
    config = read(tmp_path, DOOR + '[firewall]\nallow = [{ open = 22, from = "::ffff:192.0.2.7" }]')
    assert config.plan.allowed[0].source == ip_network("192.0.2.7")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        load(tmp_path)


def test_crlf_and_a_rules_file_of_ones_own(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\ncomment = "loopback"\ninterface = "lo"\n')
    text = f'[firewall]\nrules = "{rules.name}"\n{DOOR}'.replace("\n", "\r\n")
    assert [rule.comment for rule in read(tmp_path, text).plan.baseline] == ["loopback"]


def test_the_shipped_rules_are_right() -> None:
    baseline = read_baseline(None)
    assert baseline[0].interface == "lo"
    assert baseline[1].states == ("ESTABLISHED", "RELATED")
    assert {rule.verdict for rule in baseline} == {"accept"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a rules file holds [[rule]] tables"),
        ("rule = 1", "a rules file holds [[rule]] tables"),
        ("[[rule]]", "rule[0]: the key 'comment' is missing"),
        ('[[rule]]\ncomment = "a"\n[[rule]]\ncomment = ""', "rule[1].comment: one line"),
        ('[[rule]]\ncomment = "a"\nicmp_type = 256\nprotocol = "icmp"', "rule[0].icmp_type: 256 is out of range"),
        ('[[rule]]\ncomment = "a"\nports = [22]', "rule[0]: a port needs protocol tcp or udp"),
        ('[[rule]]\ncomment = "a"\nports = [0]\nprotocol = "tcp"', "rule[0]: port 0 is out of range"),
        ('[[rule]]\ncomment = "a"\nicmp_type = 3', "rule[0]: icmp_type needs protocol icmp or icmpv6"),
        ('[[rule]]\ncomment = "a"\nprotocol = "icmp"\nfamily = "ipv6"', "icmp is a protocol of ipv4"),
        ('[[rule]]\ncomment = "a"\nprotocol = "tcp"\nhop_limit = 255', "hop_limit needs protocol icmpv6"),
        ('[[rule]]\ncomment = "a"\nfrom = "192.0.2.0/24"\nfamily = "ipv6"', "is not an ipv6 network"),
        ('[[rule]]\ncomment = "a"\nstate = ["OLD"]', "rule[0].state[0]: 'OLD' is not known; known are"),
        ('[[rule]]\ncomment = "a"\nstates = ["NEW"]', "rule[0].states: unknown key; did you mean 'state'?"),
    ],
)
def test_a_wrong_rules_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_baseline(path)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "nfknock.toml"


@pytest.mark.parametrize(
    "shape", ['[doors.a]\nsequence=["{}"]\nopen=["22"]', '[doors.a]\nsequence=["1"]\nopen=["22"]\ntcpflags="{}"', "{}"]
)
@given(text=st.text(max_size=60))
def test_no_text_makes_it_raise_anything_else(scratch: Path, shape: str, text: str) -> None:
    scratch.write_text(shape.format(text), newline="")
    try:
        load(scratch)
    except ConfigError as exc:
        assert exc.exit_code == 2


def test_what_is_allowed_to_some(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        DOOR
        + """
        [firewall]
        allow = [
            { open = ["22/tcp", "53/udp"], from = ["192.0.2.0/24", "2001:db8::/32"] },
            { interface = "tun0" },
            { open = 80, from = "192.0.2.7", interface = "eth1" },
        ]
        """,
    )
    assert [(str(rule.source), rule.interface, rule.protocol, rule.ports) for rule in config.plan.allowed] == [
        ("192.0.2.0/24", None, "tcp", (22,)),
        ("2001:db8::/32", None, "tcp", (22,)),
        ("192.0.2.0/24", None, "udp", (53,)),
        ("2001:db8::/32", None, "udp", (53,)),
        ("None", "tun0", None, ()),
        ("192.0.2.7/32", "eth1", "tcp", (80,)),
    ]
    assert config.allowed_ports == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{ open = "22/tcp" }', "firewall.allow[0]: the key 'from' is missing, or 'interface'"),
        ('{ open = [], from = "192.0.2.7" }', "firewall.allow[0].open: is empty; leave it out to mean all"),
        ("{ from = [] }", "firewall.allow[0].from: is empty"),
        ('{ open = 22, from = ["192.0.2.300"] }', "firewall.allow[0].from: '192.0.2.300' does not appear"),
        ('{ open = 22, interface = "a b" }', "firewall.allow[0].interface: 'a b' is not the name of an interface"),
        ('{ open = 22, from = "192.0.2.1/24" }', "firewall.allow[0].from: 192.0.2.1/24 has host bits set"),
    ],
)
def test_what_is_wrong_with_an_allowed_one(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, DOOR + f"[firewall]\nallow = [{entry}]\n")
    assert message in str(caught.value)


def test_strays_are_watched_unless_it_is_said(tmp_path: Path) -> None:
    config = read(tmp_path, DOOR)
    assert config.plan.strays == Strays(group=6, tcpflags=(BARE_SYN,))
    assert config.thresholds == Thresholds(ports=20, within=10, ignore_timeout=60)
    config = read(tmp_path, DOOR + '[reader]\nqueue = 65535\n[guard]\nports = 0\nwithin = "1m"\nignore_timeout = 1\n')
    assert config.plan.strays
    assert config.plan.strays.group == 65534
    assert config.thresholds == Thresholds(ports=0, within=60, ignore_timeout=1)
    assert read(tmp_path, DOOR + "[guard]\nstrays = false\n").plan.strays is None


def test_packets_that_any_door_hears_may_be_strays(tmp_path: Path) -> None:
    config = read(tmp_path, DOOR + '[doors.fin]\nsequence = ["1", "2"]\nopen = ["23"]\ntcpflags = "fin"\n')
    assert config.plan.strays
    assert config.plan.strays.tcpflags == (TcpFlags.parse("fin"), BARE_SYN)

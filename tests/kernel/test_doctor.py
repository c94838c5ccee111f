"""`doctor` on real hosts: for each check something that is right, and something that is not."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import jsonschema
import pytest

from nfknock.cli.doctor import lines
from nfknock.doctor import Finding, Patient, kernel, standing
from nfknock.host import capabilities, modules
from tests.kernel.test_foreign_rulesets import inet
from tests.kernel.test_refusals import somebody_on_the_queue
from tests.lab import CLIENT4, NFKNOCK, Lab
from tests.setting import only_for
from tests.vandal import vandalise

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
"""
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "doctor.schema.json").read_text())


@pytest.fixture
def host(lab: Lab) -> Lab:
    lab.configure(DOOR)
    return lab


def examine(lab: Lab, *command: str, exit_code: int | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return what doctor says of each check: levels, and the line."""
    done = lab.bastion.run(*command, *NFKNOCK, "doctor", "--json", check=False)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    levels = {finding["level"] for finding in report["findings"]}
    assert done.returncode == (1 if "fault" in levels else 0)
    assert exit_code in (None, done.returncode)
    found: dict[str, list[tuple[str, str]]] = {}
    for each in report["findings"]:
        found.setdefault(each["check"], []).append((each["level"], f"{each['text']}; {each['mend']}"))
    return found


def levels(found: dict[str, list[tuple[str, str]]], check: str) -> list[str]:
    return [level for level, _line in found.get(check, [])]


def test_a_host_where_all_is_well(host: Lab) -> None:
    host.nfknock("apply")
    host.daemon()
    found = examine(host, exit_code=0)
    # Nobody sets the clock of this machine for a test, and what it says is what the kernel says.
    found.pop("clock")
    assert {level for each in found.values() for level, _line in each} == {"ok"}


def test_it_changes_nothing(host: Lab) -> None:
    """Not even by asking: a table, a module or a lock file that comes to be is a change."""
    names = ["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
    examine(host)
    assert host.bastion.run(*names).stdout == ""
    assert not Path(host.environment["XTABLES_LOCKFILE"]).exists()
    assert not Path(host.environment["NFKNOCK_RUNTIME_DIR"]).exists()
    host.nfknock("apply")
    host.nfknock("open", "ssh", CLIENT4)
    before = host.rules()
    tables = host.bastion.run(*names).stdout
    examine(host)
    assert (host.rules(), host.bastion.run(*names).stdout) == (before, tables)


def test_the_firewall_and_the_daemon(host: Lab) -> None:
    found = examine(host, exit_code=0)
    assert found["firewall"] == [("warning", "the firewall is not in place: nothing is guarded; run: nfknock apply")]
    assert levels(found, "daemon") == ["warning"]
    host.nfknock("apply")
    assert levels(examine(host), "firewall") == ["ok"]
    vandalise(host, "the jump")
    for level, line in examine(host, exit_code=1)["firewall"]:
        assert (level, line.endswith("; run: nfknock apply")) == ("fault", True)


@only_for("iptables", "ipset")
def test_ipv6_that_nobody_guards(host: Lab) -> None:
    host.nfknock("apply")
    assert levels(examine(host), "ipv6") == ["ok"]
    for arguments in ("-P INPUT ACCEPT", "-F", "-X"):
        host.bastion.run("ip6tables-legacy", *arguments.split())
    found = examine(host, exit_code=1)
    assert found["ipv6"][0][1].startswith("IPv6 is on, and has no rules: whoever comes over IPv6 comes in")
    assert "fault" in levels(found, "firewall")


@pytest.mark.parametrize(
    ("mode", "level"), [(0o600, "ok"), (0o400, "ok"), (0o644, "fault"), (0o640, "fault"), (0o620, "fault")]
)
def test_a_configuration_that_others_can_read_or_change(host: Lab, mode: int, level: str) -> None:
    host.config.chmod(mode)
    [(found, line)] = examine(host)["configuration-mode"]
    assert found == level
    assert level == "ok" or line.endswith(f"; chmod 600 {host.config}")


def test_a_configuration_that_is_wrong_or_not_there(host: Lab) -> None:
    host.configure("[doors.ssh]\nopn = 1\n")
    found = examine(host, exit_code=1)
    assert levels(found, "configuration") == ["fault"]
    assert "doors.ssh" in found["configuration"][0][1]
    host.config.unlink()
    assert levels(examine(host, exit_code=1), "configuration") == ["fault"]
    elsewhere = examine(host, "env", "-u", "NFKNOCK_CONFIG")
    if not Path("/etc/nfknock/nfknock.toml").exists():
        assert levels(elsewhere, "configuration") == ["warning"]


def test_interfaces_that_are_not_there(host: Lab) -> None:
    host.configure(f'[firewall]\ninterfaces = ["b0", "b+", "eht0"]\n{DOOR}')
    [(level, line)] = examine(host)["interfaces"]
    assert (level, "there is no interface eht0" in line) == ("warning", True)
    host.configure(f'[firewall]\ninterfaces = ["b0"]\n{DOOR}')
    assert examine(host)["interfaces"] == [("ok", "the interfaces are there: b0; ")]


@only_for("iptables", "ipset")
def test_the_lock(host: Lab) -> None:
    lock = Path(host.environment["XTABLES_LOCKFILE"])
    assert levels(examine(host), "lock") == ["ok"]
    with lock.open("w") as file:
        assert levels(examine(host), "lock") == ["ok"]
        fcntl.flock(file, fcntl.LOCK_EX)
        [(level, line)] = examine(host)["lock"]
    assert level == "warning"
    assert f"is held by process {os.getpid()} (" in line
    [(level, line)] = examine(host, "env", "XTABLES_LOCKFILE=/nonexistent/lock", exit_code=1)["lock"]
    assert (level, line.startswith("the xtables lock /nonexistent/lock cannot be created")) == ("fault", True)


@only_for("nfqueue")
def test_the_queue(host: Lab) -> None:
    assert levels(examine(host), "queue") == ["ok"]
    with somebody_on_the_queue(host) as pid:
        [(level, line)] = examine(host, exit_code=1)["queue"]
    assert level == "fault"
    assert line.startswith(f"process {pid} (")


def test_sets(host: Lab) -> None:
    host.configure(DOOR + '[firewall]\nbackend = "ipset"\n')
    host.nfknock("apply")
    assert examine(host)["sets"] == [("ok", "sets of the kernel (ipset); ")]


@only_for("iptables", "ipset")
def test_an_nf_tables_ruleset(host: Lab) -> None:
    assert examine(host)["nftables"] == [("ok", "there is no nf_tables ruleset that could drop what nfknock opens; ")]
    host.bastion.run("nft", "-f", "-", stdin=inet("tcp dport 22 limit rate 3/second drop"))
    assert levels(examine(host, exit_code=0), "nftables") == ["warning"]
    host.bastion.run("nft", "add rule inet filter input drop")
    [(level, line), (knocks, _line)] = examine(host, exit_code=1)["nftables"]
    assert (level, knocks) == ("fault", "warning")
    host.bastion.run(*line.partition("run: ")[2].split())
    host.bastion.run("nft", "insert rule inet filter input th dport { 7101, 8203, 9307 } accept")
    assert levels(examine(host, exit_code=0), "nftables") == ["ok"]


@only_for("iptables", "ipset")
def test_ufw_and_firewalld(host: Lab) -> None:
    assert "firewalld" not in examine(host)
    host.bastion.run("iptables-legacy", "-N", "ufw-user-input")
    host.bastion.run("nft", "-f", "-", stdin="table inet firewalld { chain x { }; }")
    found = examine(host)
    assert levels(found, "ufw") == levels(found, "firewalld") == ["warning"]
    assert "run: ufw disable" in found["ufw"][0][1]


@pytest.mark.parametrize("command", ["iptables", "iptables-legacy", "ip6tables", "ip6tables-legacy"])
def test_ports_that_docker_publishes(host: Lab, command: str) -> None:
    to = "[2001:db8::9]:80" if command.startswith("ip6") else "172.17.0.2:80"
    host.bastion.run(command, "-t", "nat", "-N", "DOCKER")
    rules = ["! -i docker0 -p tcp --dport 8080"]
    # One that is published on loopback alone is out of reach.
    rules += [] if command.startswith("ip6") else ["-d 127.0.0.1/32 -p tcp --dport 8081"]
    for rule in rules:
        host.bastion.run(command, "-t", "nat", "-A", "DOCKER", *rule.split(), "-j", "DNAT", "--to-destination", to)
    [(level, line)] = examine(host, exit_code=0)["docker"]
    assert level == "warning"
    assert line.startswith("Docker publishes 8080/tcp, which never comes by INPUT: nfknock does not guard it; ")
    host.configure(DOOR.replace("22/tcp", "8080/tcp"))
    [(level, line)] = examine(host, exit_code=1)["docker"]
    assert (level, "though the door ssh opens it; publish it on 127.0.0.1 alone" in line) == ("fault", True)


def test_ports_that_nft_sends_on(host: Lab) -> None:
    ruleset = """table ip docker-bridges { chain nat { type nat hook prerouting priority -100;
    tcp dport 8080 counter dnat to 172.17.0.2:80
    udp dport 53 counter masquerade
    }\n}"""
    host.bastion.run("nft", "-f", "-", stdin=ruleset.replace("udp dport 53 counter masquerade\n", ""))
    assert examine(host)["docker"][0][1].startswith("Docker publishes 8080/tcp")


def test_an_ordinary_user_sees_a_part_and_no_traceback(host: Lab) -> None:
    host.nfknock("apply")
    # In a user namespace of its own, where it has no rights over the bastion's network.
    user = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
    done = host.bastion.run(*user, "env", "-u", "NFKNOCK_CONFIG", *NFKNOCK, "doctor", "--json", check=False)
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["capabilities"]["level"] == "warning"
    assert found["nftables"]["mend"] == "run this as root"
    assert "fault" not in {each["level"] for each in found.values()}


def test_root_without_capabilities(host: Lab) -> None:
    found = examine(host, "setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", exit_code=1)
    assert levels(found, "capabilities") == ["fault"]
    assert "CAP_NET_RAW" in found["capabilities"][0][1]


@only_for("iptables", "ipset")
def test_a_kernel_without_ipv6_or_legacy_tables_says_so_without_a_traceback(host: Lab) -> None:
    host.nfknock("apply")
    said = {
        "ipv6": "ok       IPv6 is off",
        "legacy": "warning  firewall: could not be looked at: protocol not available",
    }
    for what, line in said.items():
        done = host.bastion.run(
            "env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable, "-m",
            "tests.kernel.seccomp", what, *NFKNOCK, "doctor", check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert done.stdout.splitlines()[0].startswith("ok       ")
        assert line in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("listed", "state", "level"),
    [
        ({"modules.builtin": {"iptable_filter", "ip6table_filter"}}, "there", "ok"),
        ({"modules.dep": {"iptable_filter", "ip6table_filter"}}, "loadable", "ok"),
        ({"modules.dep": {"nf_tables"}}, "absent", "fault"),
        ({}, None, "fault"),
    ],
)
def test_what_modules_tell_of_a_kernel_that_has_not_loaded_them(
    listed: dict[str, set[str]], state: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_listed", lambda name: frozenset(listed.get(name, ())))
    monkeypatch.setattr(modules, "_loaded", frozenset)
    monkeypatch.setattr(kernel, "Path", _NoSuchPath)
    assert modules.state("iptable_filter") == state
    patient = Patient(path=Path("/x"))
    found = {each.level for each in kernel.has_legacy_tables("legacy", patient) if "IPv4" in each.text}
    assert found == {level}


class _NoSuchPath(type(Path())):  # type: ignore[misc]
    def exists(self) -> bool:
        return False


def test_capabilities(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000003000\n")
    assert capabilities.missing(status) == []
    status.write_text("CapEff:\t0000000000001000\n")
    assert capabilities.missing(status) == ["CAP_NET_RAW"]


@pytest.mark.parametrize(("answer", "level"), [(True, "ok"), (False, "warning"), (None, "warning")])
def test_the_clock(level: str, monkeypatch: pytest.MonkeyPatch, *, answer: bool | None) -> None:
    monkeypatch.setattr(standing, "is_synchronised", lambda: answer)
    [finding] = standing.clock_is_right("clock", Patient(path=Path("/x")))
    assert finding.level == level


def test_a_finding_is_one_line_in_a_pipe(host: Lab) -> None:
    done = host.bastion.run("env", "COLUMNS=20", *NFKNOCK, "doctor", check=False)
    assert all(line.split()[0] in ("ok", "warning", "fault") for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [120, 80, 40, 20, 1])
def test_a_finding_is_folded_behind_its_level_in_a_terminal(width: int) -> None:
    finding = Finding("x", "warning", "the clock is not synchronised", "run a time service: chrony")
    folded = lines(finding, width)
    assert folded[0].startswith("warning  the ")
    assert all(line.startswith(" " * 9) for line in folded[1:])
    assert all(len(line) <= max(width, 22) for line in folded)
    assert " ".join(" ".join(folded).split()) == f"warning {finding}"


def test_in_a_terminal_it_is_coloured(host: Lab) -> None:
    command = f"env TERM=xterm COLUMNS=40 {NFKNOCK[0]} doctor"
    done = host.bastion.run("script", "-qec", command, "/dev/null", check=False)
    assert "\x1b[32mok\x1b[0m" in done.stdout

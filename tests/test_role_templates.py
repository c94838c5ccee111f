"""What the role makes of its variables: TOML that says the same, and doors as knockd's roles write them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.config import load
from tests.role import ROLE, DataLoader, Templar, trust_as_template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"', "\\", "\x7f", "\n", "\x00", "'''", "#", "😀", "é", "{{ 1 }}", "{% if %}", "22/tcp", "no", "1.5"]
)
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e6, 1e6),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=6,
)


def evaluate(template: str, **variables: Any) -> Any:
    """Return what a template of the role gives for its defaults and these."""
    loader = DataLoader()
    known: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        known |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    paths = {"ansible_search_path": [str(ROLE)], "inventory_hostname": "bastion"}
    return Templar(loader, variables={**known, **paths, **variables}).template(trust_as_template(template))


def render(**variables: Any) -> str:
    """Return the configuration that the role writes."""
    rendered = evaluate("{{ lookup('ansible.builtin.template', 'nfknock.toml.j2') }}", **variables)
    assert isinstance(rendered, str)
    return rendered


def doors(given_doors: Any) -> dict[str, Any]:
    """Return the doors that nfknock reads."""
    read: dict[str, Any] = tomllib.loads(render(nfknock_doors=given_doors))["doors"]
    return read


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=3))
def test_every_value_comes_back_as_it_was(log: dict[str, Any]) -> None:
    assert tomllib.loads(render(nfknock_log=log))["log"] == log


def test_a_configuration_with_everything(tmp_path: Path) -> None:
    text = render(
        nfknock_doors={"ssh": {"sequence": [7101, "8203/udp", "6307"], "open": [22], "open_timeout": "30s"}},
        nfknock_allow=["443/tcp", {"open": ["22/tcp"], "from": "192.0.2.7", "interface": "tun0"}],
        nfknock_interfaces=["eth0"],
        nfknock_firewall={"repair": False},
        nfknock_reader={"queue": 7, "answer": "reject"},
        nfknock_log={"syslog": True},
    )
    config = load(tmp_path / "nfknock.toml", text.encode())
    [door] = config.doors
    assert [str(port) for port in door.sequence] == ["7101/tcp", "8203/udp", "6307/tcp"]
    assert (config.plan.queue, config.log.syslog) == (7, True)


KNOCKD = {
    "sequence": "7101, 8203:udp,9307:tcp",
    "seq_timeout": "15",
    "open": 22,
    "cmd_timeout": 10,
    "tcpflags": ["syn", "!ack"],
    "one_time_sequences": "",
}


@pytest.mark.parametrize("written", [{"ssh": KNOCKD}, [{"name": "ssh", **KNOCKD}]])
def test_as_knockd_roles_write_it(written: Any) -> None:
    assert doors(written) == {
        "ssh": {
            "sequence": ["7101", "8203:udp", "9307:tcp"],
            "seq_timeout": 15,
            "open": [22],
            "open_timeout": 10,
            "tcpflags": "syn,!ack",
        }
    }


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("/usr/local/bin/lamp on %IP%", ["/usr/local/bin/lamp", "on", "%IP%"]),
        ("echo '%IP%' >>/run/seen", ["/bin/sh", "-c", "echo '%IP%' >>/run/seen"]),
        (["/bin/true", "a b"], ["/bin/true", "a b"]),
        ([], []),
    ],
)
def test_commands(command: Any, arguments: list[str]) -> None:
    made = doors({"lamp": {"sequence": "7101,8203:udp", "Command": command, "stop_command": command, "Cmd_Timeout": 5}})
    assert made["lamp"]["start_command"] == made["lamp"]["stop_command"] == arguments
    assert made["lamp"].get("cmd_timeout") == (5 if arguments else None)


def test_what_is_unknown_is_for_nfknock_to_refuse() -> None:
    assert doors({"ssh": {"sequence": [7101], "opne": ["22/tcp"]}})["ssh"] == {"sequence": [7101], "opne": ["22/tcp"]}


@pytest.mark.parametrize(
    ("command", "fate"),
    [
        ("/sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "refused"),
        ("sudo ufw allow from %IP%", "refused"),
        (["nft", "add", "rule"], "refused"),
        ("/usr/local/bin/iptables-report %IP%", "right"),
        (["/usr/local/bin/lamp", "on"], "right"),
    ],
)
def test_commands_that_write_a_firewall_are_refused(command: Any, fate: str) -> None:
    tasks = DataLoader().load_from_file(str(ROLE / "tasks/refusals.yml"), trusted_as_template=True)
    [that] = [task["ansible.builtin.assert"]["that"] for task in tasks if "firewall themselves" in task["name"]]
    given_doors = {"ssh": {"sequence": "7101,8203:udp", "open": "22", "command": command}, "web": {"sequence": "1,2"}}
    assert evaluate("{{ " + that + " }}", nfknock_doors=given_doors) is (fate == "right")


@pytest.mark.parametrize(
    ("opened", "door"), [(["443/tcp"], ""), (22, "ssh"), ("22:tcp", "ssh"), (["80", "22/tcp"], "ssh"), (["22/udp"], "")]
)
def test_the_door_by_which_the_controller_comes_in(opened: Any, door: str) -> None:
    given_doors = {"lamp": {"sequence": "1,2", "command": "/bin/true"}, "ssh": {"sequence": "7101", "open": opened}}
    assert evaluate("{{ nfknock__way_in }}", nfknock_doors=given_doors, nfknock_verify_port=22) == door

"""What of the role and of the examples can be played on this machine alone, which is not changed by it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.role import COLLECTION, ROLE, DataLoader, Templar, something_like_ssh, trust_as_template

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Desk:
    """Where plays are run."""

    directory: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        home = str(self.directory / "home")
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "HOME": home,
                "ANSIBLE_HOME": home,
                "ANSIBLE_LOCAL_TEMP": f"{home}/tmp",
                # Otherwise in the home directory that the user database knows, which may not be there.
                "ANSIBLE_REMOTE_TMP": f"{home}/tmp",
                "ANSIBLE_ROLES_PATH": str(COLLECTION / "roles"),
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
                **environment,
            },
        )

    def play(self, tasks: list[dict[str, Any]], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run tasks for a host `bastion`, which is this one."""
        play = {"hosts": "bastion", "connection": "local", "gather_facts": False, "tasks": tasks}
        (self.directory / "play.yml").write_text(yaml.safe_dump([play]))
        inventory = self.directory / "hosts"
        if not inventory.exists():
            inventory.write_text(f"bastion ansible_python_interpreter={sys.executable}\n")
        return self.run("ansible-playbook", "-i", str(inventory), *options, "play.yml", **environment)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def evaluate(template: str, **variables: Any) -> Any:
    """Return what a template gives."""
    return Templar(DataLoader(), variables=variables).template(trust_as_template(template))


@pytest.mark.parametrize("has_own", [True, False])
def test_the_controller_knocks_by_the_interpreter_that_the_inventory_names(desk: Desk, *, has_own: bool) -> None:
    """`nfknock_verify_from` is a host of the inventory like any other; localhost has the controller's own."""
    mark = desk.directory / "mark"
    wrapper = desk.directory / "python"
    wrapper.write_text(f'#!/bin/sh\n: >{mark}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    (desk.directory / "hosts").write_text(
        f"bastion ansible_python_interpreter={sys.executable}\n"
        f"prober ansible_connection=local ansible_python_interpreter={wrapper}\n"
    )
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_role": {"name": "nfknock", "tasks_from": "verify.yml", "public": True}}
    ]
    with something_like_ssh() as port:
        variables = {
            "nfknock_doors": {"web": {"sequence": ["7101"], "open": ["443/tcp"]}},
            "nfknock_verify_from": "prober" if has_own else "localhost",
            "nfknock_verify_host": "127.0.0.1",
            "nfknock_verify_port": port,
        }
        done = desk.play(tasks, "-e", json.dumps(variables))
    assert done.returncode == 0, done.stdout + done.stderr
    assert mark.exists() is has_own


def hole(source: str, opened_at: str, closes_at: str | None, **more: Any) -> dict[str, Any]:
    return {"door": "ssh", "source": source, "opened_at": opened_at, "closes_at": closes_at, "packets": 1, **more}


ME, OTHER = "192.0.2.2", "192.0.2.9"
MINE = hole(ME, "10:00", "10:30")
ENDLESS = hole(ME, "10:00", None)


@pytest.mark.parametrize(
    ("before", "after", "is_proof"),
    [
        ([], [MINE], True),
        ([MINE], [hole(ME, "10:00", "10:40")], True),
        ([MINE], [{**MINE, "packets": 7}], False),
        ([], [ENDLESS], True),
        ([ENDLESS], [ENDLESS], False),
        ([MINE], [MINE, hole(OTHER, "10:05", "10:35")], False),
        ([MINE], [MINE, {**MINE, "door": "web"}], False),
        # The host knows the controller by another address.
        ([hole(OTHER, "10:00", "10:30")], [hole(OTHER, "10:00", "10:40")], True),
    ],
)
def test_what_shows_a_knock_of_the_controller(before: Any, after: Any, *, is_proof: bool) -> None:
    tasks = DataLoader().load_from_file(str(ROLE / "tasks/verify.yml"), trusted_as_template=True)
    [task] = [each for each in tasks if each["name"] == "See whether it was the knock that opened"]
    said = {
        f"nfknock__open_{when}": {"stdout": json.dumps({"holes": holes})}
        for when, holes in (("before", before), ("after", after))
    }
    known = {"nfknock__way_in": "ssh", "nfknock__reached": {"source": ME}, **said, **task["vars"]}
    that = "{{ " + task["ansible.builtin.assert"]["that"] + " }}"
    assert evaluate(that, **known) is is_proof
    where = {"nfknock_verify_host": "bastion", "nfknock_verify_port": 22}
    message = evaluate(task["ansible.builtin.assert"]["fail_msg"], **known, **where)
    assert ("without an end" in message) is (ENDLESS in before)


@pytest.fixture
def fleet(desk: Desk) -> Desk:
    """The examples, beside a package; no bastion can be reached."""
    shutil.copytree(COLLECTION / "examples", desk.directory, dirs_exist_ok=True)
    (desk.directory / "nfknock.deb").write_bytes(b"")
    return desk


def rotate(fleet: Desk, *options: str) -> subprocess.CompletedProcess[str]:
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-F none", "web_sequence": []}
    given = ["-i", "inventory", "-e", json.dumps(nowhere), "rotate.yml"]
    return fleet.run("ansible-playbook", *options, *given)


def kept(fleet: Desk) -> Path:
    return fleet.directory / "inventory/group_vars/all/sequences.yml"


def test_a_rotation_that_did_not_reach_all_has_to_be_resumed(fleet: Desk) -> None:
    before = kept(fleet).read_text()
    first = rotate(fleet)
    assert "[bastion1.example.org]: UNREACHABLE" in first.stdout, first.stdout
    text = kept(fleet).read_text()
    sequences = yaml.safe_load(text)["sequences"]
    assert sequences["pending"] is True
    assert sequences["previous"] == yaml.safe_load(before)["sequences"]["current"] != sequences["current"]
    [backup] = kept(fleet).parent.glob("*~")
    assert backup.read_text() == before

    second = rotate(fleet)
    assert second.returncode != 0
    assert "rotation=resume" in second.stdout
    assert kept(fleet).read_text() == text

    resumed = rotate(fleet, "-e", "rotation=resume")
    assert "UNREACHABLE" in resumed.stdout
    assert kept(fleet).read_text() == text


def test_meanwhile_the_bastions_are_reached_with_the_sequence_that_all_know(fleet: Desk) -> None:
    text = kept(fleet).read_text()
    sequences = yaml.safe_load(text)["sequences"]
    for pending, known in (("", "current"), ("  pending: true\n", "previous")):
        kept(fleet).write_text(text + pending)
        shown = fleet.run("ansible-inventory", "-i", "inventory", "--host", "bastion1.example.org")
        variables = trusted(json.loads(shown.stdout))
        arguments = evaluate("{{ ansible_ssh_common_args }}", **variables)
        assert f"--sequence {','.join(sequences[known])}" in arguments


def trusted(value: Any) -> Any:
    """Return variables whose templates are to be evaluated."""
    match value:
        case str():
            return trust_as_template(value)
        case dict():
            return {key: trusted(each) for key, each in value.items()}
        case list():
            return [trusted(each) for each in value]
    return value


def encrypt_whole(fleet: Desk) -> None:
    done = fleet.run("ansible-vault", "encrypt", "--vault-password-file", "password", str(kept(fleet)))
    assert done.returncode == 0, done.stderr


def encrypt_a_value(fleet: Desk) -> None:
    value = json.dumps(yaml.safe_load(kept(fleet).read_text())["sequences"])
    done = fleet.run("ansible-vault", "encrypt_string", "--vault-password-file", "password", "--name", "secret", value)
    kept(fleet).write_text(f'---\n{done.stdout}sequences: "{{{{ secret | from_json }}}}"\n')


@pytest.mark.parametrize("encrypt", [encrypt_whole, encrypt_a_value])
def test_what_is_in_a_vault_is_not_written_in_plain_text(fleet: Desk, encrypt: Any) -> None:
    (fleet.directory / "password").write_text("secret\n")
    encrypt(fleet)
    text = kept(fleet).read_text()
    refused = rotate(fleet, "--vault-password-file", "password")
    assert refused.returncode != 0
    assert "would be written in plain text" in refused.stdout, refused.stdout + refused.stderr
    assert kept(fleet).read_text() == text


def test_no_part_of_a_fleet_gets_a_sequence_of_its_own(fleet: Desk) -> None:
    text = kept(fleet).read_text()
    refused = rotate(fleet, "--limit", "localhost,bastion1.example.org")
    assert refused.returncode != 0
    assert "without --limit" in refused.stdout
    assert kept(fleet).read_text() == text


HEADER = "# Ansible writes this file; what is changed here by hand is lost. The sequences are secrets.\n"
AFTER = f'{HEADER}[doors.ssh]\nsequence = ["7101", "8203/udp"]\none_time_sequences = "/var/lib/nfknock/once"\n'


def plugin() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "nfknock_configuration", ROLE / "action_plugins/nfknock_configuration.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "before",
    [
        HEADER + 'sequence = ["6001"]\n',
        HEADER + '# sequence = ["6001"]\n',
        HEADER + '"close_sequence" = ["6001"]\n',
        HEADER + "doors.ssh = { open = [22], sequence = [\n  6001,\n  6002,\n] }\n",
        HEADER + 'sequence = "6001,7101"\n',
        "[ssh]\n  sequence = 6001,7101\n",
        "knocks: 6001\n",
    ],
)
def test_the_difference_shows_no_knock(before: str) -> None:
    was, becomes = plugin()._hidden(before, AFTER)
    assert "600" not in was
    assert "710" not in was + becomes
    assert "sequence = [hidden, new]" in becomes
    assert 'one_time_sequences = "/var' in becomes


def test_the_difference_shows_what_stays_and_what_is_new() -> None:
    assert plugin()._hidden("", AFTER) == ("", AFTER.replace('["7101", "8203/udp"]', "[hidden, new]"))
    hidden = AFTER.replace('["7101", "8203/udp"]', "[hidden]")
    assert plugin()._hidden(AFTER, AFTER) == (hidden, hidden)


def test_as_a_collection(desk: Desk) -> None:
    """The role by its full name, and by theirs in its tasks the action and the module that come with it."""
    collections = str(desk.directory / "collections")
    built = desk.run("ansible-galaxy", "collection", "build", str(COLLECTION), "--output-path", str(desk.directory))
    assert built.returncode == 0, built.stderr
    [archive] = desk.directory.glob("*.tar.gz")
    installed = desk.run(
        "ansible-galaxy", "collection", "install", "--offline", "--collections-path", collections, str(archive)
    )
    assert installed.returncode == 0, installed.stderr
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_role": {"name": "nfknock.nfknock.nfknock", "tasks_from": each}}
        for each in ("configure.yml", "verify.yml")
    ]
    with something_like_ssh() as port:
        variables = {
            "nfknock_doors": {"web": {"sequence": ["7101"], "open": ["443/tcp"]}},
            "nfknock_verify_host": "127.0.0.1",
            "nfknock_verify_port": port,
            "nfknock__config": str(desk.directory / "nfknock.toml"),
        }
        done = desk.play(
            tasks,
            *("-e", json.dumps(variables), "--check", "--diff"),
            ANSIBLE_COLLECTIONS_PATH=collections,
            ANSIBLE_ROLES_PATH=str(desk.directory / "none"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "+sequence = [hidden, new]" in done.stdout
    assert "Make a new connection from the controller" in done.stdout


def test_a_restart_in_an_earlier_play_is_forgotten(desk: Desk) -> None:
    """Otherwise the daemon would not be told of another configuration."""
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": {"nfknock__restart": {"changed": True}}},
        {
            "block": [{"ansible.builtin.include_role": {"name": "nfknock", "tasks_from": "present.yml"}}],
            "rescue": [
                {"ansible.builtin.assert": {"that": "'nfknock_wheels' in ansible_failed_result.msg"}},
                {"ansible.builtin.assert": {"that": "nfknock__restart is not changed"}},
            ],
        },
    ]
    doors = {"web": {"sequence": ["7101"], "open": ["443/tcp"]}}
    # It ends where there are no wheels, before anything is done to this host.
    done = desk.play(tasks, "-e", json.dumps({"nfknock_doors": doors, "nfknock_install_from": "wheels"}))
    assert done.returncode == 0, done.stdout + done.stderr

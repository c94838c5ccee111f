"""The example playbooks, as they are, at a fleet of three that boot: over SSH, each connection through the knock."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.bastion.machine import BASTION4, ROOT, Machine, alone, machine
from tests.lab import Host

pytestmark = [pytest.mark.root, pytest.mark.long]

# The first two are in the example inventory.
NAMES = ("bastion1.example.org", "bastion2.example.org", "bastion3.example.org")
INSIDE = "db.internal.example.org"
WEB = {"web_sequence": ["3101", "5203/udp", "2307"]}
BIN = Path(sys.executable).parent
HOME = str(Path("~root").expanduser())
# What is written at home is kept with the rest of what belongs to the test.
AT_WORK = """
mount --bind "$0/hosts" /etc/hosts &&
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$0/home,workdir=$0/work" "$1" && shift && exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Three bastions, and the operator's machine, from which the examples are played."""

    machines: tuple[Machine, ...]
    addresses: dict[str, str]
    office: Host
    directory: Path

    @property
    def sequences(self) -> dict[str, list[str]]:
        """What the inventory says, `current` and `previous`."""
        kept = self.directory / "inventory/group_vars/all/sequences.yml"
        found: dict[str, list[str]] = yaml.safe_load(kept.read_text())["sequences"]
        return found

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program on the operator's machine, where the bastions' names are known."""
        return subprocess.run(
            self.office.command("unshare", "--mount", "sh", "-c", AT_WORK, str(self.directory), HOME, *command),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **self._environment()},
            timeout=600,
        )

    def play(self, playbook: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return self.run("ansible-playbook", "-i", "inventory", "-e", json.dumps(variables), playbook)

    def answers(self, name: str, *knocks: str) -> bool:
        """Whether a bastion's SSH answers, after these knocks."""
        if knocks:
            self.run("nfknock", "knock", name, *(knock.replace("/", ":") for knock in knocks))
        return self.run("nc", "-z", "-w", "2" if knocks else "1", name, "22").returncode == 0

    def _environment(self) -> dict[str, str]:
        return {
            # An ssh that takes the configuration of this operator, first.
            "PATH": f"{self.directory / 'bin'}:{BIN}:{os.environ['PATH']}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "s"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "ansible/roles"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }


@pytest.fixture
def fleet(tree: Path, deb: Path, tmp_path: Path) -> Iterator[Fleet]:
    with alone(), contextlib.ExitStack() as closing:
        machines = []
        for name in NAMES:
            (tmp_path / name).mkdir()
            machines.append(closing.enter_context(machine(tmp_path / name, tree)))
            machines[-1].boot()
        office = machines[0].lab.client
        addresses = {NAMES[0]: BASTION4}
        for number, name in enumerate(NAMES[1:], 1):
            addresses[name] = join(office, machines[number].lab.bastion, number)
        for each in machines[1:]:
            each.write("/root/.ssh/authorized_keys", machines[0].public_key, mode=0o600)
        # The host behind it is the bastion itself, by another name.
        machines[0].write("/etc/hosts", f"127.0.0.1 localhost {INSIDE}\n")
        yield Fleet(tuple(machines), addresses, office, furnish(tmp_path / "office", machines[0], addresses, deb))


def join(office: Host, bastion: Host, number: int) -> str:
    """Lay another cable between two hosts and return the bastion's address."""
    here, there = (f"198.51.100.{4 * number + end}" for end in (2, 1))
    bastion.run("ip", "link", "add", "b1", "type", "veth", "peer", "name", f"o{number}", "netns", str(office.pid))
    for host, device, address in ((bastion, "b1", there), (office, f"o{number}", here)):
        host.run("ip", "addr", "add", f"{address}/30", "dev", device)
        host.run("ip", "link", "set", device, "up")
    return there


def furnish(office: Path, first: Machine, addresses: dict[str, str], deb: Path) -> Path:
    """Put the examples where an operator would, with the package beside them."""
    shutil.copytree(ROOT / "ansible/examples", office)
    shutil.copyfile(deb, office / "nfknock.deb")
    inventory = office / "inventory/bastions.yml"
    text = inventory.read_text()
    inventory.write_text(text.replace(f"        {NAMES[1]}:\n", f"        {NAMES[1]}:\n        {NAMES[2]}:\n"))
    of_laptop = office / "inventory/host_vars/laptop1.example.org.yml"
    of_laptop.parent.mkdir()
    of_laptop.write_text(f"ansible_connection: local\nansible_python_interpreter: {sys.executable}\n")
    (office / "hosts").write_text("".join(f"{address} {name}\n" for name, address in addresses.items()))
    # A connection that Ansible has kept would wait for long at a host that is out of reach.
    config = "ServerAliveInterval 5\nServerAliveCountMax 4\n"
    config += "User root\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\nLogLevel ERROR\nIdentitiesOnly yes\n"
    (office / "ssh_config").write_text(
        f"Include {HOME}/.ssh/config.d/nfknock\nHost *\n{config}IdentityFile {first.key}\n"
    )
    for name in ("bin", "home", "s", "work"):
        (office / name).mkdir()
    program = office / "bin/ssh"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {office}/ssh_config "$@"\n')
    program.chmod(0o755)
    return office


def test_one_list_of_doors_a_rotation_and_a_way_through(fleet: Fleet) -> None:
    # What goes wrong at the first stops before the second.
    wrong = ["7101", "8203/udp", "9307"]
    stopped = fleet.play(
        "fleet.yml", **WEB, nfknock_verify_sequence=wrong, nfknock_verify_timeout=4, nfknock_confirm_timeout=15
    )
    assert stopped.returncode != 0
    assert f"{NAMES[0]} is as it was before" in stopped.stdout
    assert "No such file" in fleet.machines[1].run("ls", "/etc/nfknock", check=False)
    assert fleet.answers(NAMES[0])

    assert_right(fleet.play("fleet.yml", **WEB))
    for each in fleet.machines:
        each.run("nfknock", "close", "--all")
    assert [fleet.answers(name) for name in NAMES] == [False] * 3

    # By way of the first bastion, which is knocked at.
    assert_right(fleet.run("ansible", "-i", "inventory", "inside", "-m", "ansible.builtin.command", "-a", "true"))

    before = fleet.sequences
    # One is out of reach: some know the new one, and some do not.
    second = fleet.machines[1].lab.bastion
    second.run("ip", "link", "set", "b1", "down")
    missing = fleet.play("rotate.yml", **WEB)
    assert f"[{NAMES[1]}]: UNREACHABLE" in missing.stdout
    assert "Let ssh knock" not in missing.stdout
    second.run("ip", "link", "set", "b1", "up")
    after = fleet.sequences
    assert after["previous"] == before["current"] != after["current"]
    assert "rotation=resume" in fleet.play("rotate.yml", **WEB).stdout
    assert_right(fleet.play("rotate.yml", **WEB, rotation="resume"))
    assert fleet.sequences == {"current": after["current"], "previous": after["previous"]}
    after = fleet.sequences
    for name, each in zip(NAMES, fleet.machines, strict=True):
        for knocks, is_open in ((before["previous"], False), (before["current"], True), (after["current"], True)):
            each.run("nfknock", "close", "--all")
            assert fleet.answers(name, *knocks) is is_open
    # The laptop has been told.
    fleet.machines[1].run("nfknock", "close", "--all")
    assert_right(fleet.run("ssh", NAMES[1], "true"))

    # The same list of doors, whichever is played, and nothing left to do.
    for playbook, hosts in (("fleet.yml", 3), ("rotate.yml", 5)):
        again = fleet.play(playbook, **WEB, rotation="resume")
        assert_right(again)
        assert again.stdout.count("changed=0") == hosts, again.stdout
    assert fleet.sequences == after


def assert_right(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr

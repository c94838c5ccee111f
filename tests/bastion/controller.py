"""An Ansible controller, in the network where a lab's client is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bastion.machine import ROOT, Machine
from tests.lab import BASTION4, NFKNOCK

ROLES = ROOT / "ansible/roles"
PLAYBOOK = """
- name: A bastion
  hosts: all
  roles:
    - nfknock
"""


@dataclass(frozen=True, slots=True)
class Recap:
    """How a play ended, and all that it said."""

    ok: bool
    changed: int
    output: str


class Controller:
    """Plays the role at a machine over SSH, through `nfknock connect` once it has a sequence."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        self._directory = directory / "controller"
        self._directory.mkdir()
        self._machine = machine
        self.sequence = ""
        """What it knocks to come in, in the words of `connect --sequence`; empty: SSH answers without."""

    def play(self, variables: dict[str, Any], *options: str, playbook: str = PLAYBOOK) -> Recap:
        """Run a playbook to its end."""
        command = self._command(variables, *options, playbook=playbook)
        with self._sockets() as sockets:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env={**os.environ, **self._environment(sockets)},
                timeout=300,
            )
        output = done.stdout + done.stderr
        counted = re.search(r"^bastion +: ok=\d+ +changed=(\d+)", output, re.MULTILINE)
        return Recap(ok=done.returncode == 0, changed=int(counted[1]) if counted else -1, output=output)

    @contextlib.contextmanager
    def playing(self, variables: dict[str, Any]) -> Iterator[None]:
        """Run the role while the block does, and be gone at its end without another word."""
        with self._sockets() as sockets:
            process = subprocess.Popen(
                self._command(variables, playbook=PLAYBOOK),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._environment(sockets)},
                start_new_session=True,
            )
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _command(self, variables: dict[str, Any], *options: str, playbook: str) -> list[str]:
        site, given = self._directory / "site.yml", self._directory / "variables.json"
        site.write_text(playbook)
        given.write_text(json.dumps({**self._connection(), **variables}))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "--inventory", "bastion,", "--extra-vars", f"@{given}", *options, str(site)]
        return self._machine.lab.client.command(*command)

    def _connection(self) -> dict[str, Any]:
        options = ["-F none", "-o UserKnownHostsFile=/dev/null", "-o StrictHostKeyChecking=no", "-o IdentitiesOnly=yes"]
        if self.sequence:
            # Each play comes in anew.
            knocking = f"{NFKNOCK[0]} connect %h %p --sequence {self.sequence}"
            options.append(f'-o ProxyCommand="{knocking}"')
        return {
            "ansible_host": BASTION4,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._machine.key),
            "ansible_ssh_common_args": " ".join(options),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    @contextlib.contextmanager
    def _sockets(self) -> Iterator[str]:
        """Give a place for SSH's control sockets, whose path is to be short; at the end all connections are closed."""
        with tempfile.TemporaryDirectory(prefix="ssh-", dir="/tmp") as place:
            yield place
            for control in Path(place).iterdir():
                subprocess.run(["ssh", "-o", f"ControlPath={control}", "-O", "exit", "bastion"], capture_output=True)

    def _environment(self, sockets: str) -> dict[str, str]:
        home = self._directory / "home"
        return {
            "HOME": str(home),
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
            "ANSIBLE_ROLES_PATH": str(ROLES),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_TIMEOUT": "30",
            "LC_ALL": "C.UTF-8",
        }

"""A Debian that really boots, with systemd as process 1, where a lab's bastion is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.lab import BASTION4, CLIENT4, Lab, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Of a machine that has nothing else to do it takes less than a second.
_BOOT_TIMEOUT = 120


def why_not() -> str:
    """Return why no machine can be booted here, empty if one can."""
    if shutil.which("systemd-nspawn") is None:
        return "there is no systemd-nspawn here"
    if "cgroup2" not in Path("/proc/mounts").read_text():
        return "there is no cgroup2 here"
    return ""


class Machine:
    """One machine, which may be shut down and booted again: what it has written stays, the kernel forgets."""

    def __init__(self, directory: Path, layers: Sequence[Path]) -> None:
        self.state = directory / "disk"
        self.state.mkdir()
        self._directory = directory
        self._layers = layers
        self._boots = 0
        self._closing = contextlib.ExitStack()
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.lab: Lab
        """The network of this boot, with its client."""
        self.is_up = False
        self.key = directory / "key"
        """What root may log in with."""
        self._keygen(self.key)
        host_key = self.path("/etc/ssh/ssh_host_ed25519_key")
        if not host_key.exists():
            host_key.parent.mkdir(parents=True, exist_ok=True)
            self._keygen(host_key)
        self.write("/root/.ssh/authorized_keys", self.public_key, mode=0o600)

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text()

    @staticmethod
    def _keygen(path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def path(self, name: str) -> Path:
        """Where a file of the machine is, seen from here; before it has booted, or after."""
        assert not self.is_up  # nobody may write below a mounted overlay
        return self.state / "up" / name.lstrip("/")

    def write(self, name: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of the machine, while it runs or before; then a directory of a layer loses its mode."""
        path = Path(self._root(), name.lstrip("/")) if self.is_up else self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def wire(self) -> Lab:
        """Lay the cables for the next boot: the kernel of a machine that is switched on has no rules."""
        directory = self._directory / f"boot{self._boots}"
        self._boots += 1
        directory.mkdir()
        self.lab = Lab(directory)
        self._closing.callback(self.lab.stop)
        return self.lab

    def switch_on(self) -> None:
        """Let it boot, and do not wait for it."""
        # The host's cgroups are one for all, also for tests in other namespaces of processes.
        self._name = f"bastion-{secrets.token_hex(6)}"
        log = self._closing.enter_context((self._directory / "console").open("ab"))
        command = [str(HERE / "boot"), self._name, self.lab.bastion.path, str(self.state), *map(str, self._layers)]
        self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._closing.callback(self._switch_off)
        wait_until(self._has_systemd, "systemd as process 1", within=_BOOT_TIMEOUT)
        self.is_up = True

    def boot(self) -> None:
        """Lay the cables, and boot to the end."""
        self.wire()
        self.switch_on()
        self.wait_until_booted()

    def wait_until_booted(self) -> None:
        state = self.run("timeout", str(_BOOT_TIMEOUT), "systemctl", "is-system-running", "--wait", check=False).strip()
        assert state == "running", f"{state}\n{self.run('systemctl', 'list-units', '--failed', check=False)}"

    def shut_down(self) -> None:
        """Halt it; its network goes, too."""
        self._closing.close()

    def reboot(self) -> None:
        self.shut_down()
        self.boot()

    def run(self, *arguments: str, check: bool = True, stdin: str = "") -> str:
        """Run a program on the machine, as root, to its end; return what it says."""
        done = subprocess.run(
            self._inside(*arguments), capture_output=True, text=True, input=stdin, env=self._environment(), timeout=300
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program on the machine."""
        return subprocess.Popen(self._inside(*arguments), text=True, env=self._environment(), **options)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def journal(self, unit: str) -> str:
        """Return what a unit has said, with seconds since the machine was booted."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def ssh(self, *command: str, within: float = 10) -> str:
        """Log in from the client, as root, and return what a command says. Raises AssertionError."""
        done = self.lab.client.run(*self.ssh_command(within), *command, check=False)
        assert done.returncode == 0, f"ssh: exit {done.returncode}: {done.stderr}"
        return done.stdout

    def ssh_command(self, within: float = 10) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        options += [f"ConnectTimeout={within:g}", "IdentitiesOnly=yes"]
        return ["ssh", "-F", "none", "-i", str(self.key), *(f"-o{each}" for each in options), f"root@{BASTION4}"]

    def install(self, package: Path, *options: str) -> str:
        """Install a .deb, with what it needs from the repository on the machine."""
        content = package.read_bytes()
        self.write_bytes(f"/root/{package.name}", content)
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "--no-install-recommends")
        return self.run(*apt, *options, "install", f"/root/{package.name}")

    def write_bytes(self, name: str, content: bytes) -> None:
        Path(self._root(), name.lstrip("/")).write_bytes(content)

    def main_process(self) -> int:
        """Return the daemon's process id, seen from here."""
        inside = self.show("nfknock", "MainPID")
        [group] = self._cgroup().rglob("nfknock.service/cgroup.procs")
        for process in group.read_text().split():
            if re.search(rf"^NSpid:.*\s{inside}$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE):
                return int(process)
        raise AssertionError(f"process {inside} of the machine does not run")

    def _root(self) -> str:
        return f"/proc/{self._leader}/root"

    def _inside(self, *arguments: str) -> list[str]:
        return ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *arguments]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/root",
        }

    def _has_systemd(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended: {(self._directory / 'console').read_text()[-2000:]}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                is_apart = Path(f"/proc/{child}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
                is_init = Path(f"/proc/{child}/comm").read_text() == "systemd\n"
                if is_apart and is_init and Path(f"/proc/{child}/root/run/systemd/private").is_socket():
                    self._leader = int(child)
                    return True
        return False

    def _cgroup(self) -> Path:
        [mount] = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line][:1]
        return Path(mount, self._name)

    def _switch_off(self) -> None:
        """Halt it, and leave nothing of it."""
        assert self._nspawn is not None
        self._nspawn.terminate()
        try:
            self._nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
        group = self._cgroup()
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
        self._nspawn.wait()
        self.is_up = False
        give_up_at = time.monotonic() + 10
        while group.exists() and time.monotonic() < give_up_at:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
            time.sleep(0.05)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Be the only one to boot machines, of those that run the tests of this checkout side by side."""
    lock = os.open(HERE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def machine(directory: Path, *layers: Path) -> Iterator[Machine]:
    """A machine that is shut down at the end."""
    made = Machine(directory, layers)
    try:
        yield made
    finally:
        made.shut_down()


__all__ = ["BASTION4", "CLIENT4", "Machine", "machine", "why_not"]

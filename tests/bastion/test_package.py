"""The Debian package: what is in it, and its life on a host, from the first version to the purge."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bastion.conftest import Once, build, find_tree, needs, run_script
from tests.bastion.machine import BASTION4, ROOT, Machine, alone, machine
from tests.bastion.test_bastion import configure, knock, status, wait_until_it_runs
from tests.lab import CLIENT4, wait_until

pytestmark = pytest.mark.root
# What dpkg, apt, systemd and the C library keep for themselves; and what a machine writes anyway.
_NOT_OURS = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/var/lib/systemd", "/root", "/tmp", "/var/tmp")


def test_two_builds_are_the_same_bytes(deb: Path, tmp_path: Path) -> None:
    """Wherever the checkout is, whenever it was made, whatever its files' modes are."""
    tree = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", ".hypothesis", "dist")
    shutil.copytree(ROOT, tree, ignore=ignored, copy_function=shutil.copyfile)
    (tree / "script/deb").chmod(0o700)
    libraries = next((ROOT / ".venv/lib").glob("python3.*/site-packages"))
    run_script(tree, tmp_path, "--site-packages", str(libraries))
    [again] = tmp_path.glob("*.deb")
    assert again.name == deb.name
    assert again.read_bytes() == deb.read_bytes()


def test_nothing_is_in_lib_where_that_is_a_link(once: Once) -> None:
    """dpkg of Debian 13 warns of it, and loses files when another package does the same."""
    package = build(once, "deb13", "--release", "debian13")
    listed = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True).stdout
    paths = [line.split()[5] for line in listed.splitlines()]
    assert "./usr/lib/systemd/system/nfknock.service" in paths
    assert not [path for path in paths if path.startswith("./lib")]


@pytest.mark.long
def test_lintian_has_nothing_to_say(deb: Path) -> None:
    needs("lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", deb], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def older(once: Once) -> Path:
    return build(once, "deb-older", "--revision", "0")


@pytest.mark.long
def test_an_upgrade_under_a_session_and_an_open_hole(bare: Machine, older: Path, deb: Path) -> None:
    bare.boot()
    bare.install(older)
    configure(bare)
    bare.run("systemctl", "enable", "--now", "nfknock")
    bare.run("sed", "-i", "s/^    weekly/    daily/", "/etc/logrotate.d/nfknock")
    knock(bare.lab)
    with session(bare) as ask:
        assert ask("echo before") == "before\n"
        hole, process = status(bare)["holes"], bare.show("nfknock", "MainPID")
        bare.install(deb, "-o", "Dpkg::Options::=--force-confold")
        assert ask("dpkg-query -W -f '${Version}\\n' nfknock").startswith("0.1.0-1+")
        wait_until_it_runs(bare, after=process)
        assert [each["closes_at"] for each in status(bare)["holes"]] == [each["closes_at"] for each in hole]
        assert bare.ssh("id", "-un") == "root\n"
        assert ask("echo after") == "after\n"
    assert "daily" in bare.run("cat", "/etc/logrotate.d/nfknock")
    assert bare.run("systemctl", "is-enabled", "nfknock") == "enabled\n"


@pytest.mark.long
def test_a_removal_takes_the_firewall_out_and_a_purge_leaves_nothing(bare: Machine, deb: Path) -> None:
    bare.boot()
    bare.run("apt-get", "-y", "-q", "install", "iptables", "libnetfilter-queue1", "libnftables1")
    for command in ("iptables-legacy", "ip6tables-legacy"):
        bare.lab.bastion.run(command, "-S")  # so that there are tables to be compared
    before, rules = files(bare), bare.lab.rules()
    bare.install(deb)
    configure(bare)
    bare.run("systemctl", "enable", "--now", "nfknock")
    assert bare.lab.is_shut(BASTION4, 22)
    pipe = subprocess.PIPE
    holder = bare.start("flock", "/run/xtables.lock", "sh", "-c", "echo held; cat", stdin=pipe, stdout=pipe)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said = bare.run("apt-get", "-y", "-q", "remove", "nfknock", check=False)
    holder.communicate()
    assert "the firewall could not be taken out, for the reason above; the package stays" in said
    assert bare.run("systemctl", "is-active", "nfknock") == "active\n"
    assert bare.lab.is_shut(BASTION4, 22)

    bare.run("apt-get", "-y", "-q", "remove", "nfknock")
    assert bare.lab.rules() == rules
    assert bare.lab.reaches(BASTION4, 22)
    assert "[doors.ssh]" in bare.run("cat", "/etc/nfknock/nfknock.toml")

    # Installed again it is as it was: enabled, with its configuration.
    bare.install(deb)
    assert bare.run("systemctl", "is-enabled", "nfknock") == "enabled\n"
    bare.run("systemctl", "start", "nfknock")
    knock(bare.lab)
    wait_until(lambda: [hole["source"] for hole in status(bare)["holes"]] == [CLIENT4], "the hole")

    # Whatever the configuration is, the way out is open; and no daemon puts back what goes before it is stopped.
    bare.write("/etc/nfknock/nfknock.toml", "[doors.ssh", mode=0o640)
    bare.run("apt-get", "-y", "-q", "purge", "nfknock")
    assert bare.lab.rules() == rules
    assert files(bare) - before == set()
    assert bare.run("getent", "passwd", "nfknock", check=False) == ""


@pytest.mark.long
def test_debian_13(once: Once, tmp_path: Path) -> None:
    """With another Python, another iptables, and libraries of the release's own; the package is built here."""
    package = build(once, "deb13", "--release", "debian13")
    with alone(), machine(tmp_path, find_tree("trixie")) as bastion:
        bastion.boot()
        assert "Warning" not in bastion.install(package)
        configure(bastion)
        bastion.run("systemctl", "enable", "--now", "nfknock")
        for _ in range(2):
            assert bastion.lab.is_shut(BASTION4, 22)
            knock(bastion.lab)
            assert bastion.ssh("grep", "VERSION_ID", "/etc/os-release") == 'VERSION_ID="13"\n'
            bastion.reboot()
        assert bastion.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "nfknock.service") == ""


def files(host: Machine) -> set[str]:
    """Return what is on the machine's disk, and in its /run."""
    pruned = [word for place in _NOT_OURS for word in ("-path", place, "-prune", "-o")]
    found = host.run("find", "/", "-xdev", *pruned, "-print").splitlines()
    return {*found, *host.run("find", "/run", "-xdev", "-name", "*nfknock*").splitlines()}


@contextlib.contextmanager
def session(host: Machine) -> Iterator[Callable[[str], str]]:
    """Log in and stay; each command is one line in, and what it says one line back."""
    pipe = subprocess.PIPE
    process = host.lab.client.start(*host.ssh_command(), "sh", stdin=pipe, stdout=pipe)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def ask(command: str) -> str:
        stdin.write(f"{command}\n")
        stdin.flush()
        return stdout.readline()

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()

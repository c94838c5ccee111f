"""Machines to be had: bare ones, and such that have nfknock installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bastion.machine import HERE, ROOT, Machine, alone, machine, why_not

Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a directory once for all that run the tests side by side."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            directory = place / name
            if not directory.exists():
                part = place / f"{name}.part"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part)
                part.rename(directory)
            return directory

    return made


def find_tree(suite: str) -> Path:
    """Return where a bare Debian is; without one the test is skipped, or fails."""
    reason = why_not()
    where = subprocess.run([HERE / "build", "--where", suite], check=True, capture_output=True, text=True).stdout
    found = Path(where.removesuffix("\n"))
    if not reason and not found.is_dir():
        reason = f"there is no Debian to boot, as `tests/bastion/build {suite}` has not been run, or it failed"
    if reason:
        give_up(reason)
    return found


@pytest.fixture(scope="session")
def tree() -> Path:
    """A bare Debian 12."""
    return find_tree("bookworm")


@pytest.fixture(scope="session")
def deb(once: Once) -> Path:
    """The package, for this host's release."""
    return build(once, "deb")


def build(once: Once, name: str, *options: str) -> Path:
    """Build the package, once for each name."""
    needs("dpkg-deb", "patchelf", "strip")
    [made] = once(name, lambda directory: run_script(ROOT, directory, *options)).glob("*.deb")
    return made


def run_script(checkout: Path, output: Path, *options: str) -> None:
    """Build the package of a checkout, which need not have a history."""
    command = [str(checkout / "script/deb"), "--output", str(output), *options]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1763700000"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def needs(*programs: str) -> None:
    """Skip where a program is missing; with CI=true that is a failure."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        give_up(f"not installed: {', '.join(missing)}")


def give_up(reason: str) -> None:
    """Skip, or fail where nothing may be skipped."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture
def bare(tree: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine without nfknock; it is for the test to boot it."""
    with alone(), machine(tmp_path, tree) as made:
        yield made


@pytest.fixture(scope="session")
def installed(once: Once, tree: Path, deb: Path) -> Path:
    """What the installation of the package writes, as a layer over the bare Debian."""

    def make(directory: Path) -> None:
        with alone(), machine(directory, tree) as made:
            made.boot()
            made.install(deb)

    return once("installed", make) / "disk/up"


@pytest.fixture
def bastion(installed: Path, tree: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nfknock was installed; it is for the test to boot it."""
    with alone(), machine(tmp_path, installed, tree) as made:
        yield made

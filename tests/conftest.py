"""What every test can ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.lab import Lab, can_make_namespaces, is_root, own_namespace
from tests.setting import CHOSEN, Setting

# A machine that is busy for a moment is no failure. `script/test --all` looks much further.
_LONG = "NFKNOCK_TEST_ALL" in os.environ
settings.register_profile(
    "nfknock",
    deadline=None,
    derandomize="CI" in os.environ and not _LONG,
    max_examples=int(os.environ.get("NFKNOCK_TEST_EXAMPLES") or (20_000 if _LONG else 200)),
)
settings.load_profile("nfknock")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no ordinary user can do on any machine, and what takes long unless all was asked for."""
    if not is_root():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("root")])
        items[:] = [item for item in items if not item.get_closest_marker("root")]
    for item in items:
        if item.get_closest_marker("long") and not _LONG:
            item.add_marker(pytest.mark.skip(reason="takes long; script/test --all runs it"))


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skip where no network namespace can be made; with CI=true that is a failure."""
    if not can_make_namespaces():
        message = "no network namespace can be made here; run script/test"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)


@pytest.fixture
def namespace(kernel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test itself in an empty network namespace with an xtables lock of its own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    monkeypatch.setenv("NFKNOCK_RUNTIME_DIR", str(tmp_path / "run"))
    with own_namespace():
        yield


@pytest.fixture
def setting() -> Setting:
    """Which backend and reader configurations get that do not say."""
    return CHOSEN


@pytest.fixture
def lab(kernel: None, tmp_path: Path, setting: Setting) -> Iterator[Lab]:
    """A bastion and a client, joined by a cable."""
    made = Lab(tmp_path, setting)
    yield made
    made.stop()


@pytest.fixture
def bare(lab: Lab) -> Lab:
    """A bastion whose tables are there, so that they can be compared."""
    for command in ("iptables-legacy", "ip6tables-legacy"):
        lab.bastion.run(command, "-S")
    return lab

"""The guard of a trial takes the firewall back whatever goes wrong: nobody else would."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nfknock.daemon import control, guard
from tests.fakes import FakeBackend
from tests.lab import wait_until


class Failing(FakeBackend):
    """A backend whose way back fails as no backend should. A file says how often, as this is of another process."""

    def __init__(self, failures: Path, error: Exception) -> None:
        super().__init__()
        self._failures = failures
        self._error = error

    def remember(self) -> Callable[[], None]:
        def take_back() -> None:
            times = len(self._failures.read_text()) if self._failures.exists() else 0
            self._failures.write_text("x" * (times + 1))
            if times < 1:
                raise self._error

        return take_back


class Noted:
    """A trial that notes in files what becomes of it."""

    def __init__(self, directory: Path, failure: Exception | None = None) -> None:
        self.ending = directory / "ended"
        self._failure = failure

    def rejected(self) -> None:
        if self._failure:
            raise self._failure

    def ended(self, *, is_kept: bool) -> None:
        self.ending.write_text("kept" if is_kept else "taken back")

    def outcome(self) -> str:
        """Wait for the end and return which it was."""
        wait_until(lambda: self.ending.exists() and bool(self.ending.read_text()), "the guard to end", within=10)
        return self.ending.read_text()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFKNOCK_RUNTIME_DIR", str(tmp_path))
    return tmp_path


# As pyroute2 raises them, and as a bug does.
ERRORS = [KeyError("NFTA_SET_ELEM_KEY"), OSError(24, "Too many open files"), ValueError("rubbish"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_fails_it_tries_again(directory: Path, error: Exception) -> None:
    tries, trial = directory / "tries", Noted(directory)
    guard.start(lambda: Failing(tries, error), 0.1, trial)
    assert trial.outcome() == "taken back"
    assert tries.read_text() == "xx"


def test_it_takes_back_though_it_cannot_note_that(directory: Path) -> None:
    tries, trial = directory / "tries", Noted(directory, OSError(28, "No space left on device"))
    guard.start(lambda: Failing(tries, KeyError()), 0.1, trial)
    assert trial.outcome() == "taken back"
    assert tries.read_text() == "xx"


def test_it_takes_back_when_it_cannot_wait(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_socket: socket.socket) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", refuse)
    tries, trial = directory / "tries", Noted(directory)
    guard.start(lambda: Failing(tries, KeyError()), 60, trial)
    with socket.socket(socket.AF_UNIX) as asking, control.short(control.runtime_path("confirm.sock")) as address:
        asking.connect(address)
        assert trial.outcome() == "taken back"
    assert tries.read_text() == "xx"

"""A configuration that nobody has confirmed yet, and the last one that counts: on disk, for whoever comes after.

`apply --confirm` puts a configuration on trial. Its guard takes the firewall back if nobody confirms; this is for what
the guard cannot do: after a reboot in between, and for a daemon that reads its file anew, the configuration on trial
must not count as if nothing had happened. What counts then is the one that counted before.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nfknock import files
from nfknock.core.model import Port
from nfknock.core.reach import Visitor
from nfknock.daemon import control
from nfknock.daemon.journal import state_directory
from nfknock.errors import ConfigError, NfknockError


@dataclass(frozen=True, slots=True)
class Trial:
    """What is noted of a configuration file."""

    path: Path

    def begin(self, content: bytes) -> None:
        """Note that this configuration is on trial. Raises NfknockError."""
        try:
            state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
            noted = {"sha256": _hash(content), "boot": _note_boot()}
            files.replace(self._file("trial"), json.dumps(noted).encode(), is_shared=True)
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise NfknockError(f"noting in {state_directory()} that this is on trial: {reason}") from exc

    def end(self, *, is_taken_back: bool) -> None:
        """Note how the trial ended: the configuration counts, or it does not."""
        with contextlib.suppress(OSError, NfknockError):
            if not is_taken_back:
                self._file("trial").unlink(missing_ok=True)
                return
            noted = self._read("trial")
            if noted is not None:
                files.replace(self._file("trial"), json.dumps({**noted, "boot": ""}).encode(), is_shared=True)

    def note_applied(self, content: bytes, by: Visitor | None = None) -> None:
        """Keep a configuration that counts from now on, for when the next one is not confirmed.

        `by` is who applied it over SSH; without, whoever is known stays known.
        """
        with contextlib.suppress(OSError, NfknockError):
            state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
            before = self._read("applied") or {}
            kept = {"content": base64.b64encode(content).decode(), "by": _noted(by) if by else before.get("by")}
            if before != kept:
                files.replace(self._file("applied"), json.dumps(kept).encode(), is_shared=True)

    def is_counting(self, content: bytes) -> bool:
        """Whether this is the configuration that was applied last, and nothing speaks against it."""
        return self.last() == content and not self.is_rejected(content)

    def is_under_way(self, content: bytes) -> bool:
        """Whether this is on trial, and was not rejected yet. Raises NfknockError where it cannot be known."""
        noted = self._read("trial")
        return noted is not None and noted.get("sha256") == _hash(content) and noted.get("boot") == _boot()

    def is_rejected(self, content: bytes) -> bool:
        """Whether this was on trial and nobody confirmed it: it was taken back, or the host was rebooted.

        Raises NfknockError where it cannot be known.
        """
        noted = self._read("trial")
        return noted is not None and noted.get("sha256") == _hash(content) and noted.get("boot") != _boot()

    def was_taken_back(self) -> bool:
        """Whether the trial ended without a reboot."""
        noted = self._read("trial")
        return noted is not None and not noted.get("boot")

    def counting(self, content: bytes) -> bytes:
        """Return the configuration that counts while the file holds `content`.

        Raises ConfigError where that one was never confirmed and nothing is known of another.
        """
        if not self.is_rejected(content):
            return content
        kept = self.last()
        if kept is None:
            raise ConfigError(
                f"{self.path}: was on trial and nobody confirmed it; run `nfknock apply --confirm 60` again"
            )
        return kept

    def last(self) -> bytes | None:
        """Return the last configuration that was applied and counted, None where none is known."""
        kept = self._read("applied")
        try:
            return base64.b64decode(kept["content"], validate=True)  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            return None

    def last_applied_by(self) -> Visitor | None:
        """Return who applied over SSH last, None where that is not known."""
        kept = self._read("applied")
        try:
            noted = kept["by"]  # type: ignore[index]
            interface = None if noted["interface"] is None else str(noted["interface"])
            return Visitor(source=ip_address(noted["source"]), port=Port(noted["port"]), interface=interface)
        except (TypeError, KeyError, ValueError):
            return None

    def _file(self, kind: str) -> Path:
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        return state_directory() / f"{kind}-{name}.json"

    def _read(self, kind: str) -> dict[str, Any] | None:
        try:
            read = json.loads(files.read_regular(self._file(kind)))
        except PermissionError:
            # Not to know would be to take what was rejected.
            raise NfknockError(f"reading {self._file(kind)}: permission denied; run this as root") from None
        except (OSError, ValueError):
            return None
        return read if isinstance(read, dict) else None


def _noted(visitor: Visitor) -> dict[str, Any]:
    return {"source": str(visitor.source), "port": visitor.port.number, "interface": visitor.interface}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _boot() -> str:
    """Return what tells this boot from the others, as far as anything was on trial in it.

    The kernel's boot id will not do: in a container, root and the daemon in its sandbox may see different ones.
    """
    try:
        return files.read_regular(_boot_path()).decode()
    except OSError:
        return "another"


def _note_boot() -> str:
    with os.fdopen(files.open_shared(_boot_path()), "r+") as file:
        name = file.read()
        if not name:
            name = secrets.token_hex(16)
            file.write(name)
        return name


def _boot_path() -> Path:
    # What is in there does not outlive a reboot.
    return control.runtime_directory() / "boot"

"""TOML from disk, with errors that an administrator can act on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from nfknock.errors import ConfigError
from nfknock.files import read_regular

# What tomllib says of a table that is declared a second time.
_TWICE = re.compile(r"Cannot declare \((?P<keys>.*)\) twice \(at (?P<line>line \d+)")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return a file's tables; `what` is what an error calls it. Raises ConfigError."""
    return parse_toml(path, read_file(path, what))


def read_file(path: Path, what: str) -> bytes:
    """Return what is in a file; `what` is what an error calls it. Raises ConfigError."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        mend = "; `nfknock init` writes one" if what == "configuration" else ""
        raise ConfigError(f"there is no {what} file {path}{mend}") from None
    except OSError as exc:
        raise ConfigError(f"the {what} file {path} cannot be read: {(exc.strerror or str(exc)).lower()}") from exc


def parse_toml(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the tables of a file's content; `path` is for errors. Raises ConfigError."""
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8 text") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from exc
    except ValueError as exc:  # a TOMLDecodeError, or int() about a number of very many digits
        if twice := _TWICE.match(str(exc)):
            key = ".".join(re.findall(r"'(.*?)'", twice["keys"]))
            raise ConfigError(f"{path}: {key}: is there already, and again in {twice['line']}") from exc
        raise ConfigError(f"{path}: not valid TOML: {str(exc)[:1].lower()}{str(exc)[1:]}") from exc

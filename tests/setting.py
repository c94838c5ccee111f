"""With which backend and reader the end-to-end tests run: `NFKNOCK_TEST_BACKEND` and `NFKNOCK_TEST_READER`.

`Lab.configure` puts both into configurations that do not choose for themselves. What is about one of them alone is
marked `only_for`, and a selection runs `with_every_reader` even when nothing is chosen.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass

import pytest

READERS = ("nfqueue", "nflog")
# What nfknock takes where a configuration does not say.
_BACKEND, _READER = "iptables", "nfqueue"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a configuration gets where it does not say."""

    backend: str = os.environ.get("NFKNOCK_TEST_BACKEND") or _BACKEND
    reader: str = os.environ.get("NFKNOCK_TEST_READER") or _READER

    def __str__(self) -> str:
        return f"{self.backend}-{self.reader}"

    def put_into(self, text: str) -> str:
        """Return a configuration with this setting; one that is meant to be broken stays as it is."""
        try:
            chosen = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return text
        for section, key, value, default in (
            ("firewall", "backend", self.backend, _BACKEND),
            ("reader", "kind", self.reader, _READER),
        ):
            if value != default and key not in chosen.get(section, {}):
                text = _with_key(text, section, f'{key} = "{value}"', has_section=section in chosen)
        return text


def _with_key(text: str, section: str, line: str, *, has_section: bool) -> str:
    if has_section:
        return re.sub(rf"^\[{section}\]$", f"[{section}]\n{line}", text, count=1, flags=re.MULTILINE)
    return f"{text.rstrip()}\n[{section}]\n{line}\n"


CHOSEN = Setting()

with_every_reader = pytest.mark.parametrize(
    "setting",
    [CHOSEN] if "NFKNOCK_TEST_READER" in os.environ else [Setting(reader=reader) for reader in READERS],
    ids=str,
)


def only_for(*names: str) -> pytest.MarkDecorator:
    """Mark what is about some backends or one reader themselves."""
    is_chosen = not {CHOSEN.backend, CHOSEN.reader}.isdisjoint(names)
    return pytest.mark.skipif(not is_chosen, reason=f"only for {' and '.join(names)}")

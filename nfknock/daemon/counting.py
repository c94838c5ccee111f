"""Which configuration counts: what the file holds, or what was applied before it."""

from __future__ import annotations

from pathlib import Path

from nfknock.config import Config, load, read
from nfknock.daemon import logs
from nfknock.daemon.trial import Trial
from nfknock.errors import ConfigError


def load_counting(path: Path) -> Config:
    """Load the configuration that counts: not one that was on trial and that nobody confirmed. Raises ConfigError."""
    content = read(path)
    counting = Trial(path).counting(content)
    if counting is not content:
        logs.log.warning("%s was on trial and nobody confirmed it: the one before counts", path)
    return load(path, counting, tolerates="used up")


def load_or_last(path: Path) -> Config:
    """Load the configuration that counts, or where that is wrong the last one that was applied. Raises ConfigError."""
    try:
        return load_counting(path)
    except ConfigError as exc:
        kept = Trial(path).last()
        if kept is None:
            raise
        logs.log.error("%s; the last configuration that was applied counts", exc)
        return load(path, kept, tolerates="used up")

"""Which configuration counts: what the file holds, or what was applied before it."""

from __future__ import annotations

from pathlib import Path

from nfknock.config import Config, load, read
from nfknock.core.model import Port
from nfknock.core.reach import Visitor, way_in
from nfknock.daemon import guard, logs
from nfknock.daemon.trial import Trial
from nfknock.errors import ConfigError

_SSH = Port(22)


def load_counting(path: Path) -> Config:
    """Load the configuration that counts: not one that was on trial and that nobody confirmed.

    Raises ConfigError; also for one that was never applied and takes the way in away.
    """
    content = read(path)
    counting = Trial(path).counting(content)
    if counting is not content:
        logs.log.warning("%s was on trial and nobody confirmed it: the one before counts", path)
    config = load(path, counting, tolerates="used up")
    refuse_lock_out(config, counting)
    return config


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


def refuse_lock_out(config: Config, content: bytes) -> None:
    """Refuse what takes the way in away, where nobody is there to be asked. Raises ConfigError.

    Whoever applied it was asked, and whoever has it on trial will be.
    """
    trial = Trial(config.path)
    if trial.last() == content or (trial.is_under_way(content) and guard.is_waiting()):
        return
    if visitor := locked_out(config):
        whom = f"{visitor.source}, from where the last one was applied" if visitor.source else "everybody"
        raise ConfigError(
            f"{config.path}: shuts {visitor.port} to {whom}, and was never applied; "
            "run `nfknock apply --confirm 120`, or `nfknock apply --force` if that is meant"
        )


def locked_out(config: Config, visitor: Visitor | None = None) -> Visitor | None:
    """Return who would get in by the configuration that was applied last, and by this one no more; None if nobody is.

    Without a visitor it is whoever applied that one over SSH, else anybody who comes for port 22.
    """
    kept = Trial(config.path).last()
    try:
        last = load(config.path, kept, tolerates="anything") if kept is not None else None
    except ConfigError:
        last = None  # what an older version took is no measure
    if last is None:
        return None
    known = [visitor] if visitor else [Trial(config.path).last_applied_by(), Visitor(source=None, port=_SSH)]
    who = next((each for each in known if each and way_in(last.plan, last.doors, each)), None)
    return who if who and not way_in(config.plan, config.doors, who) else None

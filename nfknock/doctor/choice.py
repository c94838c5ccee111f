"""What `backend = "auto"` comes to on this host, and why."""

from __future__ import annotations

from dataclasses import replace

from nfknock.backends import DEFAULT, make_backend
from nfknock.config import Config
from nfknock.core.plan import BackendChoice
from nfknock.errors import NfknockError
from nfknock.host import modules, nftread
from nfknock.host.conflicts import all_conflicts


def choose(config: Config) -> tuple[BackendChoice, str]:
    """Return the backend that fits this host, and the reason: the default one, unless something contradicts.

    One that stands already stays, if nothing contradicts that one either: moving is nobody's wish.
    """
    if config.backend.name != "auto":
        return config.backend, "the configuration says so"
    nftables = replace(config.backend, name="nftables")
    if why := _why_not_legacy(config):
        return nftables, why
    standing = make_backend(config.backend)
    if standing.stands():
        return replace(config.backend, name=standing.name), "it is in place, and nothing contradicts"
    return replace(config.backend, name=DEFAULT), "the kernel has it, and nothing contradicts"


def _why_not_legacy(config: Config) -> str:
    """Say why what is written by the legacy x_tables would not do here, "" if it would."""
    try:
        make_backend(replace(config.backend, name=DEFAULT)).probe()
    except NfknockError as exc:
        return f"{DEFAULT} cannot work here: {exc}"
    return _contradiction(config)


def expected(config: Config) -> BackendChoice:
    """Return what `choose` would, as far as that can be told without making the kernel load anything."""
    if config.backend.name != "auto":
        return config.backend
    is_absent = modules.state("iptable_filter") == "absent"
    is_nftables = is_absent or _contradiction(config) or _stands_in_nftables()
    return replace(config.backend, name="nftables" if is_nftables else DEFAULT)


def _contradiction(config: Config) -> str:
    try:
        ruleset = nftread.read_foreign()
        found = all_conflicts(ruleset, config.plan, config.doors) if ruleset else ()
        return next((conflict.text for conflict in found if conflict.fate == "drops"), "")
    except OSError:
        return ""  # what cannot be read is warned of when it is applied


def _stands_in_nftables() -> bool:
    try:
        return any(map(nftread.is_own, (nftread.read() or nftread.Ruleset({}, {}, {})).chains))
    except OSError:
        return False

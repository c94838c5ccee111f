"""The rules that every host needs, as data that an administrator can read and change."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from nfknock.config import sections
from nfknock.config.toml import read_toml
from nfknock.config.values import at, interface, network
from nfknock.core.model import Port, Rule
from nfknock.errors import ConfigError


def read_baseline(path: Path | None) -> tuple[Rule, ...]:
    """Read a rules file, or the one that comes with nfknock. Raises ConfigError."""
    if path is None:
        with resources.as_file(resources.files("nfknock.rules") / "baseline.toml") as shipped:
            return read_baseline(shipped)
    raw = read_toml(path, "rules")
    try:
        if set(raw) != {"rule"} or not isinstance(raw["rule"], list):
            raise ValueError("a rules file holds [[rule]] tables and nothing else")
        return tuple(_baseline_rule(f"rule[{index}]", entry) for index, entry in enumerate(raw["rule"]))
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _baseline_rule(path: str, raw: Any) -> Rule:
    section = sections.read_section(raw, sections.BaselineRule, path)
    for port in (*section.ports, *filter(None, [section.source_port])):
        at(path, Port, port)
    for key, value in (("icmp_type", section.icmp_type), ("hop_limit", section.hop_limit)):
        if value is not None and not 0 <= value <= 255:
            raise ValueError(f"{path}.{key}: {value} is out of range (0 to 255)")
    if not section.comment.isprintable() or not 1 <= len(section.comment.encode()) <= 200 or '"' in section.comment:
        raise ValueError(f"{path}.comment: one line of 1 to 200 bytes without quotes")
    return at(
        path,
        lambda _: Rule(
            comment=section.comment,
            verdict=section.verdict,
            family=section.family,
            interface=at(f"{path}.interface", interface, section.interface) if section.interface else None,
            states=tuple(section.state),
            protocol=section.protocol,
            source=at(f"{path}.from", network, section.source) if section.source else None,
            source_port=section.source_port,
            ports=tuple(section.ports),
            icmp_type=section.icmp_type,
            hop_limit=section.hop_limit,
        ),
        path,
    )

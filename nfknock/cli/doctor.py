"""`doctor`: what on this host would stop nfknock from working, each with its mend."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from nfknock.cli.settings import Settings, pass_settings
from nfknock.config import load
from nfknock.errors import ConfigError

if TYPE_CHECKING:
    from nfknock.doctor import Finding, Level, Patient

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "fault": "red"}
_INDENT = 9


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON (docs/doctor.schema.json).")
@pass_settings
def doctor(settings: Settings, as_json: bool) -> int:
    """Look for what on this host would stop nfknock from working. Exit 1 if there is a fault; changes nothing."""
    from nfknock.doctor import examine

    findings = list(examine(_patient(settings)))
    if as_json:
        click.echo(json.dumps({"version": 1, "findings": [asdict(finding) for finding in findings]}))
    else:
        _print(findings)
    return int(any(finding.level == "fault" for finding in findings))


def _patient(settings: Settings) -> Patient:
    from nfknock.doctor import Patient
    from nfknock.doctor.choice import expected

    if not (settings.is_chosen or settings.path.exists()):
        return Patient(path=settings.path)
    try:
        config = load(settings.path, tolerates="anything")
    except ConfigError as exc:
        return Patient(path=settings.path, error=str(exc))
    return Patient(path=settings.path, config=replace(config, backend=expected(config)))


def _print(findings: Iterable[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for finding in findings:
        # In a pipe a finding is one line, whatever its length; in a terminal it is folded behind its level.
        first, *rest = lines(finding, console.width if console.is_terminal else None)
        text = Text(first)
        text.stylize(_STYLES[finding.level], 0, len(finding.level))
        console.print(text, soft_wrap=True)
        for line in rest:
            console.print(Text(line), soft_wrap=True)


def lines(finding: Finding, width: int | None) -> list[str]:
    """Return a finding's lines, none wider than `width` unless a word is."""
    line = " ".join(f"{finding.level:<{_INDENT}}{finding}".splitlines())
    if width is None:
        return [line]
    wide = max(width, 2 * _INDENT)
    return textwrap.wrap(
        str(finding),
        wide,
        initial_indent=f"{finding.level:<{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )

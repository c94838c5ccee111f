"""`reload`: have the daemon take up its configuration anew, and hear what became of it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import click

from nfknock.cli.settings import Settings, pass_settings
from nfknock.daemon import control
from nfknock.daemon.counting import load_counting
from nfknock.errors import DaemonError

_LOOK_EVERY = 0.05


@click.command()
@click.option("--timeout", type=click.FloatRange(1, 3600), default=30.0, metavar="SECONDS", help="How long to wait.")
@pass_settings
def reload(settings: Settings, timeout: float) -> None:
    """Have the daemon take up the configuration, and wait until it has."""
    # What is wrong for us is wrong for the daemon, and its exit code is that of any other command.
    load_counting(settings.path)
    give_up_at = time.monotonic() + timeout
    before = _ask()
    _signal()
    while (now := _ask())["done"] <= before["begun"]:
        if time.monotonic() > give_up_at:
            raise DaemonError(f"the daemon was told, and has not taken it up within {timeout:g} s; see its log")
        time.sleep(_LOOK_EVERY)
    if now["refused"] is not None:
        raise DaemonError(f"the daemon refused the new configuration and keeps the old one: {now['refused']}")
    click.echo("reloaded")


def _ask() -> dict[str, Any]:
    """Return what the daemon says of its reloads. Raises DaemonError."""
    said = control.ask_daemon()
    if said is None:
        raise DaemonError("no daemon runs here; start it with `nfknock run`")
    reloads = said.get("reloads")
    if not isinstance(reloads, dict):
        raise DaemonError("the daemon is of an older version, which does not tell; restart it")
    return reloads


def _signal() -> None:
    try:
        process = control.find_daemon()
        if process is None:
            raise DaemonError("the daemon cannot be found: it is starting, or ending")
        os.kill(process, signal.SIGHUP)
    except OSError as exc:
        raise DaemonError(f"telling the daemon: {(exc.strerror or str(exc)).lower()}; run this as root") from exc

"""`run`: the daemon."""

from __future__ import annotations

import click

from nfknock.cli.settings import Settings, pass_settings


@click.command()
@pass_settings
def run(settings: Settings) -> None:
    """Listen for knocks, in the foreground, until SIGTERM. SIGHUP reads the configuration anew."""
    # Only here: everything else works where there is no netfilter.
    from nfknock.daemon.service import serve

    serve(settings.path)

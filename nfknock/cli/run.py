"""`run`: the daemon."""

from __future__ import annotations

import signal

import click

from nfknock.cli.settings import Settings, pass_settings


@click.command()
@click.option("--or-last", is_flag=True, help="Where the configuration is wrong, the last one that was applied counts.")
@pass_settings
def run(settings: Settings, or_last: bool) -> None:
    """Listen for knocks, in the foreground, until SIGTERM.

    SIGHUP reads the configuration anew, and SIGUSR1 opens the log anew.
    """
    # First of all: a reload that is asked for too early must not end us, nor a log that is to be opened anew.
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Only here: everything else works where there is no netfilter.
    from nfknock.daemon.service import serve

    serve(settings.path, or_last=or_last)

"""The program: finds the command, runs it, and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import traceback
from pathlib import Path

import click

from nfknock import __version__
from nfknock.cli.lazy import Entry, LazyGroup
from nfknock.cli.settings import Settings
from nfknock.errors import NfknockError

# What a write to stdout fails with; any other error of the system is not the output's.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# In the order of `--help`. Every module is imported when its command is asked for.
_COMMANDS = (
    Entry("init", "nfknock.cli.configure:init", "Write a configuration with a fresh random door."),
    Entry("check", "nfknock.cli.configure:check", "Say whether a configuration is right."),
    Entry("apply", "nfknock.cli.apply:apply", "Bring the firewall to what the configuration says, all at once."),
    Entry("confirm", "nfknock.cli.apply:confirm", "Keep what `apply --confirm` put in place."),
    Entry("run", "nfknock.cli.run:run", "Listen for knocks, in the foreground, until SIGTERM."),
    Entry("reload", "nfknock.cli.reload:reload", "Have the daemon take up the configuration, and wait until it has."),
    Entry("status", "nfknock.cli.status:status", "Show what is open, for whom, and for how long."),
    Entry("open", "nfknock.cli.holes:open_", "Open DOOR for the address SOURCE, without a knock."),
    Entry("close", "nfknock.cli.holes:close", "Close what is open for the address SOURCE."),
    Entry("remove", "nfknock.cli.apply:remove", "Take everything that nfknock put in out again."),
    Entry("doctor", "nfknock.cli.doctor:doctor", "Look for what on this host would stop nfknock from working."),
    Entry("import", "nfknock.cli.migrate:import_", "Turn FILE, a knockd.conf, into a configuration."),
    Entry("sequences", "nfknock.cli.sequences:sequences", "Write random one-time sequences to FILE, for both ends."),
    Entry("knock", "nfknock.cli.knock:knock", "Knock at HOST: 7101 and 7101:tcp are TCP, 7101:udp is UDP."),
    Entry("connect", "nfknock.cli.connect:connect", "Connect standard input and output to PORT of HOST."),
    Entry(
        "simulate", "nfknock.cli.simulate:simulate", "Say what the daemon would have logged of the packets in CAPTURE."
    ),
)


@click.group(
    cls=LazyGroup,
    entries=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration file.")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.version_option(__version__, "-V", "--version", prog_name="nfknock", message="%(prog)s %(version)s")
@click.pass_context
def nfknock(context: click.Context, config: Path | None, verbose: bool) -> None:
    """Hide services behind port knocks, tied directly to the kernel firewall.

    The configuration is FILE, else $NFKNOCK_CONFIG, else /etc/nfknock/nfknock.toml.
    """
    logging.basicConfig(
        format="%(message)s", level=logging.DEBUG if verbose else logging.INFO, stream=sys.stderr, force=True
    )
    # A log that cannot be written must not stop the daemon, nor print a traceback in its place.
    logging.raiseExceptions = False
    # The event loop's chatter is not ours.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    named = os.environ.get("NFKNOCK_CONFIG")
    context.obj = Settings(chosen=config or (Path(named) if named else None), is_verbose=verbose)


def main() -> None:
    """Run the program and exit."""
    # Thousands of holes are thousands of objects and no garbage: to look for some costs half the time of reading them.
    gc.set_threshold(50_000)
    _open_standard_streams()
    sys.exit(_run(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed; else the next file or socket would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free, which is the one that is missing.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (it stays open)


def _run(arguments: list[str]) -> int:
    try:
        result = nfknock.main(arguments, prog_name="nfknock", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)
        mend = f"; see `{context.command_path} --help`" if context else ""
        message = " ".join(exc.format_message().split()).rstrip(".")
        return _fail(f"{message[:1].lower()}{message[1:]}{mend}", 2)
    except NfknockError as exc:
        return _fail(str(exc), exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 1)
    except BrokenPipeError:
        _abandon_output()
        return 1  # whoever read our output has seen enough
    except OSError as exc:
        _abandon_output()
        what = f"{exc.filename}: " if exc.filename else "writing the output: " if exc.errno in _FULL else "the system: "
        return _fail(what + (exc.strerror or str(exc)).lower(), 1)
    except Exception as exc:  # noqa: BLE001  (no traceback for users, whatever it is)
        if "-v" in arguments or "--verbose" in arguments:
            traceback.print_exc()
        return _fail(f"this should not happen: {type(exc).__name__}: {exc} (nfknock -v shows where)", 1)


def _abandon_output() -> None:
    """Let go of what could not be written to stdout: Python would try again, and complain, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    click.echo(f"nfknock: {' '.join(message.split())}", err=True)
    return code

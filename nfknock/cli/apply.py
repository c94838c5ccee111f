"""`apply`, `confirm` and `remove`: the firewall as the configuration has it, or not at all."""

from __future__ import annotations

import contextlib
import json
import selectors
import sys
from dataclasses import dataclass, replace

import click

from nfknock.backends import Backend, Change, make_backend
from nfknock.cli.refusals import refuse_or_warn
from nfknock.cli.settings import Settings, duration_of, pass_settings, warn
from nfknock.config import Config, read
from nfknock.daemon import control, guard
from nfknock.daemon.trial import Trial
from nfknock.doctor.choice import choose
from nfknock.errors import ConfigError, NfknockError

_LONGEST_TRIAL = 86400.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the difference in iptables-save notation; change nothing.")
@click.option("--confirm", metavar="SECONDS", help="Take it back after so long, unless `nfknock confirm` is run.")
@click.option("--no-wait", is_flag=True, help="With --confirm: end at once, while it may still be taken back.")
@click.option("--force", is_flag=True, help="Apply what would be refused, was taken back or never confirmed.")
@click.option(
    "--or-last", is_flag=True, help="For a boot: if it is wrong, apply the last one that was; refuse nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_settings
def apply(
    settings: Settings, dry_run: bool, confirm: str | None, no_wait: bool, force: bool, or_last: bool, as_json: bool
) -> None:
    """Bring the firewall to what the configuration says, all at once."""
    timeout = _trial_timeout(confirm, dry_run=dry_run, no_wait=no_wait)
    if or_last and (timeout or force):
        raise click.UsageError("--or-last goes with neither --confirm nor --force", click.get_current_context())
    config, content = _pick(settings, is_meant=force or bool(timeout), dry_run=dry_run, or_last=or_last)
    choice, why = choose(config)
    if config.backend != choice:
        click.echo(f"the backend is {choice.name}: {why}", err=True)
    config = replace(config, backend=choice)
    backend = make_backend(choice)
    warnings = backend.probe()
    warnings += refuse_or_warn(config, backend, force=force or or_last, dry_run=dry_run, as_json=as_json)
    if settings.is_verbose and not (dry_run or as_json):
        for line in backend.apply(config.plan, dry_run=True).difference:
            click.echo(line)
    is_on_trial = False
    if dry_run:
        change = backend.apply(config.plan, dry_run=True)
    elif timeout:
        change, is_on_trial = _apply_on_trial(settings, config, content, timeout)
        if is_on_trial:
            _wait(timeout, quiet=as_json, only_say=no_wait)
            is_on_trial = no_wait
    else:
        with guard.nobody_waits():
            change = _apply(backend, config)
        trial = Trial(settings.path)
        if _is_current(settings, content):
            trial.end(is_taken_back=False)
            trial.note_applied(content)
    change = replace(change, warnings=(*warnings, *change.warnings))
    _report(change, as_json=as_json, **({"on_trial": is_on_trial} if timeout else {}))


def _trial_timeout(confirm: str | None, *, dry_run: bool, no_wait: bool) -> float:
    """Return how many seconds there are to confirm, 0 without a trial. Raises UsageError."""
    timeout = duration_of("--confirm", confirm, _LONGEST_TRIAL) if confirm is not None else 0.0
    if confirm is not None and (dry_run or not timeout):
        raise click.UsageError("--confirm needs a time, and something to be applied", click.get_current_context())
    if no_wait and not timeout:
        raise click.UsageError("--no-wait is for --confirm", click.get_current_context())
    return timeout


def _pick(settings: Settings, *, is_meant: bool, dry_run: bool, or_last: bool) -> tuple[Config, bytes]:
    """Return what is to be applied, and what the file held. Raises ConfigError."""
    try:
        content = read(settings.path)
        if not is_meant:
            content = _counting(settings, content, dry_run=dry_run)
        # A guard with a door that stays shut is better than no guard.
        return settings.load(content, tolerates="anything"), content
    except ConfigError as exc:
        kept = Trial(settings.path).last() if or_last else None
        if kept is None:
            raise
        warn(f"{exc}; the last configuration that was applied counts")
        return settings.load(kept, tolerates="anything"), kept


def _is_current(settings: Settings, content: bytes) -> bool:
    """Whether the file still holds this. Nothing is noted of an older one that was put in its place."""
    try:
        return content == read(settings.path)
    except ConfigError:
        return False


def _counting(settings: Settings, content: bytes, *, dry_run: bool) -> bytes:
    """Return the configuration that may be applied without being asked twice. Raises ConfigError."""
    trial = Trial(settings.path)
    if dry_run or not trial.is_rejected(content):
        return content
    if trial.was_taken_back():
        raise ConfigError(
            f"{settings.path}: was taken back, since nobody confirmed it; "
            "change it, run `nfknock apply --confirm 60` again, or use --force"
        )
    # The host was rebooted in between: it comes up as it was before.
    counting = trial.counting(content)
    warn(f"{settings.path} was on trial and nobody confirmed it: the one before counts")
    return counting


def _apply(backend: Backend, config: Config) -> Change:
    change = backend.apply(config.plan)
    control.note_removed(removed=False)
    if change.replaced:
        # It would look for what is there no more.
        control.reload_daemon()
    return change


def _apply_on_trial(settings: Settings, config: Config, content: bytes, timeout: float) -> tuple[Change, bool]:
    """Apply it under a guard; return what changed, and whether there is anything for somebody to confirm."""
    trial = Trial(settings.path)
    backend = make_backend(config.backend)
    consequences = _Consequences(trial, content, was_applied=backend.state().applied)
    is_known = trial.is_counting(content)
    guard.start(lambda: make_backend(config.backend), timeout, consequences)
    try:
        trial.begin(content)
        change = _apply(backend, config)
    except BaseException:
        guard.tell("take back")
        raise
    # The same ports in another order leave the firewall as it is, and lock people out all the same.
    if change.changed or not is_known:
        return change, True
    guard.tell("keep")
    return change, False


@dataclass(frozen=True, slots=True)
class _Consequences:
    """What the end of a trial means for the daemon, and for whoever reads the configuration."""

    trial: Trial
    content: bytes
    was_applied: bool

    def rejected(self) -> None:
        self.trial.end(is_taken_back=True)
        if not self.was_applied:
            # A daemon would put back what it finds missing.
            with contextlib.suppress(NfknockError):
                control.note_removed(removed=True)

    def ended(self, *, is_kept: bool) -> None:
        if is_kept:
            self.trial.end(is_taken_back=False)
            self.trial.note_applied(self.content)
        else:
            control.reload_daemon()


def _wait(timeout: float, *, quiet: bool, only_say: bool) -> None:
    """Wait until somebody confirms, here or elsewhere. Raises NfknockError when it was taken back."""
    is_terminal = sys.stdin.isatty() and not (quiet or only_say)
    here = ", or type y and Enter" if is_terminal else ""
    click.echo(f"applied; taken back in {timeout:g} s unless you run `nfknock confirm`{here}", err=True)
    if only_say:
        return
    outcome = _outcome(is_terminal=is_terminal)
    if outcome != guard.KEPT:
        why = f"nobody confirmed within {timeout:g} s" if outcome == guard.TAKEN_BACK else outcome
        raise NfknockError(f"{why}; the firewall is as it was before")


def _outcome(*, is_terminal: bool) -> str:
    with guard.watching() as outcome, selectors.DefaultSelector() as selector:
        selector.register(outcome, selectors.EVENT_READ)
        if is_terminal:
            selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _events in selector.select()]
            if outcome in ready:
                return guard.result(outcome)
            answer = sys.stdin.readline()
            if answer.strip().lower() in ("y", "yes"):
                return guard.tell("keep")
            if answer.strip().lower() in ("n", "no"):
                return guard.tell("take back")
            if not answer:
                selector.unregister(sys.stdin)


@click.command()
def confirm() -> None:
    """Keep what `apply --confirm` put in place."""
    outcome = guard.tell("keep")
    if outcome != guard.KEPT:
        raise NfknockError(f"too late: {outcome}")
    click.echo("kept")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_settings
def remove(settings: Settings, as_json: bool) -> None:
    """Take everything that nfknock put in out again, and restore the INPUT policy that it found."""
    backend = make_backend(settings.backend)
    with guard.nobody_waits():
        # Before, or the daemon would put back what it finds missing.
        control.note_removed(removed=True)
        try:
            change = backend.remove()
        except NfknockError:
            control.note_removed(removed=False)
            raise
    _report(change, as_json=as_json)


def _report(change: Change, *, as_json: bool, **more: bool) -> None:
    for line in change.warnings:
        warn(line)
    if as_json:
        report = {"changed": change.changed, "difference": change.difference, "warnings": change.warnings}
        click.echo(json.dumps({**report, **more}))
        return
    for line in change.difference:
        click.echo(line)
    click.echo("changed" if change.changed else "unchanged")

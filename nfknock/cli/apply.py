"""`apply`, `confirm` and `remove`: the firewall as the configuration has it, or not at all."""

from __future__ import annotations

import contextlib
import json
import selectors
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import click

from nfknock.backends import Backend, Change, make_backend
from nfknock.cli.refusals import caller, refuse_or_warn
from nfknock.cli.settings import Settings, duration_of, pass_settings, warn
from nfknock.config import Config, read
from nfknock.core.plan import BackendChoice
from nfknock.core.reach import Visitor
from nfknock.daemon import control, guard
from nfknock.daemon.counting import refuse_lock_out
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
    if or_last:
        if timeout or force:
            raise click.UsageError("--or-last goes with neither --confirm nor --force", click.get_current_context())
        apply_or_last(settings, dry_run=dry_run, as_json=as_json)
        return
    content = read(settings.path)
    if not (force or timeout):
        content = _counting(settings, content, dry_run=dry_run)
    with _counts_for_nothing(settings, content) if timeout else contextlib.nullcontext():
        ready = _prepare(settings, content)
        warnings = tuple(refuse_or_warn(ready.config, ready.backend, force=force, dry_run=dry_run, as_json=as_json))
        if settings.is_verbose and not (dry_run or as_json):
            for line in ready.backend.apply(ready.config.plan, dry_run=True).difference:
                click.echo(line)
        is_known = Trial(settings.path).is_counting(content)
        if timeout:
            _start_guard(settings, ready, timeout)
    warnings = (*ready.warnings, *warnings)
    if not timeout:
        _report(_apply_for_good(settings, ready, dry_run=dry_run), warnings, as_json=as_json)
        return
    # The same ports in another order leave the firewall as it is, and lock people out all the same.
    change = _apply_on_trial(settings, ready)
    is_on_trial = change.changed or not is_known
    if is_on_trial:
        _wait(timeout, quiet=as_json, only_say=no_wait)
    else:
        guard.tell("keep")
    _report(change, warnings, as_json=as_json, on_trial=is_on_trial and no_wait)


def apply_or_last(settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Apply as a boot does, where nobody is there to be asked. Raises NfknockError.

    A configuration that is wrong, cannot be applied or takes the way in away without ever having been applied gives
    way to the last one that was: a host without its firewall is worse than one with yesterday's.
    """
    if not dry_run and control.is_removed():
        raise NfknockError("the firewall was taken out, and stays out; `nfknock apply` puts it back")
    if not dry_run and guard.is_waiting():
        click.echo("a configuration is on trial; it is left to `nfknock confirm`", err=True)
        return
    ready = None
    try:
        content = _counting(settings, read(settings.path), dry_run=dry_run)
        ready = _prepare(settings, content)
        refuse_lock_out(ready.config, content)
        _apply_unasked(settings, ready, dry_run=dry_run, as_json=as_json)
    except NfknockError as exc:
        kept = Trial(settings.path).last()
        if kept is None or (ready is not None and ready.content == kept):
            raise
        warn(f"{exc}; the last configuration that was applied counts")
        _apply_unasked(settings, _prepare(settings, kept), dry_run=dry_run, as_json=as_json)


def _apply_unasked(settings: Settings, ready: _Ready, *, dry_run: bool, as_json: bool) -> None:
    warnings = (*ready.warnings, *refuse_or_warn(ready.config, ready.backend, force=True))
    _report(_apply_for_good(settings, ready, dry_run=dry_run), warnings, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A configuration, and the backend that can write what it says."""

    content: bytes
    config: Config
    backend: Backend
    warnings: tuple[str, ...]


def _prepare(settings: Settings, content: bytes) -> _Ready:
    """Get ready to apply a configuration. Raises NfknockError where it is wrong, or cannot be applied here."""
    # A guard with a door that stays shut is better than no guard.
    config = settings.load(content, tolerates="anything")
    choice, why = choose(config)
    if config.backend != choice:
        click.echo(f"the backend is {choice.name}: {why}", err=True)
    backend = make_backend(choice)
    return _Ready(content, replace(config, backend=choice), backend, tuple(backend.probe()))


@contextlib.contextmanager
def _counts_for_nothing(settings: Settings, content: bytes) -> Iterator[None]:
    """Let a configuration that is to be tried count for nothing, should it be refused, or we be killed.

    It stands in the file already, and a boot would take it up. One that counts goes on counting.
    """
    trial = Trial(settings.path)
    with guard.nobody_waits():
        is_counting = trial.is_counting(content)
        if not is_counting:
            trial.begin(content)
    try:
        yield
    except BaseException:
        if not is_counting:
            trial.end(is_taken_back=True)
        raise


def _apply_for_good(settings: Settings, ready: _Ready, *, dry_run: bool) -> Change:
    if dry_run:
        return ready.backend.apply(ready.config.plan, dry_run=True)
    with guard.nobody_waits():
        change = _apply(ready)
    if _is_current(settings, ready.content):
        trial = Trial(settings.path)
        trial.end(is_taken_back=False)
        trial.note_applied(ready.content, caller())
    return change


def _trial_timeout(confirm: str | None, *, dry_run: bool, no_wait: bool) -> float:
    """Return how many seconds there are to confirm, 0 without a trial. Raises UsageError."""
    timeout = duration_of("--confirm", confirm, _LONGEST_TRIAL) if confirm is not None else 0.0
    if confirm is not None and (dry_run or not timeout):
        raise click.UsageError("--confirm needs a time, and something to be applied", click.get_current_context())
    if no_wait and not timeout:
        raise click.UsageError("--no-wait is for --confirm", click.get_current_context())
    return timeout


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
            f"{settings.path}: was refused, or taken back since nobody confirmed it; "
            "change it, run `nfknock apply --confirm 60` again, or use --force"
        )
    # The host was rebooted in between: it comes up as it was before.
    counting = trial.counting(content)
    warn(f"{settings.path} was on trial and nobody confirmed it: the one before counts")
    return counting


def _apply(ready: _Ready) -> Change:
    change = ready.backend.apply(ready.config.plan)
    control.note_removed(removed=False)
    if change.replaced:
        # It would look for what is there no more.
        control.reload_daemon()
    return change


def _start_guard(settings: Settings, ready: _Ready, timeout: float) -> None:
    was_applied = ready.backend.state().applied
    consequences = _Consequences(Trial(settings.path), ready.content, caller(), was_applied)
    guard.start(lambda: make_backend(ready.config.backend), timeout, consequences)


def _apply_on_trial(settings: Settings, ready: _Ready) -> Change:
    try:
        Trial(settings.path).begin(ready.content)
        return _apply(ready)
    except BaseException:
        guard.tell("take back")
        raise


@dataclass(frozen=True, slots=True)
class _Consequences:
    """What the end of a trial means for the daemon, and for whoever reads the configuration."""

    trial: Trial
    content: bytes
    by: Visitor | None
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
            self.trial.note_applied(self.content, self.by)
        else:
            control.reload_daemon()


def _wait(timeout: float, *, quiet: bool, only_say: bool) -> None:
    """Wait until somebody confirms, here or elsewhere. Raises NfknockError when it was taken back."""
    is_terminal = sys.stdin.isatty() and not (quiet or only_say)
    here = ", or type y and Enter" if is_terminal else ""
    click.echo(f"applied; taken back in {timeout:g} s unless you run `nfknock confirm`{here}", err=True)
    if _is_deaf():
        warn("no daemon runs: knocks are not heard; start it before you try")
    if only_say:
        return
    outcome = _outcome(is_terminal=is_terminal)
    if outcome != guard.KEPT:
        why = f"nobody confirmed within {timeout:g} s" if outcome == guard.TAKEN_BACK else outcome
        raise NfknockError(f"{why}; the firewall is as it was before")


def _is_deaf() -> bool:
    try:
        return control.ask_daemon() is None
    except NfknockError:
        return False  # it runs, and is busy


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
    backend = make_backend(_standing(settings))
    if guard.is_waiting():
        guard.take_back()
        warn("an `nfknock apply --confirm` waited for its confirmation: that was taken back first")
    with guard.nobody_waits():
        # Before, or the daemon would put back what it finds missing.
        control.note_removed(removed=True)
        try:
            change = backend.remove()
        except NfknockError:
            control.note_removed(removed=False)
            raise
    _report(change, (), as_json=as_json)


def _standing(settings: Settings) -> BackendChoice:
    """Return the backend to take out; a configuration that is wrong must not keep the host shut."""
    try:
        return settings.backend
    except ConfigError as exc:
        warn(f"{exc}; whatever of nfknock's stands is taken out")
        return BackendChoice(name="auto")


def _report(change: Change, warnings: Sequence[str], *, as_json: bool, **more: bool) -> None:
    warnings = (*warnings, *change.warnings)
    for line in warnings:
        warn(line)
    if as_json:
        report = {"changed": change.changed, "difference": change.difference, "warnings": warnings}
        click.echo(json.dumps({**report, **more}))
        return
    for line in change.difference:
        click.echo(line)
    click.echo("changed" if change.changed else "unchanged")

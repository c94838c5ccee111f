"""What `apply` refuses: to lock its caller out, to open what the host shuts again, to share a queue."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, NFKNOCK, STRANGER4, Lab
from tests.setting import only_for, with_every_reader

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["{port}/tcp"]
"""
WEB = DOOR.format(port=80)
SSH = DOOR.format(port=22)
UNCHANGED = "nfknock: nothing was changed, for what is said above; `apply --force` does it all the same"
SESSIONS = [(CLIENT4, BASTION4), (CLIENT6, BASTION6)]


def over_ssh(
    lab: Lab, *arguments: str, client: str = CLIENT4, bastion: str = BASTION4, port: int = 22
) -> subprocess.CompletedProcess[str]:
    """Run nfknock as if in an SSH session."""
    variable = f"SSH_CONNECTION={client} 50514 {bastion} {port}"
    return lab.bastion.run("env", variable, *NFKNOCK, *arguments, check=False)


def rulesets(lab: Lab) -> tuple[str, str]:
    return lab.rules(), lab.bastion.run("nft", "--stateless", "list", "ruleset").stdout


def assert_refused(lab: Lab, done: subprocess.CompletedProcess[str], text: str, before: tuple[str, str]) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert any(line.startswith("refused: ") and text in line for line in lines), lines
    assert lines[-1] == UNCHANGED
    assert done.stdout == ""
    assert rulesets(lab) == before


@pytest.mark.parametrize(("client", "bastion"), SESSIONS)
def test_a_session_that_nothing_would_let_in_again(bare: Lab, client: str, bastion: str) -> None:
    bare.configure(WEB)
    before = rulesets(bare)
    done = over_ssh(bare, "apply", client=client, bastion=bastion)
    assert_refused(bare, done, f"this shuts 22/tcp to {client}, from where you are here over SSH", before)
    assert f'add {{ open = "22/tcp", from = "{client}" }} to `allow` under [firewall]' in done.stderr
    # What it says helps.
    bare.configure(f'[firewall]\nallow = [{{ open = "22/tcp", from = "{client}" }}]\n{WEB}')
    assert over_ssh(bare, "apply", client=client, bastion=bastion).stdout == "changed\n"


@pytest.mark.parametrize(
    ("configuration", "is_refused"),
    [
        (SSH, False),
        (f'[firewall]\nallow = ["22/tcp"]\n{WEB}', False),
        (f'[firewall]\nallow = [{{ from = "192.0.2.0/24" }}]\n{WEB}', False),
        (f'[firewall]\nallow = [{{ open = "22/tcp", interface = "b0" }}]\n{WEB}', False),
        (f'[firewall]\ninterfaces = ["b0"]\n{SSH}', False),
        (f'[firewall]\nallow = [{{ open = "22/tcp", from = "198.51.100.0/24" }}]\n{WEB}', True),
        (f'[firewall]\nallow = [{{ open = "22/tcp", from = "{STRANGER4}" }}]\n{WEB}', True),
        (f'[firewall]\nallow = [{{ open = "22/tcp", interface = "tun0" }}]\n{WEB}', True),
        (f'[firewall]\nallow = ["22/udp", "2222/tcp"]\n{WEB}', True),
        (f'[firewall]\ninterfaces = ["tun0"]\n{SSH}', True),
    ],
)
def test_what_lets_the_session_in(bare: Lab, configuration: str, *, is_refused: bool) -> None:
    bare.configure(configuration)
    before = rulesets(bare)
    done = over_ssh(bare, "apply")
    if is_refused:
        assert_refused(bare, done, "this shuts 22/tcp", before)
    else:
        assert (done.stdout, done.stderr) == ("changed\n", "")


def test_without_ssh_nothing_is_refused(bare: Lab) -> None:
    bare.configure(WEB)
    for text in ("", "UNKNOWN 65535 UNKNOWN 65535", "192.0.2.2 1 192.0.2.1", "a b c d", "192.0.2.2 1 192.0.2.1 99999"):
        bare.nfknock("remove")
        done = bare.bastion.run("env", f"SSH_CONNECTION={text}", *NFKNOCK, "apply")
        assert (done.stdout, done.stderr) == ("changed\n", "")


def test_sudo_takes_the_variable_away_and_the_shell_before_it_has_it(bare: Lab) -> None:
    bare.configure(WEB)
    before = rulesets(bare)
    # Two shells without it stand between; each has something to do afterwards, so that it stays.
    inner = f"env -u SSH_CONNECTION sh -c 'env -u SSH_CONNECTION {NFKNOCK[0]} apply; exit $?'; exit $?"
    connection = f"{CLIENT4} 50514 {BASTION4} 22"
    done = bare.bastion.run("env", f"SSH_CONNECTION={connection}", "sh", "-c", inner, check=False)
    assert_refused(bare, done, f"this shuts 22/tcp to {CLIENT4}", before)


def test_force_does_it_and_says_what_was_said(bare: Lab) -> None:
    bare.configure(WEB)
    done = over_ssh(bare, "apply", "--force")
    assert (done.returncode, done.stdout) == (0, "changed\n")
    assert done.stderr.startswith(f"warning: this shuts 22/tcp to {CLIENT4}")


def test_a_dry_run_says_what_would_be_refused(bare: Lab) -> None:
    bare.configure(WEB)
    before = rulesets(bare)
    done = over_ssh(bare, "apply", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "changed"
    assert done.stderr.startswith("warning: would be refused: this shuts 22/tcp")
    assert rulesets(bare) == before


def test_json_names_what_was_refused(bare: Lab) -> None:
    bare.configure(WEB)
    done = over_ssh(bare, "apply", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["changed"], report["warnings"]) == (1, False, [])
    assert len(report["refused"]) == 1
    assert done.stderr.splitlines()[-1] == UNCHANGED


def test_what_changes_nothing_is_not_refused_again(bare: Lab) -> None:
    bare.configure(WEB)
    over_ssh(bare, "apply", "--force")
    done = over_ssh(bare, "apply")
    assert (done.returncode, done.stdout) == (0, "unchanged\n")


def test_a_port_that_is_shut_already_is_not_shut_again(bare: Lab) -> None:
    """Who came in otherwise, or before the first `apply`, may change what has nothing to do with it."""
    bare.configure(WEB)
    over_ssh(bare, "apply", "--force")
    bare.configure(f'[firewall]\nallow = ["8080/tcp"]\n{WEB}')
    assert over_ssh(bare, "apply").stdout == "changed\n"


def test_a_hole_whose_door_goes_is_the_way_back_in(bare: Lab) -> None:
    bare.configure(SSH)
    over_ssh(bare, "apply")
    bare.nfknock("open", "ssh", CLIENT4)
    bare.configure(f'[firewall]\nallow = ["8080/tcp"]\n{WEB}')
    before = rulesets(bare)
    assert_refused(bare, over_ssh(bare, "apply"), "this shuts 22/tcp", before)


@only_for("iptables", "ipset")
@pytest.mark.parametrize(
    ("rule", "is_refused"),
    [
        ("-p tcp --dport 22 -j ACCEPT", False),
        ("-p tcp -m multiport --dports 80,20:30 -j ACCEPT", False),
        ("-p tcp -m conntrack --ctstate NEW,RELATED -m comment --comment mine --dport 22 -j ACCEPT", False),
        ("-i b+ -p tcp -j ACCEPT", False),
        ("! -i lo -p tcp --syn -j ACCEPT", False),
        ("-i lo -p tcp --dport 22 -j ACCEPT", True),
        ("-p tcp ! --dport 22 -j ACCEPT", True),
        ("-p udp --dport 22 -j ACCEPT", True),
        ("-m conntrack --ctstate ESTABLISHED -j ACCEPT", True),
        ("-p tcp --dport 22 -m limit --limit 1/min -j ACCEPT", True),
        ("-p tcp --dport 22 -j LOG", True),
    ],
)
def test_a_legacy_rule_of_the_hosts_own_counts_where_it_is_sure(bare: Lab, rule: str, *, is_refused: bool) -> None:
    """It stands behind ours, and so in front of the policy."""
    bare.configure(WEB)
    for command, client, bastion in (("iptables-legacy", *SESSIONS[0]), ("ip6tables-legacy", *SESSIONS[1])):
        bare.bastion.run(command, "-N", "mine")
        bare.bastion.run(command, "-A", "mine", *rule.split())
        bare.bastion.run(command, "-A", "INPUT", "-j", "mine")
        done = over_ssh(bare, "apply", "--dry-run", client=client, bastion=bastion)
        assert ("would be refused" in done.stderr) == is_refused


HOLDER = """
import sys, time
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(5, lambda packet: packet.drop())
print("bound", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def somebody_on_the_queue(lab: Lab) -> Iterator[int]:
    """Have another program bound to queue 5; its process id."""
    holder = lab.bastion.start(sys.executable, "-W", "ignore", "-c", HOLDER, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()


@only_for("nfqueue")
def test_a_queue_that_another_program_has(bare: Lab) -> None:
    bare.configure(SSH)
    before = rulesets(bare)
    with somebody_on_the_queue(bare) as pid:
        done = bare.nfknock("apply", check=False)
        assert_refused(bare, done, f"process {pid} (", before)
        assert "choose another number with `queue` under [reader]" in done.stderr
        bare.configure(f"[reader]\nqueue = 6\n{SSH}")
        assert bare.nfknock("apply").stdout == "changed\n"


def test_our_own_daemon_may_have_the_queue(bare: Lab) -> None:
    bare.configure(SSH)
    bare.nfknock("apply")
    bare.daemon()
    bare.configure(f'[firewall]\nallow = ["443/tcp"]\n{SSH}')
    done = bare.nfknock("apply")
    assert (done.stdout, done.stderr) == ("changed\n", "")


@with_every_reader
def test_our_own_daemon_may_have_the_queue_that_it_moved_to(bare: Lab) -> None:
    bare.configure(SSH)
    bare.nfknock("apply")
    daemon = bare.daemon()
    bare.configure(f"[reader]\nqueue = 6\n{SSH}")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    bare.configure(f'[reader]\nqueue = 6\n[firewall]\nallow = ["443/tcp"]\n{SSH}')
    done = bare.nfknock("apply")
    assert (done.stdout, done.stderr) == ("changed\n", "")

"""Checks of what the kernel and its libraries can do.

Nothing is tried out: whoever asks netfilter for something makes it load modules and make tables.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nfknock.backends.iptables import limit
from nfknock.backends.iptables.backend import has_ipv6
from nfknock.backends.nftables import library
from nfknock.backends.nftables import standing as nftables
from nfknock.backends.xtables import binding
from nfknock.core.plan import ReaderKind
from nfknock.doctor.findings import Finding, Patient
from nfknock.errors import NfknockError
from nfknock.host import capabilities, legacy, modules, nftread
from nfknock.readers import owners


class _Reader(NamedTuple):
    """What a kind of reader needs of the kernel; its rules' target is called as it is."""

    target: str
    module: str
    option: str
    matches: tuple[str, ...] = ()


_FAMILIES: dict[legacy.Version, str] = {4: "iptable_filter", 6: "ip6table_filter"}
_MATCHES = ("addrtype", "comment", "conntrack", "multiport", "tcp", "time", "udp")
_READERS: dict[ReaderKind, _Reader] = {
    "nfqueue": _Reader("NFQUEUE", "nfnetlink_queue", "CONFIG_NETFILTER_NETLINK_QUEUE"),
    "nflog": _Reader("NFLOG", "nfnetlink_log", "CONFIG_NETFILTER_NETLINK_LOG", matches=("limit",)),
}
_SETS = ("xt_set", "ip_set", "ip_set_list_set", "ip_set_hash_ipport", "ip_set_hash_ipportip")
_OWN = ("tcp", "udp")
"""They have no module of their own."""
_OTHERS = {"nf_tables": "nf_tables", "ip_set": "ipset"}


def has_capabilities(check: str, _patient: Patient) -> Iterator[Finding]:
    """Say whether this process could write a firewall."""
    missing = capabilities.missing()
    if not missing:
        yield Finding(check, "ok", "CAP_NET_ADMIN and CAP_NET_RAW are there")
    elif os.geteuid():
        text = f"an ordinary user without {' and '.join(missing)} sees only a part of this"
        yield Finding(check, "warning", text, "run this as root")
    else:
        mend = "give the container or the service these capabilities"
        yield Finding(check, "fault", f"root has no {' and '.join(missing)} here", mend)


def has_libraries(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether what the server side needs is installed."""
    mend = "pip install 'nfknock[server]'"
    needed = {"pyroute2": "pyroute2"}
    if patient.reader == "nfqueue":
        needed["NetfilterQueue"] = "netfilterqueue"
    absent = [package for package, name in needed.items() if importlib.util.find_spec(name) is None]
    writer = "python-iptables" if patient.writes_legacy else "libnftables"
    try:
        (binding.iptc if patient.writes_legacy else library.load)()
    except NfknockError as exc:
        yield Finding(check, "fault", str(exc))
    if absent:
        yield Finding(check, "fault", f"not installed: {', '.join(absent)}", mend)
    else:
        yield Finding(check, "ok", f"installed: {writer}, {', '.join(needed)}")


def has_legacy_tables(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the kernel has the filter tables that the backends iptables and ipset write."""
    if not patient.writes_legacy:
        return
    for version, module in _FAMILIES.items():
        family, has_list = f"IPv{version}", Path("/proc/net", f"ip{6 if version == 6 else ''}_tables_names").exists()
        state = modules.state(module)
        if state == "loadable" and not has_list:
            yield Finding(check, "ok", f"legacy x_tables for {family}: {module} is loaded by the first `nfknock apply`")
        elif has_list or state == "there":
            yield Finding(check, "ok", f"legacy x_tables for {family}")
        elif version == 6 and not has_ipv6():
            yield Finding(check, "ok", "IPv6 is off, so it needs no table")
        else:
            mend = f"use a kernel that has {module}"
            yield Finding(check, "fault", f"this kernel shows no legacy x_tables for {family}", mend)


def has_extensions(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the extensions are there that our rules are made of."""
    if not patient.writes_legacy:
        return
    try:
        matches = set(Path("/proc/net/ip_tables_matches").read_text().split())
        targets = set(Path("/proc/net/ip_tables_targets").read_text().split())
    except FileNotFoundError:
        return  # x_tables is not loaded yet, or absent, which has been said
    # Strays are copied, however knocks come.
    kinds: tuple[ReaderKind, ...] = (patient.reader, "nflog") if patient.watches_strays else (patient.reader,)
    readers = [_READERS[kind] for kind in dict.fromkeys(kinds)]
    limits = (limit.NAME,) if patient.limits_knocks else ()
    wanted = (*_MATCHES, *limits, *dict.fromkeys(name for reader in readers for name in reader.matches))
    handing_over = tuple(reader.target for reader in readers)
    unloaded = [name for name in wanted if name not in matches]
    unloaded += [name for name in handing_over if name not in targets]
    states = {name: modules.state(f"xt_{name}") for name in unloaded if name not in _OWN}
    absent = [name for name, state in states.items() if state == "absent"]
    unclear = [name for name, state in states.items() if state is None]
    if absent:
        yield Finding(check, "fault", f"this kernel has no x_tables extension {', '.join(absent)}", "use one that has")
    if unclear:
        text = f"the x_tables extensions {', '.join(unclear)} are not loaded, and nothing tells whether they could be"
        yield Finding(check, "warning", text, "`nfknock apply --dry-run` finds out")
    if not (absent or unclear):
        yield Finding(check, "ok", f"x_tables extensions: {', '.join((*wanted, *handing_over))}")


def has_reader(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the kernel can hand packets to a program as the configuration wants it."""
    reader = _READERS[patient.reader]
    state = _state_of_reader(patient.reader)
    if state == "there":
        yield Finding(check, "ok", reader.target)
    elif state == "loadable":
        yield Finding(check, "ok", f"{reader.target}: {reader.module} is loaded by the first `nfknock run`")
    else:
        yield Finding(check, "fault", f"this kernel shows no {reader.target}", f"use a kernel with {reader.option}")


def _state_of_reader(kind: ReaderKind) -> modules.State | None:
    return "there" if owners.TABLES[kind].exists() else modules.state(_READERS[kind].module)


def has_sets(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the kernel has the sets that the backend ipset keeps holes in."""
    if patient.backend != "ipset":
        return
    matches = Path("/proc/net/ip_tables_matches")
    in_use = ("xt_set", "ip_set") if matches.exists() and "set" in matches.read_text().split() else ()
    states = {name: modules.state(name) for name in _SETS if name not in in_use}
    mend = "use a kernel that has them, or the backend iptables"
    if absent := [name for name, state in states.items() if state == "absent"]:
        yield Finding(check, "fault", f"this kernel has no {', '.join(absent)}", mend)
    elif None in states.values() and not in_use:
        text = "nothing tells whether this kernel has sets (ipset)"
        yield Finding(check, "warning", text, "`nfknock apply --dry-run` finds out")
    else:
        yield Finding(check, "ok", "sets of the kernel (ipset)")


def has_nftables(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the kernel has what the backend nftables writes, and how that would stand here."""
    if patient.writes_legacy:
        return
    if _state("nf_tables") == "absent":
        yield Finding(check, "fault", "this kernel has no nf_tables", "use one that has, or another backend")
        return
    if patient.reader == "nfqueue":
        yield from _has_queue_expression(check)
    if patient.config is None:
        return
    attach = patient.config.backend.attach
    try:
        found = nftables.read()
        stand = nftables.fitting(found, patient.config.plan, attach)
    except NfknockError as exc:
        yield Finding(check, "fault", str(exc))
        return
    if why := nftables.why_not_attached(found, attach):
        yield Finding(check, "fault", why, "name another one, or none")
    if stand.entrances:
        text = f"what nfknock lets in passes {', '.join(stand.entrances)} by a rule of its own"
        yield Finding(check, "ok", f"nf_tables: {text}")
    else:
        yield Finding(check, "ok", "nf_tables: no chain of the host's own drops what nfknock lets in; it stands alone")


def _has_queue_expression(check: str) -> Iterator[Finding]:
    mend = 'say kind = "nflog" under [reader]'
    match modules.state("nft_queue"):
        case "absent":
            yield Finding(check, "fault", "nf_tables of this kernel cannot send packets to NFQUEUE", mend)
        case None:
            text = "nothing tells whether nf_tables of this kernel can send packets to NFQUEUE"
            yield Finding(check, "warning", text, "`nfknock apply --dry-run` finds out")
        case _:
            yield Finding(check, "ok", "nf_tables can send packets to NFQUEUE")


def has_others(check: str, patient: Patient) -> Iterator[Finding]:
    """Say what else there is of netfilter; nothing configured needs it."""
    states = {title: _state(module) for module, title in _OTHERS.items()}
    states |= {reader.target: _state_of_reader(kind) for kind, reader in _READERS.items() if kind != patient.reader}
    words = {"there": "there", "loadable": "can be loaded", "absent": "absent", None: "not in use"}
    listed = ", ".join(f"{title} ({words[state]})" for title, state in states.items())
    yield Finding(check, "ok", f"of use to others: {listed}")


def _state(module: str) -> modules.State | None:
    found = modules.state(module)
    if module == "nf_tables" and found is None:
        with contextlib.suppress(OSError):
            return "there" if nftread.read() else None
    return found


def shows_our_rules(check: str, patient: Patient) -> Iterator[Finding]:
    """Say which `iptables` command this host has."""
    if not patient.writes_legacy:
        return
    path = shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        return
    if "nft" in Path(path).resolve().name:
        text = "the command `iptables` is the nft variant here, which does not show nfknock's rules"
        yield Finding(check, "ok", f"{text}: `iptables-legacy -S` does")
    else:
        yield Finding(check, "ok", "the command `iptables` shows nfknock's rules")

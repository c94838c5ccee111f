"""python-iptables as nfknock uses it: loading it, and turning a rule into bytes.

What the library (1.2.0) gets wrong, and what is done about it here. Each has a test in tests/kernel/test_binding.py.

* Importing it runs ldconfig, gcc, ld and modprobe: `_load` maps the C libraries first and leaves modprobe out.
* It reads extension options in steps of 48 bytes; iptables 1.8.11 made them 56, so that only the first option of every
  extension was seen (issue 353): `_option_entries` measures the step.
* `Rule6.in_interface` writes a mask that matches other interfaces too (issue 244): `_set_interface` writes both.
* Creating a target asks every table whether it has a chain of that name, which makes the kernel create nat, mangle,
  raw and security: the rule classes here have no tables to ask.
* Rules under construction share a C buffer: `encode` builds one rule and copies it out before it returns.
* Autocommit swallows errors: `table` never uses it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import socket
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any

from nfknock.backends.xtables.entry import Entry, comparison_mask
from nfknock.core.model import Family, IPNetwork
from nfknock.errors import BackendError, MissingDependencyError

VERDICTS = frozenset(("ACCEPT", "DROP", "RETURN"))
LACKING = "this kernel lacks an extension that a rule needs; `nfknock doctor` says which"

_SONAMES = {"c": "libc.so.6", "xtables": "libxtables.so.12", "ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2"}
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# linux/netfilter_ipv4/ip_tables.h: IPT_SO_GET_REVISION_MATCH; linux/netfilter_ipv6/ip6_tables.h.
_GET_REVISION_MATCH = {"ipv4": (socket.IPPROTO_IP, 66), "ipv6": (socket.IPPROTO_IPV6, 68)}
_OLD_OPTION_SIZE = 48
_NEW_OPTION_SIZE = 56

# An option with more than one word has them apart.
Options = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A rule in iptables' own words: `matches` and `options` are extension options without their dashes."""

    jump: str
    protocol: str | None = None
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    interface: str | None = None
    matches: tuple[tuple[str, Options], ...] = ()
    options: Options = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rule as bytes, and which of them count when it is compared with what the kernel has."""

    entry: Entry
    mask: bytes

    def equals(self, live: Entry) -> bool:
        """Whether the kernel has this rule there."""
        return live.is_same_rule(self.entry, self.mask)


@cache
def iptc() -> ModuleType:
    """Return the library, loaded without running any program. Raises MissingDependencyError, BackendError."""
    if importlib.util.find_spec("iptc") is None:
        raise MissingDependencyError("python-iptables")
    try:
        module = _load()
    except Exception as exc:  # it raises bare Exceptions and AttributeErrors when a C library is not there
        raise BackendError(
            f"loading python-iptables: {exc}; it needs libxtables.so.12, libip4tc.so.2 and libip6tc.so.2 "
            "(Debian: apt-get install iptables)"
        ) from exc
    _fix_options(sys.modules["iptc.xtables"])
    return module


def _load() -> ModuleType:
    import ctypes.util as finder

    original = finder.find_library

    def find(name: str) -> str | None:
        soname = _SONAMES.get(name)
        return soname if soname and _maps(soname) else None

    finder.find_library = find
    try:
        os.environ.setdefault("XTABLES_LIBDIR", str(_extension_directory()))
        with warnings.catch_warnings():
            # Newer Pythons complain of its escape sequences when they compile it; an operator can do nothing about it.
            warnings.simplefilter("ignore")
            utilities = _preload("iptc.util")
            utilities.load_kernel = lambda *_args, **_options: None
            return importlib.import_module("iptc")
    finally:
        finder.find_library = original


def _maps(soname: str) -> bool:
    try:
        ctypes.CDLL(soname, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _extension_directory() -> Path:
    """Where the extensions are: beside the libxtables that was just mapped."""
    _maps(_SONAMES["xtables"])
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libxtables.so" in line:
            return Path(line.split(maxsplit=5)[5]).parent / "xtables"
    raise OSError("libxtables.so.12 cannot be loaded")


def _preload(name: str) -> Any:
    """Load one submodule before its package: the package's own import would use it unpatched."""
    package = importlib.util.find_spec(name.partition(".")[0])
    assert package is not None  # `iptc` has looked for it
    assert package.submodule_search_locations is not None  # it is a package
    path = Path(package.submodule_search_locations[0], name.rpartition(".")[2] + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec
    assert spec.loader is not None  # and a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fix_options(xtables: Any) -> None:
    """Make the library walk extension options in the step that this libxtables has."""
    kind = xtables.xt_option_entry

    def lookup(_self: Any, entries: Any, name: bytes) -> Any:
        return next(
            (entry for entry in option_entries(_address(entries), kind, _option_step()) if entry.name == name), None
        )

    def check(_self: Any, name: bytes, flags: int, table: Any) -> None:
        for entry in option_entries(_address(table), kind, _option_step()):
            if entry.flags & xtables.XTOPT_MAND and not flags & (1 << entry.id):
                raise xtables.XTablesError(f"{name!r}: --{entry.name.decode()} must be specified")

    xtables.xtables._option_lookup = lookup
    xtables.xtables._options_fcheck = check


def _address(array: Any) -> int:
    return ctypes.cast(array, ctypes.c_void_p).value or 0


def option_entries(address: int, kind: Any, step: int) -> Iterator[Any]:
    """Walk a C array of options to its end, an option without a name."""
    while address and (entry := kind.from_address(address)).name:
        yield entry
        address += step


@cache
def _option_step() -> int:
    """Measure the step on the udp match, whose first option has no bounds."""
    xtables = sys.modules["iptc.xtables"]
    return measured_step(_address(xtables.xtables(xtables.NFPROTO_IPV4).find_match("udp")[0].x6_options))


def measured_step(address: int) -> int:
    """Return the step of an array of two options or more, the first of which has no bounds.

    The last two fields, min and max, became 8 bytes wide. So where a second option's name is in the old step, the new
    one has the first option's max: 0, which a name never is.
    """
    second_name = ctypes.c_void_p.from_address(address + _OLD_OPTION_SIZE).value
    return _OLD_OPTION_SIZE if second_name else _NEW_OPTION_SIZE


@cache
def _rule_class(family: Family) -> Any:
    base = iptc().Rule if family == "ipv4" else iptc().Rule6
    return type("_Rule", (base,), {"tables": ()})


def encode(family: Family, spec: Spec) -> Encoded:
    """Turn one rule into the kernel's bytes. Raises BackendError when libxtables does not take it."""
    try:
        return _encode(family, spec)
    except KeyError as exc:  # what the library makes of a kernel that does not know an extension
        raise BackendError(f"building the {family} rule for {spec.jump} {spec.matches}: {LACKING}") from exc
    except Exception as exc:  # the library's own errors have no common base, and ctypes adds its own
        raise BackendError(f"building the {family} rule for {spec.jump} {spec.matches}: {exc}") from exc


def _encode(family: Family, spec: Spec) -> Encoded:
    rule = _rule_class(family)()
    if spec.protocol:
        rule.protocol = spec.protocol
    if spec.source:
        rule.src = str(spec.source)
    if spec.destination:
        rule.dst = str(spec.destination)
    if spec.interface:
        _set_interface(family, rule, spec.interface)
    user_sizes: dict[str, int] = {}
    for name, options in spec.matches:
        match = rule.create_match(name)
        keep = _with_own_memory(match)  # noqa: F841  (for as long as the library writes there)
        for key, value in options:
            match.set_parameter(key, value)
        # Not Rule.final_check: that redirects file descriptor 1 and parses everything again from the text.
        match._final_check()
        user_sizes[name] = match._module.userspacesize
    is_extension = spec.jump.isupper() and bool(spec.options)
    target = rule.create_target(spec.jump if is_extension else "ACCEPT")
    for key, value in spec.options:
        target.set_parameter(key, value)
    target._final_check()
    if not is_extension:
        target.standard_target = spec.jump
    entry = Entry(family, bytes(rule.rule), spec.jump)
    size = target._module.userspacesize if is_extension else None
    return Encoded(entry, comparison_mask(entry, user_sizes, size))


def _with_own_memory(match: Any) -> Any:
    """Give an extension the private memory that it asks for; the library has freed what it gave it. Returns it."""
    memory = ctypes.create_string_buffer(max(1, getattr(match._module, "udata_size", 0)))
    match._module.udata = ctypes.cast(memory, ctypes.c_void_p)
    return memory


def knows_match(family: Family, name: str, revision: int) -> bool:
    """Whether this kernel has a match extension in this revision, loading its module if there is one."""
    level, option = _GET_REVISION_MATCH[family]
    # struct xt_get_revision
    wanted = ctypes.create_string_buffer(struct.pack("29sB", name.encode(), revision), 30)
    size = ctypes.c_uint(len(wanted))
    with socket.socket(_FAMILIES[family], socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        return bool(ctypes.CDLL(None).getsockopt(asking.fileno(), level, option, wanted, ctypes.byref(size)) == 0)


def _set_interface(family: Family, rule: Any, name: str) -> None:
    header = rule.entry.ip if family == "ipv4" else rule.entry.ipv6
    # The end of the name is compared too, unless it is a "+" that stands for any end. That "+" stays in the name, as
    # iptables has it: since 1.8.11 it lists what stands there.
    header.iniface = name.encode()
    header.iniface_mask = b"\xff" * (len(name.encode()) + (-1 if name.endswith("+") else 1))


def chain_names(table: Any) -> list[str]:
    """Return the names of a table's chains; the library's own list fails at one that is not UTF-8."""
    names: list[str] = []
    name = table._iptc.iptc_first_chain(table._handle)
    while name:
        names.append(name.decode(errors="surrogateescape"))
        name = table._iptc.iptc_next_chain(table._handle)
    return names


def describe(chain: str, entry: Entry, *, is_extension: bool) -> str:
    """Return a rule in iptables-save notation. Redirects file descriptor 1 for a moment; not for the daemon.

    `is_extension` is whether its target is an extension's, not a verdict or a chain.
    """
    raw = entry.raw if is_extension else entry.with_target_name("").raw
    kind = iptc().ip4tc.ipt_entry if entry.family == "ipv4" else iptc().ip6tc.ip6t_entry
    buffer = ctypes.create_string_buffer(raw, len(raw))
    rule = _rule_class(entry.family)(kind.from_buffer(buffer), _NoChain)
    words = ["-A", chain]
    for option, address in (("-s", rule.src), ("-d", rule.dst)):
        network = ip_network(address.lstrip("!"), strict=False)
        if network.prefixlen:
            words += [*(["!"] if address.startswith("!") else []), option, str(network)]
    if rule.in_interface:
        words += ["-i", rule.in_interface]
    if rule.protocol not in ("all", "ip"):
        words += ["-p", rule.protocol]
    for match in rule.matches:
        words += ["-m", match.name, *_options_of(match)]
    return " ".join([*words, "-j", entry.jump, *(_options_of(rule.target) if is_extension else ())])


class _NoChain:
    """Where the library asks which table a rule is in: only to ask that table where the rule jumps, which we know."""

    class table:  # noqa: N801  (the library's name for it)
        @staticmethod
        def get_target(_entry: Any) -> None:
            return None


def _options_of(extension: Any) -> Iterator[str]:
    for name, values in extension.get_all_parameters().items():
        words = [f'"{value}"' if " " in value else value for value in values]
        if words[:1] == ["!"]:
            yield words.pop(0)
        yield " ".join([f"--{name}", *words])

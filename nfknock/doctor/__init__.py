"""What on this host would stop nfknock from working: one small function for each thing to look at.

A check takes a `Patient` and yields findings. It changes nothing, loads nothing and holds nothing up, and it works
for an ordinary user, who sees less. To add one: write it, and name it in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfknock.doctor import configuration, kernel, neighbours, standing
from nfknock.doctor.findings import Check, Finding, Level, Patient

CHECKS: tuple[tuple[str, Check], ...] = (
    ("configuration", configuration.is_right),
    ("configuration-mode", configuration.is_secret),
    ("interfaces", configuration.has_its_interfaces),
    ("capabilities", kernel.has_capabilities),
    ("libraries", kernel.has_libraries),
    ("legacy", kernel.has_legacy_tables),
    ("extensions", kernel.has_extensions),
    ("sets", kernel.has_sets),
    ("nf_tables", kernel.has_nftables),
    ("reader", kernel.has_reader),
    ("netfilter", kernel.has_others),
    ("iptables-command", kernel.shows_our_rules),
    ("lock", standing.lock_is_usable),
    ("queue", neighbours.queue_is_free),
    ("nftables", neighbours.lets_pass),
    ("legacy-rules", neighbours.lets_pass_in_legacy),
    ("ufw", neighbours.has_no_ufw),
    ("firewalld", neighbours.has_no_firewalld),
    ("docker", neighbours.forwards_nothing),
    ("firewall", standing.is_in_place),
    ("ipv6", standing.guards_ipv6),
    ("daemon", standing.daemon_runs),
    ("clock", standing.clock_is_right),
)

__all__ = ["CHECKS", "Finding", "Level", "Patient", "examine"]


def examine(patient: Patient) -> Iterator[Finding]:
    """Yield what every check finds; one that may not look, or fails, says so."""
    for name, check in CHECKS:
        try:
            yield from check(name, patient)
        except PermissionError:
            yield Finding(name, "warning", f"{name}: only root may look at this", "run this as root")
        except OSError as exc:
            yield Finding(name, "warning", f"{name}: could not be looked at: {(exc.strerror or str(exc)).lower()}")

"""What this process may do."""

from __future__ import annotations

from pathlib import Path

# linux/capability.h
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def missing(status: Path = Path("/proc/self/status")) -> list[str]:
    """Return which of the capabilities that nfknock needs this process has not got. Raises OSError."""
    for line in status.read_text().splitlines():
        name, _, text = line.partition(":")
        if name == "CapEff":
            effective = int(text, 16)
            return [capability for capability, bit in _NEEDED.items() if not effective >> bit & 1]
    return list(_NEEDED)

"""Durations as people write them."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


def parse_duration(value: str | float) -> float:
    """Return seconds. A number is seconds; a text has a unit: `"500ms"`, `"5s"`, `"2m"`, `"1h"`, `"1d"`.

    Raises ValueError for anything else, negative and infinite numbers included.
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip().lower())
        if match is None:
            raise ValueError(f'{value!r} is not a duration; write 30, "30s", "2m" or "1h"')
        return float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a duration; write a number of seconds, 0 or more")
    return float(value)


def format_duration(seconds: float) -> str:
    """Return the seconds as a log line has them: `30 s`, `0.5 s`."""
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"

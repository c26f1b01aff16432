"""Sizes and times as people say them, on the terminal and on pages."""

from __future__ import annotations

import math


def size(count: int | None) -> str:
    """``812 B``, ``4.2 kB``, ``18 MB``: bytes in powers of 1,000; empty for None."""
    if count is None:
        return ""
    number, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"


def lasting(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``7 min``, ``3.5 h``."""
    if seconds < 10:
        return f"{seconds:,.1f} s"
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def ago(seconds: float) -> str:
    """How long ago, in the unit people would use."""
    for bound, length, unit in (
        (90, 1, "second"),
        (5_400, 60, "minute"),
        (129_600, 3_600, "hour"),
        (math.inf, 86_400, "day"),
    ):
        if seconds < bound:
            count = max(0, round(seconds / length))
            return f"{count:,} {unit}{'' if count == 1 else 's'} ago"
    raise AssertionError("the last bound is beyond everything")

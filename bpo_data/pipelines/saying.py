"""How a command answers: lines to read, or with ``format=json`` one document for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

FORMATS = ("text", "json")


class Voice:
    """Where results go. Progress and warnings go to stderr whatever the format."""

    def __init__(self, form: str = "text") -> None:
        self.form = form
        self.answer: dict[str, Any] = {}
        """The document of ``format=json``."""

    def line(self, text: str) -> None:
        """A line for people: on stdout, which ``format=json`` keeps for its document."""
        print(text, file=sys.stdout if self.form == "text" else sys.stderr, flush=True)

    def note(self, **parts: Any) -> None:
        """Parts of the document."""
        self.answer |= parts

    def add(self, part: str, row: Any) -> None:
        """One more row of a list in the document."""
        self.answer.setdefault(part, []).append(row)

    def end(self, status: str) -> None:
        """Print the document; nothing where lines were asked for."""
        if self.form == "json":
            whole = plain({"status": status, **self.answer})
            print(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """A value as JSON has it: data classes as objects, paths as text, no NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(name: str, text: str) -> None:
    """A line of progress on stderr."""
    print(f"{name:<10} {text}", file=sys.stderr, flush=True)


def size(count: int | None) -> str:
    """``812 B``, ``4.2 kB``, ``18 MB``; empty for None."""
    if count is None:
        return ""
    number, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"


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

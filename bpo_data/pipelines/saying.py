"""How a command answers: lines to read, or with ``format=json`` one document for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from bpo_data.errors import harmless, harmless_json

FORMATS = ("text", "json")


class Voice:
    """Where results go. Progress and warnings go to stderr whatever the format."""

    def __init__(self, form: str = "text") -> None:
        self.form = form
        self.answer: dict[str, Any] = {}
        """The document of ``format=json``."""

    def line(self, text: str) -> None:
        """A line for people: on stdout, which ``format=json`` keeps for its document."""
        self.write(text, sys.stdout if self.form == "text" else sys.stderr)

    def write(self, text: str, stream: TextIO) -> None:
        try:
            print(harmless(text), file=stream, flush=True)
        except BrokenPipeError:  # its reader, such as `head`, has seen enough; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

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
            text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
            self.write(harmless_json(text), sys.stdout)


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
    print(harmless(f"{name:<10} {text}"), file=sys.stderr, flush=True)

"""The one error a user can mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

STEERING = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What JSON may hold as it is and a terminal acts on, or cannot print."""


class UserError(Exception):
    """Something the user can put right: one line naming the place, the value and the way out.

    The command line prints it after ``bpo_data:`` without a traceback and ends with status 2.
    Any other exception is our own bug and rises whole. Words of data, models and servers in it
    steer no terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__(harmless(text))


def nearest(word: str, words: Collection[str]) -> str:
    """`` Did you mean x?`` for the closest of ``words``, or an empty string when none is close."""
    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def plain(text: str) -> str:
    """Anybody's words on one line that a terminal shows as they are: no control or escape codes."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def harmless(text: str) -> str:
    """Anybody's words as a terminal shows them: line ends stay and any other space is a plain one;
    control and escape codes, codes of direction and halves of characters do not stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else " " if letter.isspace() else "\ufffd"
        for letter in text
    )


def harmless_json(text: str) -> str:
    """JSON that a terminal shows as it is and that reads back the same: what ``STEERING`` names is
    written as escapes, as JSON itself asks for the control codes below a space."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def some(count: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")

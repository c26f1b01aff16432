"""The text of a row: what a table can carry, what a reader sees, what is worth a notice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from bpo_data.components.reading.faults import Bad

HUGE = 100_000
"""Characters of one text from which the row gets the notice ``huge_text``."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]")
_NOTICES = {
    "special_tokens": re.compile(
        r"<\|[^|<>\n]{1,40}\|>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>|</?s>|<(bos|eos|pad|unk|mask)>|\[/?INST\]"
        r"|<</?SYS>>|<(start|end)_of_turn>|\[(PAD|UNK|MASK|CLS|SEP)\]|</?(think|tool_call)>"
    ),
    "role_marker": re.compile(r"\b(Human|Assistant):"),
    "bidi_control": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "control_characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}


def clean(text: str) -> str:
    """The text as it is. Raises Bad if it holds what a table or a tokenizer cannot carry."""
    if surrogate := _SURROGATE.search(text):
        raise Bad("lone_surrogate", f"half a surrogate pair at character {surrogate.start() + 1}")
    if "\0" in text:
        raise Bad("control_character", f"a NUL at character {text.index(chr(0)) + 1}")
    return text


def visible(text: str) -> bool:
    """Whether a reader would see anything: more than space, format and control characters."""
    return any(
        unicodedata.category(mark)[0] not in "ZC" or unicodedata.category(mark) == "Co"
        for mark in _INVISIBLE.sub("", text)
    )


def notices(texts: Sequence[str]) -> Iterator[str]:
    """The names of what is worth counting in the texts of a row."""
    for name, pattern in _NOTICES.items():
        if any(pattern.search(text) for text in texts):
            yield name
    if any(len(text) > HUGE for text in texts):
        yield "huge_text"


def kind_of(value: Any) -> str:
    """What JSON calls a value, for a sentence: ``a list``."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")

"""JSON and text read strictly: what most parsers pass over in silence is refused by name."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

Reason = Literal[
    "chosen_equals_rejected",
    "chosen_equals_rejected_after_nfc",
    "chosen_equals_rejected_after_trim",
    "control_character",
    "corrupt_gzip",
    "corrupt_parquet",
    "duplicate_id",
    "duplicate_key",
    "empty_prompt",
    "empty_response",
    "history_differs",
    "invalid_json",
    "lone_surrogate",
    "malformed_csv",
    "missing_column",
    "missing_field",
    "missing_id",
    "missing_role",
    "no_rows",
    "no_user_message",
    "not_an_object",
    "not_utf8",
    "null_response",
    "null_score",
    "number_out_of_range",
    "prompt_ends_with_assistant",
    "roles_do_not_alternate",
    "score_not_a_number",
    "score_not_finite",
    "score_order_inverted",
    "score_tie",
    "system_not_first",
    "too_deep",
    "too_long",
    "two_systems",
    "unknown_layout",
    "unknown_role",
    "unknown_split",
    "unreadable",
    "unsupported_content",
    "wrong_field_count",
    "wrong_type",
]

MAX_DEPTH = 100
"""Lists and objects inside one another; a message list with content parts needs 6."""

LONGEST_INTEGER = 309
"""Digits of the largest float64; Python itself refuses to read more than 4,300."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BRACKET = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]")
_MARK = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)


class Bad(Exception):
    """What is wrong with a row, or with a file: a reason of the closed set, and the particulars."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        printable = detail.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        self.detail = " ".join(printable.split())[:1000]


def loads(raw: bytes) -> Any:
    """One JSON value from UTF-8 bytes.

    NaN and the infinities come through as floats, for scores to be judged where they are read.
    Raises Bad for text that is no JSON or no UTF-8, a key given twice, an integer beyond float64,
    and nesting deeper than ``MAX_DEPTH``.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Bad("not_utf8", f"byte {error.start + 1} of the row is not UTF-8") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
        raise Bad("too_deep", f"nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise Bad("invalid_json", f"{error.msg} at character {error.pos + 1} of the row") from error


def array_elements(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """The elements of a top-level JSON array, unparsed: line from 1, bytes, properly ended or not.

    What follows the closing bracket comes last, as one element that is not properly ended.
    """
    depth, start, line, counted = 0, 0, 1, 0
    for mark in _MARK.finditer(data):
        sign = data[mark.start() : mark.start() + 1]
        ends = depth == 1 and sign in (b",", b"]")
        depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        if ends:
            element = data[start : mark.start()]
            first = start + len(element) - len(element.lstrip())
            line, counted = line + data.count(b"\n", counted, first), first
            if element.strip() or sign == b",":
                yield line, element.strip(), True
        if ends or not start:
            start = mark.end()
        if depth == 0:
            break
    rest = data[start:].strip()
    if rest or depth:
        yield line + data.count(b"\n", counted, data.find(rest, start)), rest, False


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


def _depth(raw: bytes) -> int:
    depth = deepest = 0
    for mark in _BRACKET.finditer(raw):
        sign = raw[mark.start() : mark.start() + 1]
        depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Bad("duplicate_key", f"the key {twice!a:.80} is there twice")
    return found


def _integer(digits: str) -> int:
    try:
        if len(digits.lstrip("-")) <= LONGEST_INTEGER:
            float(value := int(digits))
            return value
    except OverflowError:
        pass
    raise Bad("number_out_of_range", f"an integer of {len(digits)} digits is beyond float64")

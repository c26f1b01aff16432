"""JSON read strictly: what most parsers pass over in silence is refused by name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bpo_data.components.reading.bounds import MAX_VALUES
from bpo_data.components.reading.faults import Bad

MAX_DEPTH = 100
"""Lists and objects inside one another; a message list with content parts needs 6."""

LONGEST_INTEGER = 309
"""Digits of the largest float64; Python itself refuses to read more than 4,300."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_MARK = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def loads(raw: bytes) -> Any:
    """One JSON value from UTF-8 bytes.

    NaN and the infinities come through as floats, for scores to be judged where they are read.
    Raises Bad for text that is no JSON or no UTF-8, a key given twice, an integer beyond float64,
    nesting deeper than ``MAX_DEPTH`` and more than ``MAX_VALUES`` values.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Bad("not_utf8", f"byte {error.start + 1} of the row is not UTF-8") from error
    opened, parted = raw.count(b"[") + raw.count(b"{"), raw.count(b",")
    if opened > MAX_DEPTH or opened + parted > MAX_VALUES:
        depth, values = _shape(raw)
        if depth > MAX_DEPTH:
            raise Bad("too_deep", f"nested more than {MAX_DEPTH} deep")
        if values > MAX_VALUES:
            raise Bad("too_large", f"the row holds more than {MAX_VALUES:,} values")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise Bad(
            "invalid_json",
            f"{error.msg.removesuffix(' at')} at character {error.pos + 1} of the row",
        ) from error


def array_elements(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """The elements of a top-level JSON array, unparsed: line from 1, bytes, properly ended or not.

    What follows the closing bracket comes last, as one element that is not properly ended.
    """
    depth, start, line, counted = 0, 0, 1, 0
    for mark in _MARK.finditer(data):
        sign = data[mark.start() : mark.start() + 1]
        ends = depth == 1 and sign in (b",", b"]")
        depth += _STEP.get(sign, 0)
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


def _shape(raw: bytes) -> tuple[int, int]:
    """How deep lists and objects stand inside one another, and about how many values there are;
    of very many, no more than that."""
    depth = deepest = values = 0
    for mark in _MARK.finditer(raw):
        step = _STEP.get(raw[mark.start() : mark.start() + 1], 0)
        depth += step
        deepest = max(deepest, depth)
        values += step > 0 or raw[mark.start() : mark.end()] == b","
        if values > MAX_VALUES:
            break
    return deepest, values


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

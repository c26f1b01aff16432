"""The responses a record carries: a preference pair, or a list with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bpo_data.components.reading.columns import MISSING, STANDARD, Cells, as_number
from bpo_data.components.reading.faults import Bad
from bpo_data.components.reading.text import clean, kind_of, visible
from bpo_data.components.rows import Given
from bpo_data.tables import same_text

Criteria = tuple[tuple[str, float], ...]

CRITERIA = ("criteria", "annotations")
RATINGS = ("Rating", "rating", "score", "points")
REASONS = ("rationale", "critique")
ITEM_TEXT = ("response", "text", "content", "completion", "output")


def check_response(text: str) -> None:
    """Raises Bad for a response in which a reader would see nothing."""
    if not visible(text):
        raise Bad("empty_response", "a response has no visible text")


def given_pair(cells: Cells, record: Mapping[str, Any], better: str, worse: str) -> list[Given]:
    """Two texts that differ, with the scores of the record, or 1 and 0."""
    for text in (better, worse):
        check_response(text)
    if better == worse:
        raise Bad("chosen_equals_rejected", "chosen and rejected are the same text")
    if better.strip() == worse.strip():
        raise Bad("chosen_equals_rejected_after_trim", "they differ in outer space alone")
    if same_text(better) == same_text(worse):
        raise Bad("chosen_equals_rejected_after_nfc", "they differ in Unicode composition alone")
    high, low = 1.0, 0.0
    if cells.pair_scores:
        high, low = (cells.number(record.get(n, MISSING), n) for n in cells.pair_scores)
        if high == low:
            raise Bad("score_tie", f"chosen and rejected both have the score {high:g}")
        if high < low:
            raise Bad("score_order_inverted", f"chosen has {high:g}, rejected {low:g}")
    return [Given(better, "chosen", high), Given(worse, "rejected", low)]


def given_list(
    cells: Cells, record: Mapping[str, Any], items: Sequence[Any], notices: list[str]
) -> list[Given]:
    """A list of texts, or of objects with a text; scores inside them or beside the list.

    Points by criterion and reasons stand inside the objects, as UltraFeedback has them.
    """
    if not items:
        raise Bad("empty_response", "the list of responses is empty")
    beside = record.get("scores")
    scores = beside if isinstance(beside, list) else [None] * len(items)
    if len(scores) != len(items):
        raise Bad("wrong_field_count", f"{len(items)} responses but {len(scores)} scores")
    given: list[tuple[str, str, Any, Criteria, str]] = []
    for item, score in zip(items, scores, strict=True):
        author, reason = None, None
        criteria: Criteria = ()
        if isinstance(item, dict):
            reason, criteria = _first(item, REASONS), criteria_in(item, notices)
            author = _first(item, STANDARD["author"])
            inside = _first(item, STANDARD["score"])
            score, item = score if inside is None else inside, _first(item, ITEM_TEXT)
        if item is None:
            raise Bad("null_response", "one of the responses is null or has no text")
        if not isinstance(item, str):
            raise Bad("wrong_type", f"one of the responses is {kind_of(item)}, not text")
        check_response(clean(item))
        author, reason = (clean(one) if isinstance(one, str) else "" for one in (author, reason))
        given.append((item, author, score, criteria, reason))
    scored = any(score is not None for _, _, score, _, _ in given)
    return [
        Given(text, author, cells.number(score, "score") if scored else None, criteria, reason)
        for text, author, score, criteria, reason in given
    ]


def criteria_in(item: Mapping[str, Any], notices: list[str]) -> Criteria:
    """Points by criterion that an object holds, sorted by name; one without a number has none."""
    told = _first(item, CRITERIA)
    found = {}
    for name, value in told.items() if isinstance(told, Mapping) else ():
        if isinstance(value, Mapping):
            value = _first(value, RATINGS)
        points = as_number(value)
        if points is not None:
            found[clean(name)] = points
        elif value is not None:
            notices.append("criterion_not_a_number")
    return tuple(sorted(found.items()))


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)

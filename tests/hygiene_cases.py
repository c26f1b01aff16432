"""Judgements that the tests of hygiene figures share."""

from __future__ import annotations

from bpo_data.components.hygiene import hygiene
from bpo_data.components.judging import Item, Judgement, Opinion, Verdict

PROMPT = ({"role": "user", "content": "say something"},)


def item(text: str, group: str = "p", author: str = "") -> Item:
    return Item(PROMPT, text, group, author=author)


def points(judge: str, row: int, score: float | None, repeat: int = 0) -> Opinion:
    state = "unreadable" if score is None else "ok"
    return Opinion(judge, row, score, state, "", "" if score is not None else "empty", repeat)


def compared(judge: str, first: int, second: int, score: float | None, repeat: int = 0) -> Opinion:
    return Opinion(judge, first, score, "ok", "", repeat=repeat, against=second)


def verdicts(*scores: float | None) -> list[Verdict]:
    return [Verdict(score, "no_score" if score is None else "ok", "") for score in scores]


def silent(items: list[Item], opinions: list[Opinion]) -> Judgement:
    """A judgement of which the opinions alone are looked at."""
    return Judgement(verdicts(*[None] * len(items)), opinions)


def rows(items, judgement, scale=None) -> dict[tuple[str, str, str], dict]:
    found = hygiene(items, judgement, scale).to_pylist()
    named = {(row["measure"], row["judge"], row["about"]): row for row in found}
    assert len(named) == len(found), "two rows say the same thing"
    return named


def figure(row: dict) -> tuple[float | None, int]:
    return row["value"], row["count"]

"""Which column plays which part, and the values a record holds for it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from bpo_data.components.reading.faults import Bad
from bpo_data.components.reading.text import clean, kind_of
from bpo_data.errors import nearest

IGNORE = "-"


@dataclass(frozen=True)
class Columns:
    """Which column of the source plays which part.

    Empty: the standard name, where the source has one. ``-``: none, even if a standard name is
    there. Anything else is the column's name, and a file without that column is refused.
    ``criteria`` has no standard name and may be several columns: ``helpfulness,honesty``.
    """

    id: str = ""
    prompt: str = ""
    response: str = ""
    score: str = ""
    author: str = ""
    chosen: str = ""
    rejected: str = ""
    topic: str = ""
    reference: str = ""
    split: str = ""
    system: str = ""
    criteria: str = ""


STANDARD = {
    "prompt": ("prompt", "instruction", "question", "conversations", "messages"),
    "response": ("responses", "completions", "response", "output", "completion", "answer"),
    "score": ("score", "rating", "overall_score"),
    "author": ("model", "author", "generator"),
    "reference": ("reference", "reference_answer", "gold_answer"),
    "criteria": (),
}
PAIR_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))

MISSING: Any = object()
"""Stands for a value whose column is not in the record, where None is a null."""

_NUMBER = re.compile(
    r"\s*+[-+]?(\d++\.?\d*+|\.\d++|nan|inf(inity)?)(e[-+]?\d++)?\s*+", re.IGNORECASE
)


def parts(keys: Collection[str], columns: Columns) -> dict[str, tuple[str, ...]]:
    """For every part the columns of a file that can play it, first choice first.

    Raises Bad ``missing_column`` if a mapped column, the prompt or half of a pair is in no row.
    """
    mapped = asdict(columns)
    found: dict[str, tuple[str, ...]] = {
        part: names_in(part, name)
        if name
        else tuple(n for n in STANDARD.get(part, (part,)) if n in keys)
        for part, name in mapped.items()
    }
    for part, name in mapped.items():
        if name == IGNORE:
            found[part] = ()
        lacking = next((one for one in found[part] if keys and one not in keys), None)
        if lacking is not None:
            raise Bad("missing_column", _no_column(lacking, part, keys) + nearest(lacking, keys))
    if IGNORE in (columns.chosen, columns.rejected):
        found |= {"chosen": (), "rejected": ()}
    for half, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if found[half] and not found[other]:
            raise Bad("missing_column", _no_column(other, other, keys))
    if keys and not found["prompt"] and not found["chosen"]:
        raise Bad("missing_column", _no_column("prompt", "prompt", keys) + _others(found))
    return found


def names_in(part: str, setting: str) -> tuple[str, ...]:
    """The columns that a setting of ``load.columns`` names: one, or several criteria."""
    if part != "criteria":
        return (setting,)
    return tuple(name.strip() for name in setting.split(",") if name.strip())


def _others(found: Mapping[str, tuple[str, ...]]) -> str:
    """What else is to be named where the prompt is not found, so that it is told at once."""
    if found["response"]:
        return ""
    return (
        " Responses were not found either: name those of pairs with load.columns.chosen and "
        "load.columns.rejected (whole transcripts need no prompt), of rated responses with "
        "load.columns.response and load.columns.score."
    )


def _no_column(name: str, part: str, keys: Collection[str]) -> str:
    listed = ", ".join(keys) if len(keys) <= 30 else f"{len(keys)} names"
    return f"no column `{name}` (columns: {listed}). Name it with load.columns.{part}=NAME."


class Cells:
    """The values of a file's records, asked for by the part they play."""

    def __init__(self, keys: Collection[str], columns: Columns, textual: bool) -> None:
        self.columns, self.textual = columns, textual
        self.parts = parts(keys, columns)
        self.pair_scores = next(
            (two for two in PAIR_SCORES if two[0] in keys or two[1] in keys), None
        )

    def get(self, record: Mapping[str, Any], part: str) -> Any:
        """The value that plays this part: None where it is null, MISSING where there is none."""
        there = [record[name] for name in self.parts[part] if name in record]
        return next((v for v in there if v is not None), None if there else MISSING)

    def named(self, record: Mapping[str, Any], part: str) -> list[str]:
        """The columns of this part that hold a value here, first choice first."""
        return [name for name in self.parts[part] if record.get(name) is not None]

    def label(self, record: Mapping[str, Any], part: str) -> str | None:
        """The text of this part, a number's included; None where it is null, empty or missing."""
        value = self.get(record, part)
        if absent(value) or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise Bad("wrong_type", f"`{part}` is {kind_of(value)}, not text")
        return clean(str(value))

    def split(self, record: Mapping[str, Any]) -> str | None:
        """The split the record names; a column not mapped by the user may hold other words."""
        label = self.label(record, "split")
        if label in ("seed", "pool", "test"):
            return label
        if self.columns.split and label not in (None, "train"):
            raise Bad("unknown_split", f"the split is {label!a:.60}, not seed, pool, test or train")
        return None

    def is_conversation(self, record: Mapping[str, Any]) -> bool:
        """Whether the prompt's column is a chat that may hold the response as well."""
        named = self.named(record, "prompt")[:1]
        return not self.columns.prompt and named in (["conversations"], ["messages"])

    def criteria(self, record: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
        """Points from the columns named as criteria, sorted by name; a null has none."""
        there = {name: record.get(name) for name in self.parts["criteria"]}
        return tuple(
            (name, self.number(value, name))
            for name, value in sorted(there.items())
            if value is not None and not (self.textual and value == "")
        )

    def number(self, value: Any, name: str) -> float:
        """A score. Raises Bad unless it is a finite number within float32."""
        if value is MISSING:
            raise Bad("missing_field", f"the row has no `{name}`; others do")
        if value is None or (self.textual and value == ""):
            raise Bad("null_score", f"`{name}` is null")
        if self.textual and isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise Bad("score_not_a_number", f"`{name}` is {kind_of(value)} {value!a:.60}")
        number = float(value)
        if not math.isfinite(number):
            raise Bad("score_not_finite", f"`{name}` is {number}")
        if abs(number) > 3.4028234e38:
            raise Bad("number_out_of_range", f"`{name}` is {number:g}, beyond float32")
        return number


def as_number(value: Any) -> float | None:
    """A number within float32, also where it is written as text; None for anything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = float(value)
    return number if abs(number) <= 3.4028234e38 else None


def absent(value: Any) -> bool:
    """Whether this is no value: a null, or a column that is not there."""
    return value is None or value is MISSING

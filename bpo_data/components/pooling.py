"""Rows of one prompt as one: packed as lines, brought together again, put in a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from bpo_data.components import criteria
from bpo_data.components.rows import Row
from bpo_data.tables import MSG

ANSWER = pa.struct([("text", pa.string()), ("author", pa.string()), ("score", pa.float32())])
GIVEN = pa.list_(ANSWER)
RATED = pa.list_(pa.struct([*ANSWER, ("criteria", criteria.CRITERIA), ("rationale", pa.string())]))
"""``given`` of a source that has points by criterion, or reasons for its scores."""

NAME, SAID, IS_RATED, REST = slice(16), slice(16, 17), slice(17, 18), slice(18, None)
"""Where a line has its prompt's id, the split that the source names, whether anything is rated,
and all that is in the row, as JSON."""
UNSAID, UNKNOWN, RATED_MARK = b"-", b"?", b"1"
LETTER = {None: UNSAID, "": UNSAID, "seed": b"s", "pool": b"p", "test": b"t"}
"""How a line says the split that the source names; ``?`` for a word that is none."""

Answer = tuple[str, str, float | None, tuple[tuple[str, float], ...], str]
"""The fields of a ``Given``."""

# Numbers of other libraries are what they are in the table: floats.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=float).encode


def packed(name: str, number: int, row: Row) -> bytes:
    """A row as a line: its prompt's id, what is drawn and laid out by, and all the rest."""
    rated = any(one.criteria or one.rationale for one in row.given)
    rest = [
        number,
        row.origin,
        row.topic,
        row.reference,
        row.split,
        [(turn["role"], turn["content"]) for turn in row.prompt],
        [(one.text, one.author, one.score, one.criteria, one.rationale) for one in row.given],
    ]
    mark = RATED_MARK if rated else b"0"
    said = LETTER.get(row.split, UNKNOWN)
    return b"%b%b%b%b\n" % (name.encode(), said, mark, _ENCODE(rest).encode())


class Packed(NamedTuple):
    """What ``packed`` put in a line beside the id."""

    number: int
    """Its place among the rows of the source."""
    origin: str
    topic: str | None
    reference: str | None
    split: str | None
    prompt: list[tuple[str, str]]
    given: list[list[Any]]


def unpacked(line: bytes) -> Packed:
    return Packed._make(json.loads(line[REST]))


class Prompt:
    """The rows of one prompt, pooled: exact repeats of a response collapse."""

    def __init__(self, name: str, first: Packed) -> None:
        self.name = name
        self.first = first
        self.split: str | None = None
        self.rows = self.responses = 0
        self.distinct: dict[Answer, None] = {}

    def add(self, row: Packed) -> None:
        """Take one more row. Of all rows the first by origin says what is said once."""
        self.rows += 1
        self.split = self.split or row.split
        self.responses += len(row.given)
        for text, author, score, points, rationale in row.given:
            rated = tuple((name, value) for name, value in points)
            self.distinct[text, author, score, rated, rationale] = None
        if row.origin < self.first.origin:
            self.first = row

    def answers(self) -> list[Answer]:
        """In the order of author and text, so that the order of the source changes nothing."""
        return sorted(self.distinct, key=_order)

    def notices(self, answers: Sequence[Answer]) -> Counter[str]:
        """What is worth counting once they are together."""
        scores: dict[str, set[float | None]] = {}
        for text, _, score, _, _ in answers:
            scores.setdefault(text, set()).add(score)
        found = Counter(contradicting_scores=int(any(len(one) > 1 for one in scores.values())))
        if self.rows > 1:
            found["repeated_prompt"] = self.rows - 1
        if len(answers) < self.responses:
            found["repeated_response"] = self.responses - len(answers)
        return found


def _order(answer: Answer) -> tuple[Any, ...]:
    text, author, score, points, rationale = answer
    return author, text, -1.0 if score is None else score, points, rationale, score is None


def pooled(lines: Iterable[bytes]) -> list[Prompt]:
    """The prompts of these lines, by id; all lines of each have to be among them."""
    found: dict[bytes, Prompt] = {}
    for line in lines:
        row = unpacked(line)
        prompt = found.get(line[NAME])
        if prompt is None:
            prompt = found[line[NAME]] = Prompt(line[NAME].decode(), row)
        prompt.add(row)
    return [found[name] for name in sorted(found)]


def conversations(prompts: Sequence[Prompt]) -> pa.Array:
    """A column of type ``MSG``: each prompt's turns."""
    turns = [turn for one in prompts for turn in one.first.prompt]
    parts = [pa.array([turn[at] for turn in turns], pa.string()) for at in (0, 1)]
    return listed([len(one.first.prompt) for one in prompts], parts, MSG)


def given_column(answers: Sequence[Sequence[Answer]], rated: bool) -> pa.Array:
    """A column of type ``GIVEN``, or ``RATED``: each prompt's responses."""
    flat = [answer for own in answers for answer in own]
    text, author, score, points, rationale = zip(*flat, strict=True) if flat else [()] * 5
    parts = [
        pa.array(text, pa.string()),
        pa.array(author, pa.string()),
        pa.array(score, pa.float32()),
    ]
    if rated:
        cells = [criteria.as_rows(one) or None for one in points]
        parts.append(pa.array(cells, criteria.CRITERIA))
        parts.append(pa.array([one or None for one in rationale], pa.string()))
    return listed([len(own) for own in answers], parts, RATED if rated else GIVEN)


def listed(counts: Sequence[int], parts: Sequence[pa.Array], kind: pa.ListType) -> pa.Array:
    """Lists of ``counts`` structs each, from the columns of all structs in a row."""
    offsets = pa.array(accumulate(counts, initial=0), pa.int32())
    structs = pa.StructArray.from_arrays(parts, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(offsets, structs).cast(kind)

"""What exporters read and make: prompts with their kept pairs, and rows of a trainer's file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from bpo_data.tables import Message

if TYPE_CHECKING:
    from bpo_data.components.exporters.target import Target

KEPT, CUT, DROPPED = "kept", "cut", "dropped"
"""What a trainer does with a row at its longest length."""


class Tokens(NamedTuple):
    """A response after its prompt, in tokens of the target tokenizer with its chat template."""

    prompt: int
    """Tokens of the prompt alone, up to where the assistant begins to write."""
    shared: int
    """How many of them the whole conversation begins with: ``prompt``, if the template is sound."""
    whole: int
    """Tokens of prompt and response."""
    closed: int
    """Of those, the ones up to the last end token; ``whole`` where the response has none."""
    ends: int
    """End tokens in the response: 1, if the template is sound and none is typed in the text."""
    eos: bool
    """Whether the response ends, but for newlines, with the tokenizer's own end token."""
    prefix: bool
    """Whether the text of the conversation begins with the text of the prompt."""
    intact: bool
    """Whether the response stands in the conversation letter for letter."""
    readable: bool
    """Whether the tokens read back as the text, white space aside."""
    ids: Sequence[int]
    """All ``whole`` of them."""


@dataclass
class Answer:
    """A response that takes part in an export."""

    response_id: str
    text: str
    author: str
    score: float | None = None
    """The judge's points; known where lists of all responses are made."""
    tokens: Tokens | None = None
    """None where there is no target tokenizer, or where its chat template refuses."""
    refused: str = ""
    """Why the target tokenizer cannot write the conversation."""


class Pair(NamedTuple):
    pair_id: str
    chosen: Answer
    rejected: Answer


@dataclass
class Asked:
    """A prompt with its kept pairs, and every response of theirs (all scored ones, for lists)."""

    prompt_id: str
    split: str
    prompt: list[Message]
    pairs: list[Pair]
    answers: dict[str, Answer]
    """By response_id, in its order; the pairs hold the same objects."""
    special: set[str] = field(default_factory=set)
    """Ids of what had a control token typed in it: the prompt's, responses'."""


@dataclass(frozen=True)
class Row:
    """A row of a trainer's file, or why there is none."""

    id: str
    answers: Sequence[Answer]
    """The responses that it holds."""
    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why the format cannot express this row; the row is left out then."""
    tags: Sequence[str] = ()
    """Names under which the row is counted in the facts."""


@dataclass(frozen=True)
class Made:
    """What the texts beside the rows have to name; there are rows to train on."""

    longest: int
    """Tokens a row may have; 0 where no limit is known."""
    has_test: bool
    counts: Mapping[str, int]
    """Rows of the train split by tag."""


class Exporter(Protocol):
    """A format: what one kind has to have, from this package or as ``package.module:name``.

    It is made anew for each export. ``Format`` and ``Pairwise`` give all but the point of it.
    """

    unit: str
    """What a row is: ``pairs``, ``examples`` or ``lists``."""
    key: str
    """What ``Row.id`` is, the first column of left_out.parquet: ``pair_id`` ..."""
    columns: pa.Schema
    suffix: str
    """``.parquet`` or ``.jsonl``."""
    max_length: int
    """Tokens the trainer keeps when nobody tells it; 0 where it has no such number."""
    rule: str
    """One sentence: what the trainer does with rows that are too long."""
    templated: bool
    """Whether rows that the target's chat template refuses are left out."""
    shuffled: bool
    """Whether rows are put in an order drawn by lot."""
    lists: bool
    """Whether all scored responses of a prompt are needed, beside those of its pairs."""

    def meet(self, target: Target | None) -> None:
        """Told once, before any row, whose tokens count."""

    def rows(self, asked: Asked) -> Iterator[Row]:
        """The rows of a prompt."""

    def fate(self, row: Row, longest: int) -> str:
        """``kept``, ``cut`` or ``dropped``: what the trainer does; every answer has tokens."""

    def alike(self, row: Row, longest: int) -> bool:
        """Whether what the trainer keeps of a cut row's two responses is the same."""

    def files(self, made: Made) -> dict[str, str]:
        """File name -> text of the side files, README.txt among them.

        Not asked where the train split has no row: a README.txt alone says so then.
        """


class Format:
    """The usual answers of an exporter."""

    unit: str = "pairs"
    key: str = "pair_id"
    columns: pa.Schema
    suffix: str = ".parquet"
    max_length: int = 0
    rule: str = (
        "A row is cut behind its longest length; one whose prompt alone fills it teaches nothing "
        "and counts as dropped."
    )
    templated: bool = True
    shuffled: bool = False
    lists: bool = False

    def meet(self, target: Target | None) -> None:
        self.target = target

    def fate(self, row: Row, longest: int) -> str:
        found = tokens(row)
        if min(one.shared for one in found) >= longest:
            return DROPPED
        return CUT if max(one.whole for one in found) > longest else KEPT

    def alike(self, row: Row, longest: int) -> bool:
        if self.unit != "pairs":
            return False
        chosen, rejected = tokens(row)
        return chosen.ids[:longest] == rejected.ids[:longest]


class Pairwise(Format, ABC):
    """A format with one row a kept pair."""

    def rows(self, asked: Asked) -> Iterator[Row]:
        for pair in asked.pairs:
            answers = (pair.chosen, pair.rejected)
            reason = self.refusal(asked, pair)
            values = {} if reason else self.values(asked, pair)
            yield Row(pair.pair_id, answers, values, reason)

    def refusal(self, asked: Asked, pair: Pair) -> str:
        """Why the format cannot hold this pair; empty where it can."""
        return ""

    @abstractmethod
    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        """The row's columns."""


def tokens(row: Row) -> list[Tokens]:
    """The tokens of a row's responses; all are measured."""
    found = [answer.tokens for answer in row.answers]
    assert all(found), f"{row.id} has not been measured"
    return [one for one in found if one]


def said(text: str) -> Message:
    """The assistant's turn."""
    return Message(role="assistant", content=text)

"""What the target tokenizer makes of an export's texts, worked out in parts on any engine."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components.exporters.rows import Answer, Asked, Tokens
from bpo_data.components.exporters.target import Target, load_target
from bpo_data.engines import Make, Place, at
from bpo_data.tables import ID, MSG, columns, maybe

BATCH = 64
"""Prompts whose texts are tokenised together."""
ANSWERS = pa.list_(pa.struct([("response_id", pa.string()), ("text", pa.string())]))
TEXTS = columns(prompt_id=ID, prompt=MSG, answers=ANSWERS)
"""One row a prompt: what there is to measure."""
NUMBERS = ("prompt", "shared", "whole", "closed", "ends")
SIGNS = ("eos", "prefix", "intact", "readable")
MEASURED = columns(
    response_id=ID,
    typed=pa.bool_(),
    refused=pa.string(),
    **{name: maybe(pa.int32()) for name in NUMBERS},
    **{name: maybe(pa.bool_()) for name in SIGNS},
    ids=maybe(pa.list_(pa.int32())),
)
"""One row a response: its ``Tokens``, null where the template refuses; ``typed`` where it or its
prompt has a control token typed in it."""

Chunks = Callable[[], Iterator[list[Asked]]]
"""The prompts of an export, some at a time; each time from the beginning."""


def measured(
    draft: Draft, target: Target | None, special: str, chunks: Chunks, prompts: int
) -> Iterator[list[Asked]]:
    """The prompts with tokens set and with control tokens broken as ``special`` says.

    A part is a chunk. Without a target the prompts come as they are.
    """
    if target is None:
        yield from chunks()
        return
    maker = partial(measured_rows, target, special)
    set_up = at(maker) if draft.engine.here else Measuring(target.location, special)
    with draft.bar(prompts, "prompts") as bar:
        found = draft.made_of(map(texts_of, chunks()), "measured", set_up, MEASURED, bar.update)
    for chunk, rows in zip(chunks(), found, strict=True):
        set_tokens(chunk, rows, target, special)
        yield chunk


@dataclass(frozen=True)
class Measuring:
    """How a worker is set up to measure."""

    location: tuple[str, str | None]
    """Where the tokenizer is: folder or hub name, and revision."""
    special: str

    @property
    def reads(self) -> tuple[str, ...]:
        return self.location[:1]

    def __call__(self, place: Place) -> Make:
        name, revision = self.location
        target = load_target((place.here(name), revision))
        assert isinstance(target, Target), f"{name} could be used before: {target}"
        return partial(measured_rows, target, self.special)


def texts_of(chunk: Iterable[Asked]) -> pa.Table:
    """The rows of a part."""
    rows = [
        {
            "prompt_id": asked.prompt_id,
            "prompt": asked.prompt,
            "answers": [
                {"response_id": one.response_id, "text": one.text} for one in asked.answers.values()
            ],
        }
        for asked in chunk
    ]
    return pa.Table.from_pylist(rows, TEXTS)


def measured_rows(target: Target, special: str, part: pa.Table) -> pa.Table:
    """``TEXTS`` -> ``MEASURED``."""
    made = [MEASURED.empty_table()]
    for start in range(0, part.num_rows, BATCH):
        batch = [asked_again(row) for row in part.slice(start, BATCH).to_pylist()]
        for asked in batch:
            target.clean(asked, special)
        target.measure(batch)
        made.append(rows_of(batch))
    return pa.concat_tables(made)


def asked_again(row: dict[str, Any]) -> Asked:
    """A prompt and its responses, without what measuring has no use for."""
    answers = {
        one["response_id"]: Answer(one["response_id"], one["text"], "") for one in row["answers"]
    }
    return Asked(row["prompt_id"], "", row["prompt"], [], answers)


def rows_of(batch: Iterable[Asked]) -> pa.Table:
    """What was measured of each response."""
    owners = [(asked, answer) for asked in batch for answer in asked.answers.values()]
    answers = [answer for _, answer in owners]
    found: dict[str, list[Any]] = {
        "response_id": [one.response_id for one in answers],
        "typed": [bool(own.special & {own.prompt_id, one.response_id}) for own, one in owners],
        "refused": [one.refused for one in answers],
    }
    for name in (*NUMBERS, *SIGNS, "ids"):
        found[name] = [one.tokens and getattr(one.tokens, name) for one in answers]
    return pa.table(found, MEASURED)


def set_tokens(chunk: Iterable[Asked], rows: pa.Table, target: Target, special: str) -> None:
    """Put what was measured on the responses of a chunk."""
    answers = [answer for asked in chunk for answer in asked.answers.values()]
    names = [answer.response_id for answer in answers]
    if rows["response_id"].to_pylist() != names:
        raise AssertionError(f"what was measured is not of {', '.join(names[:3])} ...")
    refused = rows["refused"].to_pylist()
    for answer, why, tokens in zip(answers, refused, tokens_of(rows), strict=True):
        answer.refused = why
        answer.tokens = tokens
    typed = dict(zip(names, rows["typed"].to_pylist(), strict=True))
    for asked in chunk:
        if any(typed[name] for name in asked.answers):
            target.clean(asked, special)


def tokens_of(rows: pa.Table) -> Iterator[Tokens | None]:
    """The ``Tokens`` of each row of ``MEASURED``; None where there are none."""
    there = rows["whole"].is_valid().to_pylist()
    ids = rows["ids"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(ids), 0).to_numpy()
    flat, ends = ids.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)]).tolist()
    filled = dict.fromkeys(NUMBERS, 0) | dict.fromkeys(SIGNS, False)
    columns = [
        pc.fill_null(rows[name], value).to_numpy().tolist() for name, value in filled.items()
    ]
    for row, (known, *values) in enumerate(zip(there, *columns, strict=True)):
        own = flat[ends[row] : ends[row + 1]]
        yield Tokens._make([*values, array("i", own.tobytes())]) if known else None

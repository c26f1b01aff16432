"""Every candidate pair on a row: where it lies, what was measured, what it says, who is near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data.artifacts import Artifact
from bpo_data.report.plain import data, short
from bpo_data.tables import lookup, lot

PLACED = ("x", "y", "cluster", "distance", "usefulness", "informativeness")
BLOCK = 50_000
"""Pairs whose words are joined at once: an Arrow string column ends at 2 GB."""

WORDS_BYTES = 5_000_000
"""Of all words that the page's map carries; texts are cut to one length that stays within."""
LONGEST, SHORTEST = 1_200, 40
"""Characters of a text on the map, at most and at least."""


def pair_table(inputs: Mapping[str, Artifact]) -> pa.Table:
    """One row a candidate pair, by ``pair_id``, with the texts of prompt, chosen and rejected."""
    allocation = inputs["allocation"].table(["pair_id", "prompt_id", "kept", "depth"])
    allocation = allocation.sort_by("pair_id")
    pairs = inputs["pairs"].table(["pair_id", "chosen_id", "rejected_id", "margin"])
    pairs = lookup(pairs, "pair_id", allocation["pair_id"])
    clusters = lookup(inputs["clusters"].table(), "pair_id", allocation["pair_id"])
    table = allocation
    for name in PLACED:
        table = table.append_column(name, clusters[name])
    for name in ("margin", "chosen_id", "rejected_id"):
        table = table.append_column(name, pairs[name])
    prompts = prompt_texts(inputs["prompts"], table["prompt_id"].unique())
    responses = inputs["responses"].table(["response_id", "text", "author"])
    blocks = [
        with_words(table.slice(start, BLOCK), prompts, responses)
        for start in range(0, table.num_rows, BLOCK)
    ]
    return pa.concat_tables(blocks)


def prompt_texts(prompts: Artifact, ids: pa.Array) -> pa.Table:
    """Each prompt's words and topic: the user's turn alone, or all turns with their roles."""
    rows = lookup(prompts.table(["prompt_id", "prompt", "topic"]), "prompt_id", ids)
    texts = [conversation(turns) for turns in rows["prompt"].to_pylist()]
    return pa.table({"prompt_id": rows["prompt_id"], "text": texts, "topic": rows["topic"]})


def conversation(turns: Sequence[Mapping[str, str]]) -> str:
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def with_words(rows: pa.Table, prompts: pa.Table, responses: pa.Table) -> pa.Table:
    owner = lookup(prompts, "prompt_id", rows["prompt_id"])
    rows = rows.append_column("text", owner["text"]).append_column("topic", owner["topic"])
    for side in ("chosen", "rejected"):
        answer = lookup(responses, "response_id", rows[f"{side}_id"])
        rows = rows.append_column(side, answer["text"])
        rows = rows.append_column(f"author_{side}", answer["author"])
    return rows


def sample(table: pa.Table, points: int) -> pa.Table:
    """``points`` rows by lot, or all; which ones depends on their ids alone."""
    names = table["pair_id"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: lot(0, "map", names[row]))
    return table.take(pa.array(order[:points], pa.int64()))


def payload(drawn: pa.Table) -> dict[str, Any]:
    """The drawn pairs as columns for the page's script; a text that repeats is stored once."""
    texts = [short(text, LONGEST) for text in all_texts(drawn)]
    limit = longest_within(texts, WORDS_BYTES)
    place: dict[str, int] = {}
    numbers = [place.setdefault(short(text, limit), len(place)) for text in texts]
    count = drawn.num_rows
    columns: dict[str, Any] = {"id": drawn["pair_id"].to_pylist()}
    for name in ("x", "y", "usefulness", "informativeness", "margin"):
        columns[name] = [float(f"{value:.4g}") for value in drawn[name].to_pylist()]
    for name in ("cluster", "depth"):
        columns[name] = drawn[name].to_pylist()
    columns["kept"] = [int(kept) for kept in drawn["kept"].to_pylist()]
    for side, name in enumerate(("prompt", "chosen", "rejected")):
        columns[name] = numbers[side * count : (side + 1) * count]
    return {"columns": columns, "texts": list(place), "limit": limit}


def all_texts(rows: pa.Table) -> list[str]:
    return [text for name in ("text", "chosen", "rejected") for text in rows[name].to_pylist()]


def longest_within(texts: Sequence[str], most: int) -> int:
    """A length, in characters, at which the distinct texts stay within ``most`` bytes on the page.

    As great as may be, but never above ``LONGEST``, nor below ``SHORTEST`` whatever that comes to.
    """
    distinct = list(dict.fromkeys(texts))
    limit = LONGEST
    # Sizes grow ever more slowly with the limit, so each step down ends at or above the answer.
    while limit > SHORTEST and (size := bytes_at(distinct, limit)) > most:
        limit = max(SHORTEST, min(limit - 1, limit * most // size))
    return limit


def bytes_at(texts: Sequence[str], limit: int) -> int:
    return sum(len(data(short(text, limit)).encode()) + 1 for text in texts)


def for_atlas(table: pa.Table, neighbours: pa.Array | None) -> pa.Table:
    """``map.parquet``: what embedding-atlas and notebooks read, one row a candidate pair."""
    names = ("pair_id", "prompt_id", "x", "y", "cluster", "usefulness", "informativeness")
    more = ("margin", "kept", "depth", "topic", "text", "chosen", "rejected")
    found = table.select([*names, *more, "author_chosen", "author_rejected"])
    return found if neighbours is None else found.append_column("neighbours", neighbours)


def lengths_of(table: pa.Table) -> np.ndarray:
    """Characters of chosen and rejected, (n, 2) int64."""
    import pyarrow.compute as pc

    sides = [pc.utf8_length(table[name]).to_numpy() for name in ("chosen", "rejected")]
    return np.stack(sides, axis=1).astype(np.int64)

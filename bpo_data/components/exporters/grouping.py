"""Rows of an export's tables as prompts with their pairs and responses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.components.exporters.rows import Answer, Asked, Pair
from bpo_data.tables import lookup


def asked_of(
    kept: pa.Table,
    prompts: pa.Table,
    responses: pa.Table,
    scores: pa.Table | None,
) -> list[Asked]:
    """The prompts of the kept pairs, in the order of their ids.

    ``kept`` has pair_id, prompt_id, chosen_id, rejected_id and split, sorted by pair_id. With
    ``scores`` a prompt has all its responses that have points, else those of its pairs.
    """
    points: dict[str, float] = {}
    if scores is None:
        wanted = pc.unique(
            pa.concat_arrays([kept[name].combine_chunks() for name in ("chosen_id", "rejected_id")])
        )
    else:
        scored = scores.filter(pc.is_valid(scores["score"]))
        points = dict(
            zip(scored["response_id"].to_pylist(), scored["score"].to_pylist(), strict=True)
        )
        wanted = scored["response_id"].combine_chunks()
    ids = kept["prompt_id"].to_pylist()
    starts = [n for n in range(len(ids)) if n == 0 or ids[n] != ids[n - 1]]
    ends = [*starts[1:], len(ids)]
    needed = responses.select(["response_id", "prompt_id", "text", "author"])
    needed = needed.filter(pc.is_in(needed["response_id"], wanted)).sort_by("response_id")
    places = places_of(needed["prompt_id"].to_pylist())
    own = [ids[start] for start in starts]
    turns = lookup(prompts.select(["prompt_id", "prompt"]), "prompt_id", own)["prompt"]
    return [
        one(kept.slice(start, end - start), prompt, needed.slice(*places[ids[start]]), points)
        for start, end, prompt in zip(starts, ends, turns.to_pylist(), strict=True)
    ]


def one(kept: pa.Table, prompt: list[Any], responses: pa.Table, points: dict[str, float]) -> Asked:
    """A prompt from its pairs and its responses."""
    answers = {
        row["response_id"]: Answer(
            row["response_id"], row["text"], row["author"], points.get(row["response_id"])
        )
        for row in responses.to_pylist()
    }
    rows = kept.to_pylist()
    pairs = [
        Pair(row["pair_id"], answers[row["chosen_id"]], answers[row["rejected_id"]]) for row in rows
    ]
    return Asked(rows[0]["prompt_id"], rows[0]["split"], prompt, pairs, answers)


def places_of(ids: list[str]) -> dict[str, tuple[int, int]]:
    """Where each of the sorted ids begins, and how often it stands."""
    count = Counter(ids)
    first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
    return {name: (first[name], count[name]) for name in count}

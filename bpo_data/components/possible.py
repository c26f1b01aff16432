"""All pairs that a prompt's responses make, before any is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, combinations, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.components.scales import scaled
from bpo_data.tables import same_text

if TYPE_CHECKING:
    from bpo_data.stages.pair import PairConfig


BLOCK = 8192
"""Responses in memory as Python objects."""


def by_prompt(
    responses: pa.Table, names: Iterable[str], judged: Mapping[str, float | None]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each prompt of ``names``, which are sorted, and its responses that have points, by number.

    Texts are in memory as Python objects for a few prompts at a time.
    """
    table = responses.select(["prompt_id", "response_id", "number", "text"])
    order = pc.sort_indices(table, [("prompt_id", "ascending"), ("number", "ascending")])
    blocks = (order.slice(start, BLOCK) for start in range(0, len(order), BLOCK))
    rows = chain.from_iterable(table.take(block).to_pylist() for block in blocks)
    groups = groupby(rows, itemgetter("prompt_id"))
    owner, own = next(groups, ("", iter(())))
    for name in names:
        found: list[dict[str, Any]] = []
        if name == owner:
            points = ((row, judged.get(row["response_id"])) for row in own)
            found = [{**row, "score": score} for row, score in points if score is not None]
            owner, own = next(groups, ("", iter(())))
        yield name, found


def collapse(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Responses that read the same become one, the lowest number's, with their mean score.

    ``same`` has the ids of all that read so.
    """
    same: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(responses, key=lambda row: row["number"]):
        same.setdefault(same_text(row["text"]), []).append(row)
    return [
        {
            **rows[0],
            "score": math.fsum(row["score"] for row in rows) / len(rows),
            "same": [row["response_id"] for row in rows],
        }
        for rows in same.values()
    ]


def pairs_of(
    prompt_id: str, responses: list[dict[str, Any]], config: PairConfig
) -> list[dict[str, Any]]:
    """Every ordered pair of a prompt's distinct responses whose margin passes the floor."""
    points = scaled([row["score"] for row in responses], config.scale)
    found = []
    for (one, a), (other, b) in combinations(zip(responses, points, strict=True), 2):
        chosen, rejected = (one, other) if a > b else (other, one)
        if abs(a - b) > config.min_margin:
            numbers = f"{chosen['number']:02d}>{rejected['number']:02d}"
            found.append(
                {
                    "pair_id": f"{prompt_id}/{numbers}",
                    "prompt_id": prompt_id,
                    "chosen_id": chosen["response_id"],
                    "rejected_id": rejected["response_id"],
                    "score_chosen": chosen["score"],
                    "score_rejected": rejected["score"],
                    "margin": abs(a - b),
                    "chosen_length": len(chosen["text"]),
                    "rejected_length": len(rejected["text"]),
                }
            )
    return found


def pool_of(responses: list[dict[str, Any]], config: PairConfig) -> dict[str, float]:
    """Points of a prompt's distinct responses on the scale, by id."""
    points = scaled([row["score"] for row in responses], config.scale)
    return {row["response_id"]: value for row, value in zip(responses, points, strict=True)}


def same_ids(responses: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Of each distinct response, the ids of all that read the same."""
    return {row["response_id"]: row["same"] for row in responses}

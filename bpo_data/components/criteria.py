"""Points by criterion: how tables hold them, and what weights over them make of a response."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from bpo_data.errors import UserError, nearest
from bpo_data.tables import lookup

CRITERIA = pa.list_(pa.struct([("name", pa.string()), ("points", pa.float32())]))
SIDES = ("chosen", "rejected")
DIGITS = 9
"""Decimals of a weighted sum: beyond them, sums that are equal by hand differ by rounding alone."""


def as_rows(points: Mapping[str, float] | Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Points by name as a cell of type ``CRITERIA``, sorted by name."""
    return [{"name": name, "points": value} for name, value in sorted(dict(points).items())]


def as_points(cell: Iterable[Mapping[str, Any]] | None) -> dict[str, float]:
    """A cell of type ``CRITERIA`` as points by name; none of a null."""
    return {one["name"]: one["points"] for one in cell or ()}


def figures(cells: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """For each criterion how many responses have points for it, and their mean."""
    points: dict[str, list[float]] = {}
    for cell in cells:
        for name, value in cell.items():
            points.setdefault(name, []).append(value)
    return {
        name: {"count": len(own), "mean": round(sum(own) / len(own), 4)}
        for name, own in sorted(points.items())
    }


def needed(weights: Mapping[str, float]) -> list[str]:
    """The columns of the scores table that ``points_of`` reads."""
    return ["response_id", "score", *(["criteria"] if weights else [])]


def points_of(scores: pa.Table, weights: Mapping[str, float]) -> dict[str, float | None]:
    """response_id -> the judge's score, or with ``weights`` the weighted sum of its criteria.

    A response that lacks one of them has None. Raises UserError for a name that none has.
    """
    ids = scores["response_id"].to_pylist()
    if not weights:
        return dict(zip(ids, scores["score"].to_pylist(), strict=True))
    used = {name: weight for name, weight in weights.items() if weight}
    cells = [as_points(cell) for cell in scores["criteria"].to_pylist()]
    check_names(used, {name for cell in cells for name in cell})
    return {
        one: round(math.fsum(weight * cell[name] for name, weight in used.items()), DIGITS)
        if used.keys() <= cell.keys()
        else None
        for one, cell in zip(ids, cells, strict=True)
    }


def check_names(weights: Iterable[str], known: set[str]) -> None:
    """Raise UserError for a criterion that no response has points for."""
    for name in weights:
        if not known:
            raise UserError(
                "pair.criteria: the judge gave no points by criterion. Name them in "
                "score.options.criteria of score.kind=rubric, use score.kind=panel, or read the "
                "source's own with load.columns.criteria."
            )
        if name not in known:
            raise UserError(
                f"pair.criteria.{name}: no response has points for it.{nearest(name, known)} "
                f"There are {', '.join(sorted(known))}."
            )


def with_points(scores: pa.Table, weights: Mapping[str, float]) -> pa.Table:
    """``response_id`` and the ``score`` that pairs are made by."""
    if not weights:
        return scores.select(["response_id", "score"])
    points = points_of(scores, weights)
    column = pa.array(points.values(), pa.float32())
    return pa.table({"response_id": pa.array(points, pa.string()), "score": column})


def side_columns(scores: pa.Table, pairs: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
    """``criteria_chosen``, ``rationale_chosen`` ... of a dataset's rows, where there are any.

    ``pairs`` are those rows' own, ``names`` which columns of the scores are wanted. Criteria become
    a struct with a field for each name that one of these responses has.
    """
    found: dict[str, pa.Array] = {}
    for column in names:
        values: dict[str, list[Any]] = {
            side: lookup(scores, "response_id", pairs[f"{side}_id"])[column].to_pylist()
            for side in SIDES
        }
        kind: pa.DataType = pa.string()
        if column == "criteria":
            values = {
                side: [as_points(cell) or None for cell in own] for side, own in values.items()
            }
            known = sorted({name for own in values.values() for cell in own for name in cell or ()})
            kind = pa.struct([(name, pa.float32()) for name in known])
        if any(one is not None for own in values.values() for one in own):
            found |= {f"{column}_{side}": pa.array(own, kind) for side, own in values.items()}
    return found

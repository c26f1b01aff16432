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
    if weights:
        known = {one["name"] for cell in scores["criteria"].to_pylist() for one in cell or ()}
        check_names([name for name, weight in weights.items() if weight], known)
    return points_of_some(scores, weights)


def points_of_some(scores: pa.Table, weights: Mapping[str, float]) -> dict[str, float | None]:
    """The same for some rows of the scores, among which it may be that none has a name."""
    ids = scores["response_id"].to_pylist()
    if not weights:
        return dict(zip(ids, scores["score"].to_pylist(), strict=True))
    used = {name: weight for name, weight in weights.items() if weight}
    cells = [as_points(cell) for cell in scores["criteria"].to_pylist()]
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
    """``response_id`` and the ``score`` that pairs are made by, of all rows or some."""
    if not weights:
        return scores.select(["response_id", "score"])
    points = points_of_some(scores, weights)
    column = pa.array(points.values(), pa.float32())
    return pa.table({"response_id": pa.array(points, pa.string()), "score": column})


def side_types(
    pieces: Iterable[tuple[pa.Table, pa.Table]], names: Sequence[str]
) -> dict[str, pa.DataType]:
    """The types of those columns of the scores, by name, that some response of a dataset has.

    A piece is some scores and some of the dataset's pairs, which are all about these. Criteria
    become a struct with a field for each name that one of the responses has.
    """
    known: dict[str, set[str]] = {}
    for scores, pairs in pieces:
        for column in names:
            if scores[column].null_count == scores.num_rows:
                continue
            cells = [cell for side in SIDES for cell in side_cells(scores, pairs, side, column)]
            if any(cell is not None for cell in cells):
                names_there = cells if column == "criteria" else ()
                known.setdefault(column, set()).update(*filter(None, names_there))
    return {
        column: pa.struct([(name, pa.float32()) for name in sorted(known[column])])
        if column == "criteria"
        else pa.string()
        for column in names
        if column in known
    }


def side_columns(
    scores: pa.Table, pairs: pa.Table, types: Mapping[str, pa.DataType]
) -> dict[str, pa.Array]:
    """``criteria_chosen``, ``rationale_chosen`` ... of the rows of some pairs, for columns of the
    scores and the types that ``side_types`` found."""
    return {
        f"{column}_{side}": pa.array(side_cells(scores, pairs, side, column), kind)
        for column, kind in types.items()
        for side in SIDES
    }


def side_cells(scores: pa.Table, pairs: pa.Table, side: str, column: str) -> list[Any]:
    """A column's value for one side of each pair; null criteria are those without points."""
    cells: list[Any] = lookup(scores, "response_id", pairs[f"{side}_id"])[column].to_pylist()
    return [as_points(cell) or None for cell in cells] if column == "criteria" else cells

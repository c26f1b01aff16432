"""The figures on the judge that the page has room for: the worst of each measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.components.hygiene_measures import MEASURES

WORST = 5
"""Figures of a measure that are shown; our choice."""


def figures(scores: Artifact) -> dict[str, Any]:
    """Of ``hygiene.parquet``: ``flagged`` and ``shown``, at most ``WORST`` of a measure each.

    ``total`` counts all figures, ``more_flagged`` those beyond the bounds that are not shown;
    ``nothing`` names measures without a case.
    """
    rows = scores.read("hygiene.parquet").to_pylist()
    known = worst([row for row in rows if row["value"] is not None])
    flagged = [row for row in known if row["flag"]]
    beyond = sum(row["flag"] for row in rows)
    without = [row["measure"] for row in rows if row["value"] is None]
    return {
        "flagged": flagged,
        "more_flagged": beyond - len(flagged),
        "shown": known,
        "total": sum(row["value"] is not None for row in rows),
        "most": WORST,
        "nothing": [name.replace("_", " ") for name in dict.fromkeys(without)],
        "file": f"{scores.folder}/hygiene.parquet",
    }


def worst(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``WORST`` rows of each measure in the rows' order: flagged ones, then the worst values.

    Which values are worse is what the measure's bound says; without one the first rows stay.
    """
    left: Counter[str] = Counter()
    taken = []
    for place in sorted(range(len(rows)), key=lambda place: badness(rows[place])):
        left[rows[place]["measure"]] += 1
        if left[rows[place]["measure"]] <= WORST:
            taken.append(place)
    return [rows[place] for place in sorted(taken)]


def badness(row: Mapping[str, Any]) -> tuple[bool, float]:
    """What sorts a measure's rows, the worst first."""
    measure, value = MEASURES.get(row["measure"]), row["value"]
    ends = [] if measure is None else [measure.below, measure.above]
    match ends:
        case [float(below), float(above)]:
            far = abs(value - (below + above) / 2)
        case [None, float()]:
            far = value
        case [float(), None]:
            far = -value
        case _:
            far = 0.0
    return not row["flag"], -far

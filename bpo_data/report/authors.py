"""Who wrote the chosen and the rejected responses of the kept pairs, for card and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

SHOWN = 12
SIDES = {"chosen": "the source's chosen", "rejected": "the source's rejected"}
"""Names under which the two sides of the source's own pairs come, and what they are called."""


def authors(kept: Iterable[pa.Table]) -> dict[str, Any]:
    """Counts by author and of each chosen against each rejected author, the busiest first.

    ``kept``, in any pieces, has ``author_chosen`` and ``author_rejected``. Beyond the ``SHOWN``
    largest, authors are one row, whose name is None; ``rows`` holds chosen, rejected and, by
    column, the pairs won against.
    """
    won: Counter[tuple[str, str]] = Counter()
    for piece in kept:
        sides = (
            [SIDES.get(name, name) for name in piece[f"author_{side}"].to_pylist()]
            for side in ("chosen", "rejected")
        )
        won.update(zip(*sides, strict=True))
    both: Counter[str] = Counter()
    for pair, pairs in won.items():
        for name in pair:
            both[name] += pairs
    largest = sorted(both, key=lambda name: (-both[name], name))
    named = largest[:SHOWN]
    names: list[str | None] = [*named, None] if len(largest) > SHOWN else [*named]
    known = set(named)

    def label(name: str) -> str | None:
        return name if name in known else None

    cells: Counter[tuple[str | None, str | None]] = Counter()
    for (winner, loser), pairs in won.items():
        cells[label(winner), label(loser)] += pairs
    rows = [
        {
            "author": name,
            "chosen": sum(cells[name, other] for other in names),
            "rejected": sum(cells[other, name] for other in names),
            "against": [cells[name, other] for other in names],
        }
        for name in names
    ]
    return {"names": names, "rows": rows, "count": len(largest)}

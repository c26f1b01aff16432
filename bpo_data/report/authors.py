"""Who wrote the chosen and the rejected responses of the kept pairs, for card and report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

SHOWN = 12
SIDES = {"chosen": "the source's chosen", "rejected": "the source's rejected"}
"""Names under which the two sides of the source's own pairs come, and what they are called."""


def authors(kept: pa.Table) -> dict[str, Any]:
    """Counts by author and of each chosen against each rejected author, the busiest first.

    ``kept`` has ``author_chosen`` and ``author_rejected``. Beyond the ``SHOWN`` largest,
    authors are one row, whose name is None; ``rows`` holds chosen, rejected and, by column, the
    pairs won against.
    """
    sides = [
        [SIDES.get(name, name) for name in kept[f"author_{side}"].to_pylist()]
        for side in ("chosen", "rejected")
    ]
    both = Counter(sides[0]) + Counter(sides[1])
    largest = sorted(both, key=lambda name: (-both[name], name))
    named = largest[:SHOWN]
    names: list[str | None] = [*named, None] if len(largest) > SHOWN else [*named]
    known = set(named)

    def label(name: str) -> str | None:
        return name if name in known else None

    cells = Counter((label(won), label(lost)) for won, lost in zip(*sides, strict=True))
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

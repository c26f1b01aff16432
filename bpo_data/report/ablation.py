"""The table of an ablation from the rows it wrote: each arm against one of them, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bpo_data.errors import UserError
from bpo_data.statistics import Estimate, holm, mean_of, student_p

NAME = "outcomes.parquet"
NEEDED = ("world", "arm", "seed", "points", "win_rate", "pairs", "prompts", "chosen_is_longer")


@dataclass(frozen=True)
class Compared:
    """An arm in one world, beside the arm that all are compared with."""

    arm: str
    rows: Sequence[Mapping[str, Any]]
    """Its outcomes, one for each seed."""
    points: Estimate
    minus: Estimate | None
    """Difference in points from the other arm, paired by seed; None for that arm itself."""
    p: float | None
    """Student's, corrected for all comparisons of the world (Holm 1979); None without spread."""

    @property
    def verdict(self) -> str:
        if self.minus is None or self.minus.count < 2:
            return ""
        if self.minus.low > 0:
            return "better"
        return "worse" if self.minus.high < 0 else "tie"

    def mean(self, name: str) -> float:
        return float(sum(row[name] for row in self.rows) / len(self.rows))


@dataclass(frozen=True)
class World:
    name: str
    against: str
    seeds: int
    arms: list[Compared]


def outcomes(folder: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of an ablation, and the arm that its others are compared with.

    Raises UserError where the folder holds none of its making.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    path = Path(folder) / NAME
    told = f"report.ablation={folder}"
    if not path.is_file():
        raise UserError(
            f"{told} holds no {NAME}. Name a folder that recipe=ablation wrote, such as "
            f"runs/ablation/ablation."
        )
    try:
        table = pq.read_table(path)
    except ArrowInvalid as error:
        raise UserError(f"{told}: {NAME} is no Parquet file ({error}).") from error
    missing = [name for name in NEEDED if name not in table.column_names]
    against = (table.schema.metadata or {}).get(b"against", b"").decode()
    if not missing and against not in table["arm"].to_pylist():
        missing.append("arm to compare with")
    if missing:
        raise UserError(f"{told}: {NAME} has no {', '.join(missing)}; run recipe=ablation again.")
    return table.to_pylist(), against


def worlds(rows: Sequence[Mapping[str, Any]], against: str) -> Iterator[World]:
    """Each world by name, its arms with the best mean points first."""
    ordered = sorted(rows, key=lambda row: row["world"])
    for name, group in groupby(ordered, lambda row: row["world"]):
        found = list(group)
        seeds = len({row["seed"] for row in found})
        yield World(name, against, seeds, compared(found, against))


def compared(rows: Sequence[Mapping[str, Any]], against: str) -> list[Compared]:
    """Each arm of one world's outcomes, best mean points first."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    base = {row["seed"]: row["points"] for row in arms[against]}
    minus = {
        arm: [row["points"] - base[row["seed"]] for row in found if row["seed"] in base]
        for arm, found in arms.items()
        if arm != against
    }
    p = holm({arm: student_p(values) for arm, values in minus.items()})
    rows_of = []
    for arm, found in arms.items():
        points = mean_of([row["points"] for row in found])
        assert points is not None, "an arm has an outcome"
        rows_of.append(Compared(arm, found, points, mean_of(minus.get(arm, [])), p.get(arm)))
    return sorted(rows_of, key=lambda row: (-row.points.mean, row.arm))

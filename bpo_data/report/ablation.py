"""The table of an ablation from the rows it wrote: each arm against one of them, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bpo_data.errors import UserError
from bpo_data.statistics import Estimate, holm, mean_of, student_p

NAME = "outcomes.parquet"
NEEDED = ("world", "arm", "seed", "points", "win_rate", "pairs", "prompts", "chosen_is_longer")


@dataclass(frozen=True)
class Arm:
    """An arm of one world."""

    arm: str
    points: Estimate
    minus: Estimate | None
    """Difference in points from the arm compared with, paired by seed; None for that arm."""
    p: float | None
    """Student's, corrected for all comparisons of the world (Holm 1979)."""
    win_rate: float
    pairs: float
    prompts: float
    chosen_longer: float


@dataclass(frozen=True)
class World:
    name: str
    against: str
    seeds: int
    arms: list[Arm]


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


def worlds(rows: Sequence[dict[str, Any]], against: str) -> Iterator[World]:
    """Each world's arms, the best mean points first."""
    for name, group in groupby(
        sorted(rows, key=lambda row: row["world"]), lambda row: row["world"]
    ):
        found = list(group)
        arms: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            arms.setdefault(row["arm"], []).append(row)
        base = {row["seed"]: row["points"] for row in arms[against]}
        minus = {
            arm: [row["points"] - base[row["seed"]] for row in of_arm if row["seed"] in base]
            for arm, of_arm in arms.items()
            if arm != against
        }
        p = holm({arm: student_p(values) for arm, values in minus.items()})
        compared = [
            arm_of(arm, of_arm, mean_of(minus.get(arm, [])), p.get(arm))
            for arm, of_arm in arms.items()
        ]
        compared.sort(key=lambda one: (-one.points.mean, one.arm))
        yield World(name, against, len({row["seed"] for row in found}), compared)


def arm_of(
    arm: str, rows: Sequence[dict[str, Any]], minus: Estimate | None, p: float | None
) -> Arm:
    points = mean_of([row["points"] for row in rows])
    assert points is not None, "an arm has an outcome"
    means = (
        sum(row[name] for row in rows) / len(rows)
        for name in ("win_rate", "pairs", "prompts", "chosen_is_longer")
    )
    return Arm(arm, points, minus, p, *means)

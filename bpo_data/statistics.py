"""Means with intervals, and the figures cards and reports share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(values: Sequence[float]) -> Estimate | None:
    """The mean of independent values with Student's 95 % interval; None without any.

    One value has no interval: its ends are not finite.
    """
    import numpy as np
    from scipy import stats

    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, float("-inf"), float("inf"), 1)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return Estimate(mean, mean - float(half), mean + float(half), len(values))


def share_by_prompt(rows: Iterable[tuple[str, float]]) -> Estimate | None:
    """Like ``mean_by_prompt`` for values in [0, 1]; the interval ends where a share does."""
    mean = mean_by_prompt(rows)
    return mean and replace(mean, low=max(mean.low, 0.0), high=min(mean.high, 1.0))


def mean_by_prompt(rows: Iterable[tuple[str, float]]) -> Estimate | None:
    """The mean over prompts of each prompt's mean: (prompt_id, value) rows.

    Rows of one prompt are not independent; prompts are what was sampled.
    """
    groups: dict[str, list[float]] = {}
    for prompt, value in rows:
        groups.setdefault(prompt, []).append(value)
    return mean_of([sum(values) / len(values) for values in groups.values()])


def gini(depths: Sequence[int]) -> float:
    """Inequality of depth over prompts, 0 where all are equal (Gini coefficient)."""
    ordered = sorted(depths)
    count, total = len(ordered), sum(ordered)
    if not total:
        return 0.0
    weighted = sum((2 * place - count - 1) * depth for place, depth in enumerate(ordered, 1))
    return weighted / (count * total)

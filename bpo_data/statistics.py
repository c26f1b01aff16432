"""Means with intervals, and the figures cards and reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def student_p(values: Sequence[float]) -> float | None:
    """Two-sided p of Student's test that the mean is 0; None below two values or without spread."""
    import numpy as np
    from scipy import stats

    if len(values) < 2 or not np.ptp(values):
        return None
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p: Mapping[str, float | None]) -> dict[str, float]:
    """p values corrected for their number (Holm 1979), at most 1; those that are None are left out.

    The k-th least of m is multiplied by m - k + 1, and never falls below the one before it.
    """
    known = sorted((value, name) for name, value in p.items() if value is not None)
    corrected, least = {}, 0.0
    for place, (value, name) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - place)))
        corrected[name] = least
    return corrected


def share_by_prompt(rows: Iterable[tuple[str, float]]) -> Estimate | None:
    """Like ``mean_by_prompt`` for values in [0, 1], with an interval that holds for few prompts.

    Student's interval fails where few prompts happen to agree (2 of 2 would be certain); below 30
    prompts, or without any spread, it is Wilson's (1927), which takes the largest spread that
    values in [0, 1] with this mean can have.
    """
    values = by_prompt(rows)
    mean = mean_of(values)
    if mean is None or (len(values) >= 30 and len(set(values)) > 1):
        return mean
    z, n = 1.96, len(values)
    middle = (mean.mean + z * z / (2 * n)) / (1 + z * z / n)
    spread = (mean.mean * (1 - mean.mean) / n + z * z / (4 * n * n)) ** 0.5
    half = z * spread / (1 + z * z / n)
    return replace(mean, low=max(middle - half, 0.0), high=min(middle + half, 1.0))


def mean_by_prompt(rows: Iterable[tuple[str, float]]) -> Estimate | None:
    """The mean over prompts of each prompt's mean: (prompt_id, value) rows.

    Rows of one prompt are not independent; prompts are what was sampled.
    """
    return mean_of(by_prompt(rows))


def by_prompt(rows: Iterable[tuple[str, float]]) -> list[float]:
    """The mean of each prompt's values."""
    groups: dict[str, list[float]] = {}
    for prompt, value in rows:
        groups.setdefault(prompt, []).append(value)
    return [sum(values) / len(values) for values in groups.values()]


def gini(depths: Sequence[int]) -> float:
    """Inequality of depth over prompts, 0 where all are equal (Gini coefficient)."""
    return gini_of_counts(Counter(depths))


def gini_of_counts(counts: Mapping[int, int]) -> float:
    """The same, of depth -> how many prompts have it."""
    prompts = sum(counts.values())
    total = sum(depth * count for depth, count in counts.items())
    if not total:
        return 0.0
    weighted = below = 0
    for depth, count in sorted(counts.items()):
        weighted += depth * count * (2 * below + count - prompts)
        below += count
    return weighted / (prompts * total)

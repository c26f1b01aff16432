"""Which pairs to keep, at an exact budget: the depth each prompt gets.

The rules are method.md's section 4 of the project's design: the paper (arXiv 2411.10914) clusters
the gradients of all pairs and keeps pairs near the centres, so that depth is an outcome. Quotas,
floors, caps and tie rules are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bpo_data.tables import lot

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Pool:
    """The pairs to choose from, n rows sorted by ``pair_id``."""

    pair_id: Sequence[str]
    prompt_id: Sequence[str]
    cluster: np.ndarray
    """(n,) int32"""
    distance: np.ndarray
    """(n,) float32 from the pair's unit gradient to its cluster's centre"""


@dataclass(frozen=True)
class Choice:
    """What is kept, in the order of choosing, and why each pair is."""

    kept: list[int]
    """Row numbers of the pool, first chosen first."""
    reason: list[str]
    """``floor``, ``quota``, ``spill`` ... for each of ``kept``."""


class Allocator(Protocol):
    def __call__(self, pool: Pool, budget: int, floor: bool, cap: int, seed: int) -> Choice:
        """Exactly ``budget`` rows; each prompt at most ``cap``, and at least 1 with ``floor``.

        The caller has checked that this is possible.
        """


class Picker:
    """Rows taken so far; refuses a row taken already or past its prompt's cap."""

    def __init__(self, pool: Pool, cap: int) -> None:
        self.pool = pool
        self.cap = cap
        self.depth: dict[str, int] = {}
        self.taken: set[int] = set()
        self.choice = Choice([], [])

    def take(self, row: int, reason: str) -> bool:
        prompt = self.pool.prompt_id[row]
        if row in self.taken or self.depth.get(prompt, 0) >= self.cap:
            return False
        self.taken.add(row)
        self.depth[prompt] = self.depth.get(prompt, 0) + 1
        self.choice.kept.append(row)
        self.choice.reason.append(reason)
        return True

    def fill(self, order: Sequence[int], count: int, reason: str) -> int:
        """Take up to ``count`` rows in this order; how many were taken."""
        taken = 0
        for row in order:
            if taken == count:
                break
            taken += self.take(row, reason)
        return taken

    def floors(self, order: Sequence[int]) -> None:
        """One row for every prompt: the first of the order."""
        for row in order:
            if not self.depth.get(self.pool.prompt_id[row]):
                self.take(row, "floor")


class Center:
    """Near the cluster centres: cluster quotas in proportion to size, nearest pairs first.

    Floors (each prompt's relatively nearest pair) come first and count towards their cluster's
    quota. What caps leave open goes to the relatively nearest pairs that remain (``spill``).
    """

    def __call__(self, pool: Pool, budget: int, floor: bool, cap: int, seed: int) -> Choice:
        import numpy as np

        size = np.bincount(pool.cluster)
        total = np.bincount(pool.cluster, weights=pool.distance)
        mean = np.divide(total, size, out=np.ones(len(size)), where=total > 0)
        relative = pool.distance / mean[pool.cluster]
        nearest = sorted(range(len(pool.pair_id)), key=lambda row: (relative[row], row))
        picker = Picker(pool, cap)
        if floor:
            picker.floors(nearest)
        floors = np.bincount([pool.cluster[row] for row in picker.choice.kept], minlength=len(size))
        target = largest_remainder(size, budget)
        missing = np.maximum(target - floors, 0)
        room = size - floors
        quota = largest_remainder(missing, budget - len(picker.choice.kept), room)
        for cluster in range(len(size)):
            members = [row for row in nearest if pool.cluster[row] == cluster]
            picker.fill(members, int(quota[cluster]), "quota")
        picker.fill(nearest, budget - len(picker.choice.kept), "spill")
        return picker.choice


class Uniform:
    """The same number of pairs for every prompt, drawn by lot: the paper's simple baseline.

    A prompt with fewer pairs keeps what it has and the others share the rest, so depths differ
    by at most one wherever prompts have pairs enough.
    """

    def __call__(self, pool: Pool, budget: int, floor: bool, cap: int, seed: int) -> Choice:
        picker = Picker(pool, cap)
        left: dict[str, list[int]] = {}
        for row in shuffled(pool, seed):
            left.setdefault(pool.prompt_id[row], []).append(row)
        prompts = sorted(left, key=lambda prompt: lot(seed, "uniform", prompt))
        reason = "floor" if floor else "quota"
        while len(picker.choice.kept) < budget:
            for prompt in prompts:
                if left[prompt] and len(picker.choice.kept) < budget:
                    picker.take(left[prompt].pop(0), reason)
            reason = "quota"
        return picker.choice


class Random:
    """Pairs drawn by lot from the whole pool, after the floor if there is one."""

    def __call__(self, pool: Pool, budget: int, floor: bool, cap: int, seed: int) -> Choice:
        picker = Picker(pool, cap)
        order = shuffled(pool, seed)
        if floor:
            picker.floors(order)
        picker.fill(order, budget - len(picker.choice.kept), "quota")
        return picker.choice


KINDS = {"center": Center, "uniform": Uniform, "random": Random}


def shuffled(pool: Pool, seed: int) -> list[int]:
    """All rows in an order drawn from the seed and the pairs' ids."""
    drawn = [lot(seed, "allocate", pair) for pair in pool.pair_id]
    return sorted(range(len(drawn)), key=drawn.__getitem__)


def largest_remainder(
    weights: np.ndarray, total: int, room: np.ndarray | None = None
) -> np.ndarray:
    """Whole numbers in proportion to ``weights`` that add up to ``total`` (Hamilton's method).

    Ties go to the lower index. With ``room``, shares that would pass their room stop there and
    the rest is shared among the others; the sum falls short only where the whole room is less.
    """
    import numpy as np

    weights = np.asarray(weights, dtype=np.float64)
    shares = np.zeros(len(weights), dtype=np.int64)
    open_to = weights > 0
    exact = np.zeros(len(weights))
    while open_to.any():
        exact = np.where(open_to, weights, 0) * total / weights[open_to].sum()
        full = open_to & (exact >= room) if room is not None else np.zeros_like(open_to)
        if not full.any():
            break
        shares[full] = np.asarray(room)[full]
        total -= int(shares[full].sum())
        open_to &= ~full
    if open_to.any():
        shares[open_to] = np.floor(exact[open_to])
        left = total - int(shares[open_to].sum())
        by_remainder = np.lexsort((np.arange(len(exact)), shares - exact))
        shares[by_remainder[open_to[by_remainder]][:left]] += 1
    return shares

"""Pairs whose judge margin the gradients of other prompts' pairs confirm."""

from __future__ import annotations

import numpy as np

from bpo_data.components.allocators.pool import Pool
from bpo_data.components.allocators.ranked import Ranked

BLOCK = 2048
"""Rows of a side of the blocks in which all pairs meet all pairs."""


class Confirmed(Ranked):
    """The judge's margin of a pair, plus the margin that other prompts' pairs lead one to expect.

    Ours. A judge errs in single verdicts, but pairs of other prompts that teach the same direction
    are verdicts on it as well: see ``expected``. Both are in the judge's points; ``weight`` times
    the expectation is added, so a pair that the others speak against falls back, and pairs in a
    direction that no other prompt knows stand by their own margin. At ``weight`` 0 it is
    ``margin``.
    """

    def __init__(self, power: int = 2, weight: float = 1.0) -> None:
        super().__init__("large")
        if power < 1:
            raise ValueError(f"power={power}: a whole number from 1 on")
        if not 0 <= weight < np.inf:
            raise ValueError(f"weight={weight}: give a number from 0 on")
        self.power, self.weight = power, weight

    def figure(self, pool: Pool, seed: int) -> np.ndarray:
        margin = pool.margin.astype(np.float64)
        if not self.weight:
            return margin
        _, prompt = np.unique(np.asarray(pool.prompt_id), return_inverse=True)
        told = expected(pool.gradients(), margin, prompt, self.power)
        # Rounded, so that equal pairs have equal figures whatever BLAS does at a block's edges.
        return np.round(margin + self.weight * told, 6)


def expected(
    gradients: np.ndarray, margin: np.ndarray, prompt: np.ndarray, power: int
) -> np.ndarray:
    """The margin of each pair as other prompts' pairs predict it, (n,) float64, in points.

    It is the weighted mean of their margins, a pair that teaches the opposite counting with the
    opposite sign: ``sum_q sign(c) |c|^power m_q / sum_q |c|^power`` over the pairs q of other
    prompts, with c the cosine of the two unit gradients (n, d); prompts count alike however many
    pairs they have. That is kernel regression (Nadaraya 1964; Watson 1964) with a kernel that knows
    that to swap chosen and rejected is to change the sign of gradient and margin. The higher the
    ``power``, the nearer the pairs that have a say. 0 where no other prompt has any.
    """
    count = len(margin)
    share = 1.0 / np.bincount(prompt)[prompt]
    say = np.stack([share, share * margin], axis=1).astype(np.float32)
    sums = np.zeros((count, 2))
    """Of weights without sign, and of signed weights times margins."""
    starts = range(0, count, BLOCK)
    for start in starts:
        one = slice(start, start + BLOCK)
        for begin in starts[start // BLOCK :]:
            other = slice(begin, begin + BLOCK)
            signed = gradients[one] @ gradients[other].T
            if np.isin(prompt[one], prompt[other]).any():
                signed[prompt[one, None] == prompt[None, other]] = 0
            size = np.abs(signed)
            for _ in range(power - 1):
                signed *= size
            np.abs(signed, out=size)
            sums[one, 0] += size @ say[other, 0]
            sums[one, 1] += signed @ say[other, 1]
            if begin > start:
                sums[other, 0] += size.T @ say[one, 0]
                sums[other, 1] += signed.T @ say[one, 1]
    weight, told = sums.T
    return np.divide(told, weight, out=np.zeros(count), where=weight > 0)

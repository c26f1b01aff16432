"""The win rate that would be left if both responses had the same length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bpo_data.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np

DRAWS = 300
"""Bootstrap draws of an interval; our choice."""
FEWEST = 30
"""Prompts below which a bootstrap over them is too narrow, and no interval is given; as in
``statistics.share_by_prompt``."""


def length_controlled(rows: Iterable[tuple[str, float, float]], seed: int = 0) -> Estimate | None:
    """Win rate at equal length, of rows (prompt_id, worth, characters longer than the other).

    ``worth`` is 1 for a win, 0.5 for a tie, 0 for a loss; prompts count equally, as in the raw win
    rate. A logistic regression ``P(win) = sigmoid(a + b tanh(d / sd(d)))`` is fitted, ``d`` the
    difference of lengths; the estimate is ``sigmoid(a)``. Its interval is the 2.5 and 97.5 %
    quantiles over ``DRAWS`` draws of prompts with replacement; below ``FEWEST`` prompts its ends
    are not finite. None without rows, and where one side is always the longer: then equal length
    was never near and would be a guess.

    This is the length term of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, section 3), with
    the same squashing of the difference. Two of its terms are left out: the difficulty of each
    prompt, which needs many models on the same prompts, and a term for each model, since here there
    are two and the intercept is their difference. A tie is half a win and half a loss. The slope
    has scikit-learn's standard ridge penalty, the intercept has none.
    """
    import numpy as np

    listed = list(rows)
    if not listed:
        return None
    prompts, place = np.unique([row[0] for row in listed], return_inverse=True)
    worth, longer = np.array([row[1:] for row in listed], dtype=float).T
    spread = longer.std()
    if min(longer) > 0 or max(longer) < 0:
        return None
    squashed = np.tanh(longer / spread) if spread else longer
    weight = 1 / np.bincount(place)[place]
    mean = at_equal_length(worth, squashed, weight)
    if len(prompts) < FEWEST:
        return Estimate(mean, float("-inf"), float("inf"), len(prompts))
    drawn = np.random.default_rng(seed).multinomial(
        len(prompts), np.full(len(prompts), 1 / len(prompts)), DRAWS
    )
    found = [at_equal_length(worth, squashed, weight * times[place]) for times in drawn]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(prompts))


def at_equal_length(worth: np.ndarray, squashed: np.ndarray, weight: np.ndarray) -> float:
    """``sigmoid`` of the fitted intercept; (n,) worths, squashed differences and weights."""
    import numpy as np
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression

    used = weight > 0
    worth, squashed, weight = worth[used], squashed[used], weight[used]
    if worth.max() == 0 or worth.min() == 1 or not squashed.any():
        return float(np.average(worth, weights=weight))
    won = np.repeat([1, 0], len(worth))
    weights = np.concatenate([weight * worth, weight * (1 - worth)])
    used = weights > 0
    fitted = LogisticRegression(tol=1e-7).fit(
        np.tile(squashed, 2)[used, None], won[used], sample_weight=weights[used]
    )
    return float(expit(fitted.intercept_[0]))

"""What margins are measured in: a prompt's scores as points on a scale."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from bpo_data.errors import UserError

SCALES = ("score", "rank", "logit", "win")


def scaled(scores: Sequence[float], scale: str) -> list[float]:
    """Scores of a prompt's responses on the scale; equal scores stay equal, order is kept.

    ``win`` is the share of the prompt's other responses that a response beats, a tie as half (the
    win fraction of SPO, Swamy et al. 2024, arXiv 2401.04056, section 4); a response that is alone
    has 1/2. Raises UserError for ``logit`` of a score outside [0, 1].
    """
    if scale == "rank":
        place = {score: float(rank) for rank, score in enumerate(sorted(set(scores)))}
        return [place[score] for score in scores]
    if scale == "logit":
        if not all(0 <= score <= 1 for score in scores):
            raise UserError(
                f"pair.scale=logit needs scores in [0, 1]; there is one of "
                f"{next(score for score in scores if not 0 <= score <= 1):g}. Use score or rank."
            )
        # A judge's 0 or 1 is the end of what it can write, not certainty.
        inside = [min(max(score, 1e-6), 1 - 1e-6) for score in scores]
        return [math.log(score / (1 - score)) for score in inside]
    if scale == "win":
        order, others = sorted(scores), len(scores) - 1
        return [
            (bisect_left(order, score) + bisect_right(order, score) - 1) / (2 * others)
            if others
            else 0.5
            for score in scores
        ]
    return list(scores)

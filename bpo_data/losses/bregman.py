"""Bregman preference optimisation (Kim et al. 2025, arXiv 2505.19601): one loss a convex h.

With m = beta (c_w - c_l) and R = exp(-m) the loss is ``h'(R) R - h(R) - h'(1/R)``, up to constants
of h alone. Its minimum over m for a pair that is right with probability p is logit p, for every h.
``clip`` bounds R from below, as the method does: the gradient beyond is exactly 0, and without it
some losses have no bound. All is worked out from log R = -m, so that a large margin is no overflow
of R's inverse. The formulas are those of our notes on the paper; the test of the identity above
checks them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpo_data.losses.entry import Loss, Range

if TYPE_CHECKING:
    from torch import Tensor

CLIP = 0.01
"""A typical bound of R: no gradient once the margin is above log 100 = 4.6."""


def log_odds(chosen: Tensor, rejected: Tensor, beta: float, clip: float) -> Tensor:
    """log R = -m, bounded from below at log ``clip``; 0 is no bound."""
    log_ratio = beta * (rejected - chosen)
    return log_ratio.clamp(min=math.log(clip)) if clip else log_ratio


def lr(chosen: Tensor, rejected: Tensor, beta: float, *, clip: float = 0.0) -> Tensor:
    """h = (R log R - (1 + R) log(1 + R))/2: log(1 + R), which is DPO. No clip unless asked for."""
    from torch.nn.functional import softplus

    return softplus(log_odds(chosen, rejected, beta, clip))


def kliep(chosen: Tensor, rejected: Tensor, beta: float, *, clip: float = CLIP) -> Tensor:
    """h = R log R - R: R + log R. No bound from below without the clip."""
    log_ratio = log_odds(chosen, rejected, beta, clip)
    return log_ratio.exp() + log_ratio


def lsif(chosen: Tensor, rejected: Tensor, beta: float, *, clip: float = CLIP) -> Tensor:
    """h = (R - 1)^2: R^2 - 2/R. The paper prints -2R, which breaks its own identity."""
    log_ratio = log_odds(chosen, rejected, beta, clip)
    return (2 * log_ratio).exp() - 2 * (-log_ratio).exp()


def ba(
    chosen: Tensor, rejected: Tensor, beta: float, *, lam: float = 1.0, clip: float = CLIP
) -> Tensor:
    """Basu's power divergence: R^(lam+1) - ((lam+1)/lam) R^(-lam); lam = 0 is ``kliep``.

    Near 0 it holds a constant -(lam+1)/lam that has no effect on what is learnt; of lam between
    -0.001 and 0.001 only 0 is taken, so that the constant leaves float32 its digits.
    """
    if lam == 0:
        return kliep(chosen, rejected, beta, clip=clip)
    log_ratio = log_odds(chosen, rejected, beta, clip)
    return ((lam + 1) * log_ratio).exp() - (lam + 1) / lam * (-lam * log_ratio).exp()


def sba(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    lam: float = -0.5,
    s: float = 4.0,
    mix: float = 1.0,
    clip: float = CLIP,
) -> Tensor:
    """Scaled: R^(lam+1)/(s (lam+1)) - (R^(-lam) - 1)/(s lam).

    Its slope at m = 0 is -2/s for any lam. With lam = -1/2 and s = 4 it is exp(-m/2) - 1/2. ``mix``
    is the share a of a*sba + (1-a)*lr, both with the clip.
    """
    from torch.nn.functional import softplus

    log_ratio = log_odds(chosen, rejected, beta, clip)
    rest = (-lam * log_ratio).expm1() / lam if lam else -log_ratio
    loss = ((lam + 1) * log_ratio).exp() / (s * (lam + 1)) - rest / s
    return loss if mix == 1 else mix * loss + (1 - mix) * softplus(log_ratio)


class Power(Range):
    """Powers lam: above -1, and none so near 0 that a constant swamps the rest."""

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) and (value == 0 or abs(float(str(value))) >= 1e-3)

    def __str__(self) -> str:
        return "0, or a number above -1 and at least 0.001 away from 0, at most 4"


PAPER = "BPO: Kim et al., arXiv 2505.19601, table of h"
CLIPS = Range(0.0, 1.0)
POWERS = Power(-1.0, 4.0, open=True)
LOSSES = {
    "lr": Loss(lr, PAPER, {"clip": CLIPS}, two_betas=True),
    "kliep": Loss(kliep, PAPER, {"clip": CLIPS}, two_betas=True),
    "lsif": Loss(lsif, f"{PAPER} (misprint mended)", {"clip": CLIPS}, two_betas=True),
    "ba": Loss(ba, PAPER, {"lam": POWERS, "clip": CLIPS}, two_betas=True),
    "sba": Loss(
        sba,
        PAPER,
        {
            "lam": POWERS,
            "s": Range(0.0, 100.0, open=True),
            "mix": Range(0.0, 1.0),
            "clip": CLIPS,
        },
        two_betas=True,
    ),
}

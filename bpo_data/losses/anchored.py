"""Losses that keep the chosen response from falling: balanced margin, Cal-DPO, DPOP, VPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bpo_data.losses.entry import Loss, Range

if TYPE_CHECKING:
    from torch import Tensor


def logistic(z: Tensor) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(-z)


LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "hinge": lambda z: (1 - z).relu(),
    "square": lambda z: (z - 1) ** 2,
    "exponential": lambda z: (-z).exp(),
    "truncated": lambda z: (1 - z).relu() ** 2,
    "savage": lambda z: (-z).sigmoid() ** 2,
}
"""What makes a loss of the balanced margin z. Each falls in z, ``square`` up to z = 1 only."""


def balanced(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    alpha: float = 0.3,
    link: str = "logistic",
) -> Tensor:
    """Balanced reward margin (Sun et al. 2025, arXiv 2506.03557): link(z), with
    z = beta min(c_w, -alpha c_l).

    The gap adaptor alpha is in (0, 1], 0.3 in the released code. Gradient flows to the side that is
    behind, to both by half at a tie, so the chosen response is never pushed down.
    """
    import torch

    return LINKS[link](beta * torch.minimum(chosen, -alpha * rejected))


def cal_dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Cal-DPO (Xiao et al. 2024, arXiv 2412.14516):
    softplus(-(c_w - c_l)) + ((c_w - 1/(2 beta))^2 + (c_l + 1/(2 beta))^2)/2."""
    from torch.nn.functional import softplus

    goal = 0.5 / beta
    return softplus(rejected - chosen) + ((chosen - goal) ** 2 + (rejected + goal) ** 2) / 2


def dpop(chosen: Tensor, rejected: Tensor, beta: float, *, penalty: float = 50.0) -> Tensor:
    """DPO-Positive (Pal et al. 2024, arXiv 2402.13228):
    softplus(-beta (c_w - c_l - penalty relu(-c_w))).

    That 50 is the paper's usual penalty is from memory.
    """
    from torch.nn.functional import softplus

    return softplus(-beta * (chosen - rejected - penalty * (-chosen).relu()))


def vpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    alpha: float = 0.1,
    calibration: str = "chosen",
) -> Tensor:
    """VPO (Cen et al. 2024, arXiv 2405.19320): softplus(-m) - alpha beta c of the calibration.

    The abstract says that the likelihood of the rewards is regularised by their value, with a sign:
    cautious offline (``alpha`` above 0), optimistic online (below 0). Of rewards beta c whose mean
    over a calibrating distribution is moved to 0 that value is -beta times the mean of c, as our
    test shows; so the term is worked out by us and not read in the paper. ``calibration`` stands
    for that distribution: the ``chosen`` response, or ``both`` of the pair. 0.1 is our choice.
    """
    from torch.nn.functional import softplus

    calibrating = chosen if calibration == "chosen" else (chosen + rejected) / 2
    return softplus(-beta * (chosen - rejected)) - alpha * beta * calibrating


LOSSES = {
    "balanced": Loss(
        balanced,
        "BPO: Sun et al., arXiv 2506.03557 (our notes and the released alpha)",
        {"alpha": Range(1e-6, 1.0), "link": Range(words=tuple(LINKS))},
    ),
    "cal_dpo": Loss(cal_dpo, "Cal-DPO: Xiao et al., arXiv 2412.14516 (our notes)"),
    "dpop": Loss(
        dpop,
        "DPO-Positive: Pal et al., arXiv 2402.13228 (our notes)",
        {"penalty": Range(0.0, 1e6)},
        two_betas=True,
    ),
    "vpo": Loss(
        vpo,
        "VPO: Cen et al., arXiv 2405.19320; the abstract, its term worked out by us",
        {"alpha": Range(-100.0, 100.0), "calibration": Range(words=("chosen", "both"))},
        two_betas=True,
    ),
}

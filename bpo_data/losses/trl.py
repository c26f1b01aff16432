"""Losses that TRL's DPOTrainer has too, under its names, as functions of each pair's numbers.

TRL takes its own where nothing but its own is asked for. These stand in where pairs have weights,
or chosen and rejected a beta each; a test compares every one with TRL's code. ``aot``,
``aot_unpaired`` (they sort a batch) and ``sft`` (one mean over a batch's tokens) are TRL's alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpo_data.losses.entry import TOKENS, Loss, Range, per_token

if TYPE_CHECKING:
    from torch import Tensor


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al. 2023, equation 7): softplus(-m) with m = beta (c_w - c_l)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen - rejected))


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """SLiC (Zhao et al. 2023): relu(1 - m)."""
    return (1 - beta * (chosen - rejected)).relu()


def nca_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """NCA for pairs (Chen et al. 2024, arXiv 2402.05369): each side against the reference."""
    from torch.nn.functional import logsigmoid

    both = logsigmoid(-beta * chosen) + logsigmoid(-beta * rejected)
    return -logsigmoid(beta * chosen) - both / 2


def bco_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """BCO (Jung et al. 2024, arXiv 2404.04656) as TRL has it for pairs: no running shift."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """SPPO (Wu et al. 2024, arXiv 2405.00675) with win probabilities 1 and 0."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7)."""
    return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO-down (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8)."""
    return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
) -> Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036, equation 17), per token as TRL has it.

    Of the paper is (c_w - c_l - 1/(2 beta))^2; TRL divides each c by its response's tokens, and
    says that the authors did so for their results.
    """
    gap = per_token(chosen, chosen_tokens) - per_token(rejected, rejected_tokens)
    return (gap - 0.5 / beta) ** 2


def sigmoid_norm(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
) -> Tensor:
    """DPO on log-ratios per token, as TRL has it."""
    gap = per_token(chosen, chosen_tokens) - per_token(rejected, rejected_tokens)
    return sigmoid(gap, gap * 0, beta)


def robust(
    chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0
) -> Tensor:
    """rDPO (Chowdhury et al. 2024, arXiv 2403.00409) as TRL has it: unbiased under flips.

    ``((1 - e) softplus(-m) - e softplus(m)) / (1 - 2 e)`` for a share e of flipped pairs.
    """
    from torch.nn.functional import softplus

    margin = beta * (chosen - rejected)
    kept = (1 - label_smoothing) * softplus(-margin) - label_smoothing * softplus(margin)
    return kept / (1 - 2 * label_smoothing)


def exo_pair(
    chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 1e-3
) -> Tensor:
    """EXO (Ji et al. 2024, arXiv 2402.00856, equation 16) as TRL has it: KL of the policy's
    preference (sigmoid(m), sigmoid(-m)) from the label's (1 - e, e)."""
    from torch.nn.functional import logsigmoid

    margin = beta * (chosen - rejected)
    won, lost = logsigmoid(margin), logsigmoid(-margin)
    missed = won.exp() * (won - math.log1p(-label_smoothing))
    return missed + lost.exp() * (lost - math.log(label_smoothing))


def discopop(
    chosen: Tensor, rejected: Tensor, beta: float, *, discopop_tau: float = 0.05
) -> Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv 2406.08414, equation 5) as TRL has it.

    ``(1 - w) softplus(-m) + w exp(-m)`` with w = sigmoid(m / tau). With a tau below 0.102 it has a
    hollow left of 0 and pushes a pair at the reference that way: the slope at m = 0 is
    (1 - log 2)/(4 tau) - 3/4.
    """
    from torch.nn.functional import softplus

    margin = beta * (chosen - rejected)
    share = (margin / discopop_tau).sigmoid()
    # Where w is 0 the exponential may be infinite, and 0 times that is no number.
    tail = (-margin).clamp(max=60).exp()
    return (1 - share) * softplus(-margin) + share * tail


LOSSES = {
    "sigmoid": Loss(
        sigmoid, "DPO: Rafailov et al., arXiv 2305.18290, equation 7", two_betas=True, in_trl=True
    ),
    "hinge": Loss(hinge, "SLiC: Zhao et al., arXiv 2305.10425", two_betas=True, in_trl=True),
    "nca_pair": Loss(nca_pair, "NCA: Chen et al., arXiv 2402.05369", two_betas=True, in_trl=True),
    "bco_pair": Loss(bco_pair, "BCO: Jung et al., arXiv 2404.04656", two_betas=True, in_trl=True),
    "sppo_hard": Loss(sppo_hard, "SPPO: Wu et al., arXiv 2405.00675, equation 4.7", in_trl=True),
    "apo_zero": Loss(
        apo_zero, "APO: D'Oosterlinck et al., arXiv 2408.06266, eq. 7", two_betas=True, in_trl=True
    ),
    "apo_down": Loss(
        apo_down, "APO: D'Oosterlinck et al., arXiv 2408.06266, eq. 8", two_betas=True, in_trl=True
    ),
    "ipo": Loss(
        ipo, "IPO: Azar et al., arXiv 2310.12036, equation 17", columns=TOKENS, in_trl=True
    ),
    "sigmoid_norm": Loss(
        sigmoid_norm, "TRL's length-averaged DPO", two_betas=True, columns=TOKENS, in_trl=True
    ),
    "robust": Loss(
        robust,
        "rDPO: Chowdhury et al., arXiv 2403.00409",
        {"label_smoothing": Range(0.0, 0.49)},
        two_betas=True,
        in_trl=True,
    ),
    "exo_pair": Loss(
        exo_pair,
        "EXO: Ji et al., arXiv 2402.00856, equation 16",
        {"label_smoothing": Range(0.0, 0.5, open=True)},
        two_betas=True,
        in_trl=True,
    ),
    "discopop": Loss(
        discopop,
        "DiscoPOP: Lu et al., arXiv 2406.08414, equation 5",
        {"discopop_tau": Range(0.0, 100.0, open=True)},
        two_betas=True,
        in_trl=True,
    ),
}
"""TRL's names -> our functions of the same."""

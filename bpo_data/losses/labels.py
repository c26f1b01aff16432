"""Losses with a soft label: conservative DPO, f-PO, soft SPPO; and INPO with two references."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bpo_data.losses.entry import Loss, Range

if TYPE_CHECKING:
    from torch import Tensor


def log_label(label_smoothing: float) -> tuple[float, float]:
    """log(1 - e, e): what a share e of pairs the wrong way round makes of a preference."""
    return math.log1p(-label_smoothing), math.log(label_smoothing)


def smoothed(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    label_smoothing: float = 0.0,
    p_chosen: Tensor | None = None,
) -> Tensor:
    """Conservative DPO (Mitchell 2023, a note: equation 3): p softplus(-m) + (1 - p) softplus(m).

    p is the judges' probability that the chosen response is the better one, (n,) in [0, 1], or
    1 - ``label_smoothing`` for all pairs where there is no such column. A p of each pair is ours.
    """
    from torch.nn.functional import softplus

    margin = beta * (chosen - rejected)
    p = 1 - label_smoothing if p_chosen is None else p_chosen
    return p * softplus(-margin) + (1 - p) * softplus(margin)


def jeffreys(
    chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 1e-3
) -> Tensor:
    """f-PO with Jeffreys' divergence (Han et al. 2024, arXiv 2410.21662): KL both ways.

    Of q = (sigmoid(m), sigmoid(-m)) and the label p = (1 - e, e): sum of (q - p) (log q - log p).
    The divergence is that of the released code, whose label is (1, exp(-10)), not scaled to 1.
    """
    from torch.nn.functional import logsigmoid

    margin = beta * (chosen - rejected)
    q, p = [logsigmoid(margin), logsigmoid(-margin)], log_label(label_smoothing)
    one, other = ((a.exp() - math.exp(b)) * (a - b) for a, b in zip(q, p, strict=True))
    return one + other


def js(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 1e-3) -> Tensor:
    """f-PO with the Jensen-Shannon divergence (Han et al. 2024, arXiv 2410.21662).

    Of q and p as in ``jeffreys``: (KL(q || m) + KL(p || m))/2 with m = (q + p)/2; at most log 2.
    The released code writes the same in another way.
    """
    from torch.nn.functional import logsigmoid

    margin = beta * (chosen - rejected)
    q, p = [logsigmoid(margin), logsigmoid(-margin)], log_label(label_smoothing)
    found = 0 * margin
    for a, b in zip(q, p, strict=True):
        middle = ((a.exp() + math.exp(b)) / 2).log()
        found = found + (a.exp() * (a - middle) + math.exp(b) * (b - middle)) / 2
    return found


def sppo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    win_rate_chosen: Tensor,
    win_rate_rejected: Tensor,
) -> Tensor:
    """SPPO (Wu et al. 2024, arXiv 2405.00675, equation 4.7) with win rates P in [0, 1]:
    (c_w - (P_w - 1/2)/beta)^2 + (c_l - (P_l - 1/2)/beta)^2.

    P is how often a response beats others of its prompt. With P = 1 and 0 it is ``sppo_hard``.
    """
    goals = [(rate - 0.5) / beta for rate in (win_rate_chosen, win_rate_rejected)]
    return (chosen - goals[0]) ** 2 + (rejected - goals[1]) ** 2


def inpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    ratio: float = 1 / 3,
    shift_chosen: Tensor,
    shift_rejected: Tensor,
) -> Tensor:
    """INPO (Zhang et al. 2024, arXiv 2407.00617): (h - 1/(2 beta))^2, with two references.

    h is the gap of chosen and rejected in log pi - (1 - ratio) log ref - ratio log second, where
    ref (in c) is the policy that sampled and second the fixed one. ``shift`` is log second - log
    ref of each response in nats, (n,). The paper's eta is our beta and its tau / eta our ratio: so
    from memory, and so a released trainer of its successor has it. The default of 1/3 is ours.
    """
    shift = ratio * (shift_chosen - shift_rejected)
    return (chosen - rejected - shift - 0.5 / beta) ** 2


INSIDE = Range(0.0, 0.5, open=True)
LOSSES = {
    "smoothed": Loss(
        smoothed,
        "conservative DPO: Mitchell's note, equation 3; a p of each pair is ours",
        {"label_smoothing": Range(0.0, 0.5)},
        may_have=("p_chosen",),
        two_betas=True,
    ),
    "jeffreys": Loss(
        jeffreys,
        "f-PO: Han et al., arXiv 2410.21662; formula of the released code",
        {"label_smoothing": INSIDE},
        two_betas=True,
    ),
    "js": Loss(
        js,
        "f-PO: Han et al., arXiv 2410.21662; formula of the released code",
        {"label_smoothing": INSIDE},
        two_betas=True,
    ),
    "sppo": Loss(
        sppo,
        "SPPO: Wu et al., arXiv 2405.00675, equation 4.7",
        columns=("win_rate_chosen", "win_rate_rejected"),
    ),
    "inpo": Loss(
        inpo,
        "INPO: Zhang et al., arXiv 2407.00617, from memory",
        {"ratio": Range(0.0, 1.0)},
        columns=("shift_chosen", "shift_rejected"),
    ),
}

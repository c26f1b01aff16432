"""Losses of a prompt's whole list of scored responses.

``ratios`` is c of n prompts with up to k responses, (n, k) in nats; ``scores`` are the judge's
points, (n, k); ``present`` says which places of a list hold a response, bool (n, k); ``means`` are
log pi of each response per token, (n, k) in nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpo_data.losses.entry import LIST, Loss

if TYPE_CHECKING:
    from torch import Tensor


def tpo(ratios: Tensor, beta: float, *, scores: Tensor, present: Tensor) -> Tensor:
    """Preference list ranking, as in TPO (Liao et al. 2024, arXiv 2410.12854): (n,).

    Of all pairs of a list whose scores differ, the mean of w softplus(-beta (c_i - c_j)), i the
    better one. w is what exchanging the two would cost the list's NDCG: the gap of their gains
    2^s - 1, s their scores spread over [0, 1], times the gap of 1/log2(1 + rank), rank by score;
    over the largest w of the list. The weight is that of lambda losses (LiPO, arXiv 2402.01878,
    from memory), and a reading of ours: of TPO we saw the abstract and the released code, whose
    pairs have equal weights; its rewards of single steps are left out.
    """
    import torch
    from torch.nn.functional import softplus

    low = scores.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(~present, -torch.inf).amax(dim=1, keepdim=True)
    spread = ((scores - low) / (high - low).clamp(min=1e-12)).masked_fill(~present, 0.0)
    above = (spread[:, None, :] > spread[:, :, None]) & present[:, None, :]
    discount = 1 / (2 + above.sum(dim=2)).to(scores.dtype).log2()
    gain = 2**spread - 1
    better = (spread[:, :, None] > spread[:, None, :]) & present[:, :, None] & present[:, None, :]
    weight = (gain[:, :, None] - gain[:, None, :]) * (discount[:, :, None] - discount[:, None, :])
    weight = (weight * better).abs()
    weight = weight / weight.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    loss = softplus(-beta * (ratios[:, :, None] - ratios[:, None, :]))
    return (weight * loss).sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1)


def plackett_luce(ratios: Tensor, beta: float, *, scores: Tensor, present: Tensor) -> Tensor:
    """DPO for a whole ranking (Rafailov et al. 2023, arXiv 2305.18290, appendix A.3): (n,).

    Minus the log-probability that the responses are drawn in the order of their scores, each from
    those that are left, by softmax of beta c. Of equal scores the one that stands first comes
    first. A list of two is DPO.
    """
    import torch

    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    there = present.gather(1, order)
    reward = (beta * ratios.gather(1, order)).masked_fill(~there, -1e30)
    left = reward.flip(1).logcumsumexp(dim=1).flip(1)
    return (left - reward).masked_fill(~there, 0.0).sum(dim=1)


def pro(ratios: Tensor, beta: float, *, scores: Tensor, present: Tensor, means: Tensor) -> Tensor:
    """Preference ranking optimisation (Song et al. 2023, arXiv 2306.17492): (n,), no reference.

    Of each response but the worst, minus the log of its share among itself and all that follow it
    by score, in exp(T a), a its log pi per token. T is ``beta`` times the gap of scores to the one
    that follows, its own T the largest of these. So has the released code, with rewards for scores
    and a beta of 1. Its term of likelihood is ``+sft`` in a sum; there it is -log pi of the best,
    summed over tokens, times a weight and (k - 1)^2.
    """
    import torch

    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    points, average, there = (one.gather(1, order) for one in (scores, means, present))
    places = torch.arange(points.shape[1], device=points.device)
    after = (places[None, :] > places[:, None]) & there[:, None, :]
    gaps = (beta * (points[:, :, None] - points[:, None, :])).masked_fill(~after, 0.0)
    own = gaps.amax(dim=2) * average
    theirs = (gaps * average[:, None, :]).masked_fill(~after, -1e30)
    left = torch.cat([own[:, :, None], theirs], dim=2).logsumexp(dim=2)
    return (left - own).masked_fill(~after.any(dim=2), 0.0).sum(dim=1)


COLUMNS = ("scores", "present")
LOSSES = {
    "tpo": Loss(
        tpo,
        "TPO: Liao et al., arXiv 2410.12854; weights of LiPO, arXiv 2402.01878: our reading",
        measures=LIST,
        columns=COLUMNS,
    ),
    "plackett_luce": Loss(
        plackett_luce,
        "DPO for rankings: Rafailov et al., arXiv 2305.18290, appendix A.3",
        measures=LIST,
        columns=COLUMNS,
    ),
    "pro": Loss(
        pro,
        "PRO: Song et al., arXiv 2306.17492; formula of the released code",
        measures=LIST,
        columns=(*COLUMNS, "means"),
    ),
}

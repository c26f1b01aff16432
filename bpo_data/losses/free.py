"""Losses without a reference: SimPO, ORPO, CPO, ASFT.

Their numbers are log pi(response | prompt) in nats, summed over tokens; ``chosen_tokens`` and
``rejected_tokens`` make means per token of them, written a below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpo_data.losses.entry import LOG_PROB, TOKENS, Loss, Range, per_token

if TYPE_CHECKING:
    from torch import Tensor

NEAR_ONE = -1e-6
"""Highest mean log-probability that odds are taken of: a probability of 1 has none."""


def log_odds(average: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(average), (n,)."""
    import torch

    below = average.clamp(max=NEAR_ONE)
    return average - torch.log(-torch.expm1(below))


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    gamma: float = 1.0,
) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, equation 6):
    softplus(-(beta (a_w - a_l) - gamma)).

    The paper's beta is 2 to 10; ``gamma`` is the margin aimed at.
    """
    from torch.nn.functional import softplus

    gap = per_token(chosen, chosen_tokens) - per_token(rejected, rejected_tokens)
    return softplus(gamma - beta * gap)


def orpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
) -> Tensor:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, equation 6): -a_w + beta softplus(-log odds ratio).

    The paper's lambda is our beta; odds are of exp(a).
    """
    from torch.nn.functional import softplus

    won, lost = per_token(chosen, chosen_tokens), per_token(rejected, rejected_tokens)
    return -won + beta * softplus(log_odds(lost) - log_odds(won))


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    nll: float = 1.0,
    average: bool = False,
) -> Tensor:
    """CPO (Xu et al. 2024, arXiv 2401.08417): softplus(-beta (log pi_w - log pi_l)) - nll a_w.

    ``average`` takes means per token in the contrast too. The paper's has sums, from memory.
    """
    from torch.nn.functional import softplus

    won = per_token(chosen, chosen_tokens)
    gap = won - per_token(rejected, rejected_tokens) if average else chosen - rejected
    return softplus(-beta * gap) - nll * won


def asft(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
) -> Tensor:
    """ASFT (Wang et al. 2024, arXiv 2409.10571): -a_w + beta (softplus(-o_w) + softplus(o_l)).

    o is the log odds of exp(a), so that the second term is -a_w - log(1 - exp(a_l)). The abstract
    names what is optimised (each response's absolute likelihood, no reference); the formula is from
    memory.
    """
    from torch.nn.functional import softplus

    won, lost = per_token(chosen, chosen_tokens), per_token(rejected, rejected_tokens)
    return -won + beta * (softplus(-log_odds(won)) + softplus(log_odds(lost)))


LOSSES = {
    "simpo": Loss(
        simpo,
        "SimPO: Meng et al., arXiv 2405.14734, equation 6",
        {"gamma": Range(0.0, 100.0)},
        measures=LOG_PROB,
        columns=TOKENS,
    ),
    "orpo": Loss(
        orpo,
        "ORPO: Hong et al., arXiv 2403.07691, equation 6",
        measures=LOG_PROB,
        columns=TOKENS,
    ),
    "cpo": Loss(
        cpo,
        "CPO: Xu et al., arXiv 2401.08417, from memory",
        {"nll": Range(0.0, 100.0), "average": Range(words=(True, False))},
        measures=LOG_PROB,
        columns=TOKENS,
    ),
    "asft": Loss(
        asft,
        "ASFT: Wang et al., arXiv 2409.10571, from memory",
        measures=LOG_PROB,
        columns=TOKENS,
    ),
}

"""Pair losses as pure functions of two log-ratios, and their partial derivatives.

``chosen`` is c_w = log pi(chosen | prompt) - log ref(chosen | prompt) in nats, summed over the
response's tokens, ``rejected`` is c_l likewise; ``beta`` is the strength of the reference. The
names and formulas are those of TRL 1.16 (``DPOTrainer``), which a test compares them with. TRL's
other losses are no functions of these two numbers alone: ``ipo`` and ``sigmoid_norm`` divide by the
responses' lengths, ``aot`` sorts a batch, ``sft`` counts tokens, ``robust``, ``exo_pair`` and
``discopop`` have a parameter more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bpo_data.errors import nearest

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


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
"""Each takes (n,) c_w, (n,) c_l and beta, and returns (n,) losses, one for each pair."""


def coefficients(
    name: str, chosen: np.ndarray, rejected: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) c_w and (n,) c_l in nats -> (n,) dL/dc_w and (n,) dL/dc_l, float64, per pair.

    These are what ``gradients.pairs.pair_gradients`` weighs response gradients with. Raises
    ValueError for a name that is not in ``LOSSES``.
    """
    import torch

    if name not in LOSSES:
        known = ", ".join(LOSSES)
        raise ValueError(f"no loss {name!r}; choose from {known}.{nearest(name, LOSSES)}")
    sides = [
        torch.tensor(np.asarray(side, np.float64), requires_grad=True)
        for side in (chosen, rejected)
    ]
    with torch.enable_grad():
        loss = LOSSES[name](sides[0], sides[1], beta).sum()
    of_chosen, of_rejected = torch.autograd.grad(loss, sides)
    return of_chosen.numpy(), of_rejected.numpy()

"""Preference losses as pure functions of tensors, and their partial derivatives.

Most take c_w = log pi(chosen | prompt) - log ref(chosen | prompt) in nats, summed over the
response's tokens, c_l likewise, and ``beta``, the strength of the reference; (n,) each and (n,)
out. What one needs beside them, ``entry.Loss`` says. One file a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bpo_data.losses import anchored, bregman, free, labels, lists, trl
from bpo_data.losses.entry import LIST, LOG_PROB, RATIO, TOKENS, Loss, unknown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LIST", "LOG_PROB", "LOSSES", "RATIO", "TOKENS", "Loss", "coefficients", "of_pairs"]

LOSSES: dict[str, Loss] = {
    **trl.LOSSES,
    **bregman.LOSSES,
    **anchored.LOSSES,
    **labels.LOSSES,
    **free.LOSSES,
    **lists.LOSSES,
}


def of_pairs(
    loss: Loss,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    beta_rejected: float = 0.0,
    columns: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """(n,) losses of pairs; ``columns`` and ``options`` may hold more than the loss knows.

    ``beta_rejected`` is the beta of the rejected side, where the loss can have two; 0 is ``beta``.
    Raises ValueError where it cannot, and KeyError for a column that is missing.
    """
    if beta_rejected and beta_rejected != beta:
        if not loss.two_betas:
            raise ValueError("this loss is no function of beta c_w and beta c_l")
        rejected = rejected * (beta_rejected / beta)
    found = columns or {}
    used = {name: found[name] for name in loss.columns}
    used |= {name: found[name] for name in loss.may_have if name in found}
    return loss.function(chosen, rejected, beta, **used, **loss.taken(options or {}))


def coefficients(
    name: str,
    chosen: np.ndarray,
    rejected: np.ndarray,
    beta: float,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    options: Mapping[str, Any] | None = None,
    beta_rejected: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) c_w and (n,) c_l in nats -> (n,) dL/dc_w and (n,) dL/dc_l, float64, per pair.

    Of a loss without a reference both are log-probabilities. These are what
    ``gradients.pairs.pair_gradients`` weighs response gradients with. Raises ValueError for a name
    that is not in ``LOSSES``, and for a loss of lists.
    """
    import torch

    if name not in LOSSES:
        raise ValueError(unknown(name, LOSSES))
    if LOSSES[name].measures == LIST:
        raise ValueError(f"{name} is a loss of lists: it has no derivative in a pair")
    one, other = (
        torch.tensor(np.asarray(side, np.float64), requires_grad=True)
        for side in (chosen, rejected)
    )
    beside = {
        key: torch.tensor(np.asarray(values, np.float64)) for key, values in (columns or {}).items()
    }
    with torch.enable_grad():
        loss = of_pairs(
            LOSSES[name],
            one,
            other,
            beta,
            beta_rejected=beta_rejected,
            columns=beside,
            options=options,
        ).sum()
    of_chosen, of_rejected = torch.autograd.grad(loss, [one, other])
    return of_chosen.numpy(), of_rejected.numpy()

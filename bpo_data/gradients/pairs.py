"""Gradients of pair losses from gradients of single responses: arithmetic on a table."""

from __future__ import annotations

import numpy as np


def pair_gradients(
    chosen: np.ndarray,
    rejected: np.ndarray,
    coefficient_chosen: np.ndarray,
    coefficient_rejected: np.ndarray,
) -> np.ndarray:
    """(n, d) response gradients of both sides and (n,) coefficients -> (n, d) float32.

    A pair loss is a function L(c_w, c_l) of the two log-probabilities over the reference, so
    ``grad L = dL/dc_w grad log pi(chosen) + dL/dc_l grad log pi(rejected)``, and projection is
    linear. The coefficients are those of ``bpo_data.losses.coefficients``. Sums are float64, so
    two nearly equal gradients subtract without losing more than their own rounding.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"chosen has shape {chosen.shape}, rejected {rejected.shape}")
    combined = coefficient_chosen.astype(np.float64)[:, None] * chosen
    combined += coefficient_rejected.astype(np.float64)[:, None] * rejected
    return combined.astype(np.float32)

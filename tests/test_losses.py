"""Pair losses against TRL's own code and against derivatives worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.losses import LOSSES, coefficients
from tests.trl_reference import trl_losses

CHOSEN = np.array([0.0, 3.0, -2.5, 40.0, 1.25])
REJECTED = np.array([0.0, -1.0, 4.0, 3.0, 1.0])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_trls(name: str, trl_trainer):
    ours = LOSSES[name](torch.tensor(CHOSEN), torch.tensor(REJECTED), 0.1).tolist()
    assert ours == pytest.approx(trl_losses(trl_trainer, name, CHOSEN, REJECTED, 0.1), rel=1e-5)


def test_dpo_coefficients_are_minus_and_plus_beta_times_sigmoid_of_minus_margin():
    of_chosen, of_rejected = coefficients("sigmoid", CHOSEN, REJECTED, 0.1)
    expected = [0.1 / (1 + math.exp(0.1 * (w - r))) for w, r in zip(CHOSEN, REJECTED, strict=True)]
    assert of_chosen.tolist() == pytest.approx([-e for e in expected])
    assert of_rejected.tolist() == pytest.approx(expected)
    assert of_chosen[0] == pytest.approx(-0.05), "beta/2 at the reference policy"


def test_hinge_pushes_until_the_margin_is_one():
    # margins 0.1 * (c_w - c_l): 0, 0.4, -0.65, 3.7, 0.025
    of_chosen, of_rejected = coefficients("hinge", CHOSEN, REJECTED, 0.1)
    assert of_chosen.tolist() == pytest.approx([-0.1, -0.1, -0.1, 0, -0.1])
    assert of_rejected.tolist() == pytest.approx([0.1, 0.1, 0.1, 0, 0.1])


def test_derivatives_by_hand_at_the_reference_policy():
    zero = np.zeros(1)
    by_hand = {
        "nca_pair": (-0.1 / 2 + 0.1 / 4, 0.1 / 4),
        "bco_pair": (-0.1 / 2, 0.1 / 2),
        "sppo_hard": (-1 / 0.1, 1 / 0.1),
        "apo_zero": (-0.1 / 4, 0.1 / 4),
        "apo_down": (0.1 / 4 - 0.1 / 4, 0.1 / 4),
    }
    for name, expected in by_hand.items():
        found = [float(side[0]) for side in coefficients(name, zero, zero, 0.1)]
        assert found == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("name", LOSSES)
@given(chosen=st.floats(-30, 30), rejected=st.floats(-30, 30), beta=st.floats(0.02, 1))
def test_coefficients_are_the_slope_of_the_loss(name, chosen, rejected, beta):
    if name == "hinge" and abs(1 - beta * (chosen - rejected)) < 1e-3:
        return  # no slope at the kink
    step = 1e-5

    def loss(w: float, r: float) -> float:
        sides = (torch.tensor([x], dtype=torch.float64) for x in (w, r))
        return LOSSES[name](*sides, beta).item()

    slopes = [
        (loss(chosen + step, rejected) - loss(chosen - step, rejected)) / (2 * step),
        (loss(chosen, rejected + step) - loss(chosen, rejected - step)) / (2 * step),
    ]
    found = coefficients(name, np.array([chosen]), np.array([rejected]), beta)
    assert [float(side[0]) for side in found] == pytest.approx(slopes, rel=1e-4, abs=1e-6)


def test_huge_margins_stay_finite():
    for name in LOSSES:
        sides = coefficients(name, np.array([1e4, -1e4]), np.array([-1e4, 1e4]), 0.1)
        assert np.isfinite(sides).all(), name
        assert all(side.dtype == np.float64 for side in sides)


def test_an_unknown_loss_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="no loss 'sigmoyd'.*Did you mean sigmoid"):
        coefficients("sigmoyd", CHOSEN, REJECTED, 0.1)

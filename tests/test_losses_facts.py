"""What each family of losses is held to: identities, limits, ties, clips, labels, lists."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from bpo_data.losses import LIST, LOG_PROB, LOSSES, coefficients, of_pairs
from bpo_data.losses.anchored import LINKS

torch.set_num_threads(1)
MARGINS = torch.linspace(-4, 4, 33, dtype=torch.float64)
ZERO = torch.zeros_like(MARGINS)
TOKENS = {"chosen_tokens": np.array([4.0]), "rejected_tokens": np.array([7.0])}
CONVEX = {
    "lr": {},
    "kliep": {"clip": 0.0},
    "lsif": {"clip": 0.0},
    "ba": {"lam": 0.5, "clip": 0.0},
    "sba": {"lam": -0.5, "clip": 0.0},
}


def of(name: str, margin: Any = MARGINS, beta: float = 1.0, **options: Any) -> torch.Tensor:
    """The loss of margins c_w - c_l."""
    return of_pairs(LOSSES[name], margin, margin * 0, beta, options=options)


def slope(name: str, margin: float, beta: float = 1.0, **options: Any) -> float:
    """dL/dm of a loss of the margin alone."""
    found = coefficients(name, np.array([margin]), np.zeros(1), beta, options=options)
    assert found[0][0] == pytest.approx(-found[1][0], abs=1e-12)
    return float(found[0][0]) / beta


def test_lr_is_dpo():
    torch.testing.assert_close(of("lr", beta=0.3), of("sigmoid", beta=0.3))


def test_sba_of_minus_a_half_and_four_is_the_exponential_but_for_a_constant():
    torch.testing.assert_close(
        of("sba", lam=-0.5, s=4.0, clip=0.0), (-MARGINS / 2).exp() - 0.5, atol=1e-12, rtol=0
    )


def test_ba_of_one_is_lsif_and_of_zero_kliep():
    torch.testing.assert_close(of("ba", lam=1.0), of("lsif"))
    torch.testing.assert_close(of("ba", lam=0.0), of("kliep"))
    for margin in (-2.0, 0.0, 3.0):
        assert slope("ba", margin, lam=1e-3) == pytest.approx(slope("kliep", margin), rel=1e-2)


@pytest.mark.parametrize("near", [1e-3, -1e-3])
def test_sba_is_continuous_at_zero(near):
    torch.testing.assert_close(of("sba", lam=near), of("sba", lam=0.0), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lr", {}, -0.5),
        ("kliep", {}, -2.0),
        ("lsif", {}, -4.0),
        ("ba", {"lam": 0.5}, -3.0),
        ("ba", {"lam": 3.0}, -8.0),
        ("sba", {}, -0.5),
        ("sba", {"lam": 0.0, "s": 5.0}, -0.4),
        ("sba", {"lam": 2.0, "s": 1.0}, -2.0),
    ],
)
def test_slopes_at_zero_are_those_of_the_paper(name, options, expected):
    assert slope(name, 0.0, **options) == pytest.approx(expected)


@pytest.mark.parametrize("name", CONVEX)
@settings(max_examples=12, deadline=None)
@given(p=st.floats(0.05, 0.95))
def test_the_best_margin_is_the_logit_of_the_label(name, p):
    def risk(margin: float) -> float:
        both = torch.tensor([margin, -margin], dtype=torch.float64)
        right, wrong = of(name, both, **CONVEX[name]).tolist()
        return p * right + (1 - p) * wrong

    found = minimize_scalar(risk, bounds=(-6, 6), method="bounded", options={"xatol": 1e-7})
    assert found.x == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


@pytest.mark.parametrize("name", ["kliep", "lsif", "ba", "sba"])
def test_beyond_the_clip_there_is_no_gradient_at_all(name):
    edge = -math.log(0.01)
    assert slope(name, edge + 1e-6) == 0
    assert slope(name, edge - 1e-6) < 0
    assert slope(name, edge + 1e-6, clip=0.001) < 0


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.5, 2.0])
def test_discopop_pushes_the_wrong_way_at_the_reference_below_a_tau_of_a_tenth(tau):
    expected = (1 - math.log(2)) / (4 * tau) - 0.75
    assert slope("discopop", 0.0, discopop_tau=tau) == pytest.approx(expected)
    assert (expected > 0) == (tau <= 0.1)


def test_a_mix_of_sba_and_lr_is_their_weighted_sum():
    both = 0.3 * of("sba", clip=0.0) + 0.7 * of("lr")
    torch.testing.assert_close(of("sba", mix=0.3, clip=0.0), both)


@pytest.mark.parametrize("link", LINKS)
@settings(max_examples=40, deadline=None)
@given(chosen=st.floats(-5, 5), rejected=st.floats(-5, 5), alpha=st.floats(0.05, 1))
def test_the_balanced_margin_moves_the_side_that_is_behind_alone(link, chosen, rejected, alpha):
    options = {"alpha": alpha, "link": link}
    sides = coefficients("balanced", np.array([chosen]), np.array([rejected]), 0.1, options=options)
    of_chosen, of_rejected = (float(side[0]) for side in sides)
    # z is at most 0.5 here: below 1, up to which every link falls.
    assert of_chosen <= 0 <= of_rejected
    if abs(chosen + alpha * rejected) > 1e-9:
        behind = chosen < -alpha * rejected
        assert (of_rejected if behind else of_chosen) == 0
        assert (of_chosen if behind else of_rejected) != 0


def test_a_tie_of_the_balanced_margin_is_shared_by_half():
    for link in LINKS:
        tie = coefficients(
            "balanced", np.zeros(1), np.zeros(1), 0.1, options={"alpha": 0.3, "link": link}
        )
        alone = coefficients(
            "balanced", np.zeros(1), -np.ones(1), 0.1, options={"alpha": 0.3, "link": link}
        )
        assert tie[0][0] == pytest.approx(alone[0][0] / 2), link
        assert tie[1][0] == pytest.approx(-0.3 * tie[0][0]), link


def test_links_are_worth_what_is_worked_out_by_hand():
    z = torch.tensor([0.5], dtype=torch.float64)
    expected = {
        "logistic": math.log(1 + math.exp(-0.5)),
        "hinge": 0.5,
        "square": 0.25,
        "exponential": math.exp(-0.5),
        "truncated": 0.25,
        "savage": (1 / (1 + math.exp(0.5))) ** 2,
    }
    assert {name: link(z).item() for name, link in LINKS.items()} == pytest.approx(expected)


def test_cal_dpo_draws_both_sides_to_their_targets():
    goal = 0.5 / 0.1
    of_chosen, of_rejected = coefficients(
        "cal_dpo", np.array([goal, 0.0]), np.array([-goal, 0.0]), 0.1
    )
    assert of_chosen[0] == pytest.approx(-1 / (1 + math.exp(2 * goal)))
    assert of_rejected[0] == pytest.approx(-of_chosen[0])
    assert of_chosen[1] == pytest.approx(-0.5 - goal)


def test_dpop_is_dpo_while_the_chosen_stands_and_pulls_it_up_when_it_falls():
    up = coefficients("dpop", np.ones(1), np.zeros(1), 0.1)
    assert up == coefficients("sigmoid", np.ones(1), np.zeros(1), 0.1)
    fallen = coefficients("dpop", -np.ones(1), -np.ones(1), 0.1, options={"penalty": 50.0})
    assert fallen[0][0] / fallen[1][0] == pytest.approx(-51)


def test_the_value_that_vpo_regularises_is_minus_beta_times_the_mean_of_c():
    # J(r) = beta log of the reference's mean of exp(r / beta), the best that r allows with a KL.
    generator = torch.Generator().manual_seed(0)
    policy, ref, calibrating = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    policy, ref, calibrating = (one / one.sum() for one in (policy, ref, calibrating))
    beta, c = 0.3, (policy / ref).log()
    reward = beta * c - (calibrating * beta * c).sum()
    value = beta * (ref * (reward / beta).exp()).sum().log()
    torch.testing.assert_close(value, -beta * (calibrating * c).sum())


def test_vpo_is_dpo_with_its_value_as_a_penalty():
    chosen, rejected = np.array([0.7, -1.0]), np.array([0.2, 3.0])
    dpo = coefficients("sigmoid", chosen, rejected, 0.2)
    for alpha in (0.5, -0.5):
        for calibration, shares in (("chosen", (1.0, 0.0)), ("both", (0.5, 0.5))):
            options = {"alpha": alpha, "calibration": calibration}
            found = coefficients("vpo", chosen, rejected, 0.2, options=options)
            for side, plain, share in zip(found, dpo, shares, strict=True):
                assert side == pytest.approx(plain - alpha * 0.2 * share)


def test_labels_of_each_pair_weigh_both_ways():
    margins, p = torch.tensor([0.7, -1.2]), torch.tensor([1.0, 0.3])
    found = of_pairs(LOSSES["smoothed"], margins, margins * 0, 1.0, columns={"p_chosen": p})
    assert found[0].item() == pytest.approx(math.log(1 + math.exp(-0.7)))
    wrong = 0.3 * math.log(1 + math.exp(1.2)) + 0.7 * math.log(1 + math.exp(-1.2))
    assert found[1].item() == pytest.approx(wrong)
    torch.testing.assert_close(of("smoothed"), of("sigmoid"))


@pytest.mark.parametrize("name", ["smoothed", "jeffreys", "js", "exo_pair"])
def test_a_soft_label_is_met_at_its_own_logit(name):
    best = math.log(0.8 / 0.2)
    assert slope(name, best, label_smoothing=0.2) == pytest.approx(0, abs=1e-6)
    assert (
        slope(name, best - 1, label_smoothing=0.2) < 0 < slope(name, best + 1, label_smoothing=0.2)
    )


def test_divergences_are_those_of_distributions():
    p = np.array([0.9, 0.1])
    q = 1 / (1 + np.exp(-np.array([0.4, -0.4])))
    middle = (p + q) / 2
    kl = [(a * np.log(a / b)).sum() for a, b in ((q, p), (p, q), (q, middle), (p, middle))]
    margin = torch.tensor([0.4], dtype=torch.float64)
    assert of("jeffreys", margin, label_smoothing=0.1).item() == pytest.approx(kl[0] + kl[1])
    assert of("js", margin, label_smoothing=0.1).item() == pytest.approx((kl[2] + kl[3]) / 2)
    assert of("js", MARGINS * 100).max() < math.log(2)


def test_sppo_with_certain_winners_is_sppo_hard():
    sides = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5])
    rates = {"win_rate_chosen": torch.ones(2), "win_rate_rejected": torch.zeros(2)}
    torch.testing.assert_close(
        of_pairs(LOSSES["sppo"], *sides, 0.1, columns=rates),
        of_pairs(LOSSES["sppo_hard"], *sides, 0.1),
    )
    even = {name: torch.full((2,), 0.5) for name in rates}
    found = of_pairs(LOSSES["sppo"], *sides, 0.1, columns=even)
    torch.testing.assert_close(found, sides[0] ** 2 + sides[1] ** 2)


def test_inpo_compares_with_a_blend_of_both_references():
    policy, first, second = ((-3.0, -4.0), (-3.5, -3.0), (-2.0, -5.0))
    for ratio in (0.0, 0.25, 1.0):
        blend = [(1 - ratio) * a + ratio * b for a, b in zip(first, second, strict=True)]
        gap = (policy[0] - blend[0]) - (policy[1] - blend[1])
        found = of_pairs(
            LOSSES["inpo"],
            *(torch.tensor([a - b]) for a, b in zip(policy, first, strict=True)),
            0.2,
            columns={
                f"shift_{side}": torch.tensor([b - a])
                for side, a, b in zip(("chosen", "rejected"), first, second, strict=True)
            },
            options={"ratio": ratio},
        )
        assert found.item() == pytest.approx((gap - 2.5) ** 2, rel=1e-5)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.measures == LOG_PROB])
def test_a_loss_without_reference_prefers_the_likely_chosen(name):
    sides = coefficients(name, np.array([-6.0]), np.array([-9.0]), 0.5, columns=TOKENS)
    assert sides[0][0] < 0 < sides[1][0]


def test_at_the_reference_no_loss_pushes_the_wrong_way():
    columns = {**TOKENS, "win_rate_chosen": [0.8], "win_rate_rejected": [0.3],
               "shift_chosen": [0.0], "shift_rejected": [0.0]}  # fmt: skip
    wrong = []
    for name, loss in LOSSES.items():
        if loss.measures == LIST:
            continue
        start = np.full(1, -5.0 if loss.measures == LOG_PROB else 0.0)
        sides = coefficients(name, start, start, 0.5, columns=columns)
        assert sides[0] or sides[1], name
        if sides[0] > 0 or sides[1] < 0:
            wrong.append(name)
    assert wrong == ["discopop"], "its hollow is known"


@pytest.mark.parametrize("name", ["sigmoid", "apo_zero", "js", "exo_pair", "balanced"])
def test_a_pair_far_on_the_right_side_has_no_pull_left(name):
    options = {"label_smoothing": 1e-9} if name in ("js", "exo_pair") else {}
    sides = coefficients(name, np.array([300.0]), np.array([-300.0]), 0.5, options=options)
    assert np.abs(sides).max() < 1e-6


def test_losses_without_reference_by_hand():
    chosen, rejected = -6.0 / 4, -9.0 / 7
    odds = [a - math.log(1 - math.exp(a)) for a in (chosen, rejected)]

    def soft(x: float) -> float:
        return math.log(1 + math.exp(x))

    expected = {
        "simpo": soft(1.0 - 0.5 * (chosen - rejected)),
        "orpo": -chosen + 0.5 * soft(odds[1] - odds[0]),
        "cpo": soft(-0.5 * (-6.0 + 9.0)) - chosen,
        "asft": -chosen + 0.5 * (-chosen - math.log(1 - math.exp(rejected))),
    }
    columns = {name: torch.tensor(one) for name, one in TOKENS.items()}
    found = {
        name: of_pairs(
            LOSSES[name],
            torch.tensor([-6.0], dtype=torch.float64),
            torch.tensor([-9.0], dtype=torch.float64),
            0.5,
            columns=columns,
        ).item()
        for name in expected
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.two_betas])
def test_each_side_may_have_its_own_beta(name):
    columns = {one: torch.tensor([3.0]) for one in TOKENS}
    sides = torch.tensor([0.4]), torch.tensor([-0.2])
    apart = of_pairs(LOSSES[name], *sides, 0.1, beta_rejected=0.3, columns=columns)
    scaled = of_pairs(LOSSES[name], sides[0], sides[1] * 3, 0.1, columns=columns)
    torch.testing.assert_close(apart, scaled)
    if name == "sigmoid":
        assert apart.item() == pytest.approx(math.log(1 + math.exp(-(0.04 + 0.06))))


def test_two_betas_are_refused_where_they_mean_nothing():
    with pytest.raises(ValueError, match="no function of beta"):
        of_pairs(LOSSES["cal_dpo"], MARGINS, ZERO, 0.1, beta_rejected=0.2)


def listed(name: str, ratios: list[float], scores: list[float], holes: int = 0) -> float:
    row = torch.tensor([ratios + [7.0] * holes], dtype=torch.float64)
    points = torch.tensor([scores + [99.0] * holes], dtype=torch.float64)
    present = torch.tensor([[True] * len(ratios) + [False] * holes])
    return of_list(name, row, points, present).item()


def of_list(
    name: str, row: torch.Tensor, points: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """The loss at a beta of 0.5; of one without a reference the row is log pi per token."""
    beside = {"scores": points, "present": present, "means": row}
    return LOSSES[name](row, 0.5, **{column: beside[column] for column in LOSSES[name].columns})


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.measures == LIST])
class TestLists:
    def test_a_list_of_two_is_dpo(self, name):
        pair = of("sigmoid", torch.tensor([1.3], dtype=torch.float64), 0.5).item()
        assert listed(name, [2.0, 0.7], [9.0, 8.0]) == pytest.approx(pair)
        assert listed(name, [0.7, 2.0], [8.0, 9.0]) == pytest.approx(pair)

    def test_empty_places_and_the_order_of_a_list_change_nothing(self, name):
        ratios, scores = [0.2, -1.0, 0.9], [3.0, 1.0, 2.0]
        expected = listed(name, ratios, scores)
        assert listed(name, ratios, scores, holes=2) == pytest.approx(expected)
        for order in itertools.permutations(range(3)):
            again = listed(name, [ratios[n] for n in order], [scores[n] for n in order])
            assert again == pytest.approx(expected)

    def test_empty_places_get_no_gradient(self, name):
        row = torch.tensor([[0.2, -1.0, 5.0]], requires_grad=True)
        scores = torch.tensor([[3.0, 1.0, 2.0]])
        present = torch.tensor([[True, True, False]])
        of_list(name, row, scores, present).sum().backward()
        assert row.grad is not None
        assert row.grad[0, 2] == 0
        assert row.grad[0, 0] < 0 < row.grad[0, 1]

    def test_the_right_order_costs_least(self, name):
        scores = [4.0, 3.0, 2.0, 1.0]
        costs = {
            order: listed(name, list(map(float, order)), scores)
            for order in itertools.permutations((4, 3, 2, 1))
        }
        assert min(costs, key=costs.__getitem__) == (4, 3, 2, 1)
        assert max(costs, key=costs.__getitem__) == (1, 2, 3, 4)


def test_plackett_luce_is_the_chance_of_drawing_the_ranking():
    ratios = [0.2, -1.0, 0.9]
    weight = [math.exp(0.5 * one) for one in ratios]
    chance = weight[2] / sum(weight) * weight[0] / (weight[0] + weight[1])
    assert listed("plackett_luce", ratios, [2.0, 1.0, 3.0]) == pytest.approx(-math.log(chance))


def test_pro_is_the_sum_over_ranks_of_the_released_code():
    means, points, beta = [-0.4, -1.5, -0.7, -2.0], [9.0, 6.0, 2.5, 2.5], 0.5
    expected = 0.0
    for rank in range(3):
        gaps = [beta * (points[rank] - other) for other in points[rank + 1 :]]
        own = max(gaps) * means[rank]
        rest = [gap * mean for gap, mean in zip(gaps, means[rank + 1 :], strict=True)]
        expected += math.log(math.exp(own) + sum(map(math.exp, rest))) - own
    order = [2, 0, 3, 1]
    found = listed("pro", [means[n] for n in order], [points[n] for n in order], holes=1)
    assert found == pytest.approx(expected)


def test_exchanges_at_the_top_of_a_list_weigh_most():
    ratios = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    LOSSES["tpo"](ratios, 1.0, scores=scores, present=torch.ones(1, 4, dtype=torch.bool)).backward()
    assert ratios.grad is not None
    first, second, third, last = ratios.grad[0].tolist()
    assert first < 0 < last
    assert abs(first) > max(abs(second), abs(third))


def test_every_loss_names_its_source_and_its_options_hold_their_defaults():
    for name, loss in LOSSES.items():
        assert loss.source, name
        assert (loss.function.__doc__ or "").strip(), name
        assert list(loss.problems(loss.defaults(), "x")) == [], name


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("sba", {"lam": -1.0}, "lam=-1.0: use 0, or a number above -1"),
        ("sba", {"lam": 1e-5}, "lam=1e-05"),
        ("balanced", {"alpha": 0.0}, "alpha=0.0"),
        ("balanced", {"link": "logit"}, "link=logit: use one of logistic"),
        ("inpo", {"ratio": True}, "ratio=True"),
        ("simpo", {"gamma": "wide"}, "gamma=wide"),
    ],
)
def test_options_out_of_range_are_named(name, options, problem):
    assert any(problem in line for line in LOSSES[name].problems(options, "train.loss_options"))

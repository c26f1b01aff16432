"""Pair losses against TRL's own code and against derivatives worked out by hand."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bpo_data.gradients.engine import ResponseGradients
from bpo_data.gradients.pairs import pair_gradients
from bpo_data.gradients.projection import Sketch, layer_signs
from bpo_data.losses import LIST, LOSSES, TOKENS, coefficients, of_pairs

torch.set_num_threads(1)

BETA = 0.1
CHOSEN = np.array([0.0, 3.0, -2.5, 40.0, 1.25])
REJECTED = np.array([0.0, -1.0, 4.0, 3.0, 1.0])
SHARED = [name for name, loss in LOSSES.items() if loss.in_trl]
EXPONENTIAL = ("kliep", "lsif", "ba", "sba", "balanced", "dpop")
"""Losses that grow as fast as R or faster: a pair far on the wrong side has no finite loss."""
COLUMNS = {
    "chosen_tokens": np.array([3.0, 1.0, 8.0, 5.0, 2.0]),
    "rejected_tokens": np.array([2.0, 4.0, 8.0, 1.0, 9.0]),
    "win_rate_chosen": np.array([0.9, 0.5, 1.0, 0.7, 0.6]),
    "win_rate_rejected": np.array([0.1, 0.4, 0.0, 0.6, 0.2]),
    "shift_chosen": np.array([0.0, -1.0, 2.0, 0.5, 3.0]),
    "shift_rejected": np.array([1.0, 0.0, -2.0, 0.5, 1.0]),
    "p_chosen": np.array([0.9, 0.5, 1.0, 0.0, 0.7]),
}
OF_TWO = [name for name, loss in LOSSES.items() if loss.measures != LIST]
PAIRS = [
    ("w3 w4 w5", " w6 w7 w8 w9", " w9 w3"),
    ("w11 w12", " w13", " w14 w15 w16 w17 w18 w19"),
    ("w3 w20 w21 w22 w23", " w24 w25 w3", " w24 w26 w3"),
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Any:
    """TRL's own DPOTrainer on a tiny policy and another tiny reference."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 32)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    config = LlamaConfig(
        **sizes, num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    policies = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        policies.append(LlamaForCausalLM(config))
        for weight in policies[-1].parameters():
            weight.data.normal_(std=0.3)
    policy, reference = policies
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    return trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=BETA,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        ),
    )


def trl_loss(trainer: Any, name: str, chosen: float, rejected: float, smoothing: float) -> float:
    """TRL's code on a pair of three tokens and two, with a stand-in for both models."""
    one = torch.ones(2, 3)
    outputs = SimpleNamespace(
        log_probs=torch.tensor([[chosen, 0.0, 0.0], [rejected / 2, rejected / 2, 0.0]]),
        entropy=one,
        mean_logits=one,
        is_top1=one.bool(),
    )
    inputs = {
        "input_ids": torch.ones(2, 4, dtype=torch.long),
        "attention_mask": torch.ones(2, 4, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]]),
        "ref_chosen_logps": torch.zeros(1),
        "ref_rejected_logps": torch.zeros(1),
    }
    stand_in = copy.copy(trainer)
    stand_in.loss_types, stand_in.loss_weights, stand_in.precompute_ref_logps = [name], [1.0], True
    stand_in.label_smoothing = smoothing
    return stand_in._compute_loss(lambda **_: outputs, inputs, return_outputs=False).item()


@pytest.mark.parametrize("name", SHARED)
def test_each_loss_that_trl_has_is_trls(name: str, trainer: Any):
    lengths = dict(zip(TOKENS, (torch.full((5,), 3.0), torch.full((5,), 2.0)), strict=True))
    options = {"label_smoothing": 0.1}
    sides = torch.tensor(CHOSEN), torch.tensor(REJECTED)
    ours = of_pairs(LOSSES[name], *sides, BETA, columns=lengths, options=options).tolist()
    theirs = [trl_loss(trainer, name, w, r, 0.1) for w, r in zip(CHOSEN, REJECTED, strict=True)]
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def test_pair_gradients_equal_the_gradient_of_trls_own_dpo_loss(trainer: Any):
    rows = list(trainer.train_dataset)
    prompts = [row["prompt_ids"] for row in rows]
    sides = [[row[f"{side}_ids"] for row in rows] for side in ("chosen", "rejected")]
    policy, reference = (
        [ResponseGradients(model, rank=4, dim=128, seed=3).of(prompts, side) for side in sides]
        for model in (trainer.model, trainer.ref_model)
    )
    ratios = [now.log_prob - old.log_prob for now, old in zip(policy, reference, strict=True)]
    assert np.abs(ratios).min() > 0.1, "the test needs a policy away from its reference"
    ours = pair_gradients(
        policy[0].gradient, policy[1].gradient, *coefficients("sigmoid", *ratios, BETA)
    )
    for row, found in zip(rows, ours, strict=True):
        theirs = gradient_of_trls_loss(trainer, row)
        assert np.linalg.norm(found - theirs) < 1e-3 * np.linalg.norm(theirs)


def gradient_of_trls_loss(trainer: Any, row: dict[str, Any]) -> np.ndarray:
    """Weight gradients by TRL's compute_loss and backward, then the same projection, (128,)."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, trainer.data_collator([row])).backward()
    kept = []
    for name, module in sorted(trainer.model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            left, right = layer_signs(3, name, *module.weight.shape, rank=4)
            kept.append((left.T @ module.weight.grad @ right / 4).flatten())
    trainer.model.zero_grad()
    return Sketch(len(kept) * 16, 128, seed=3)(torch.cat(kept)[None])[0].numpy()


def test_dpo_coefficients_are_minus_and_plus_beta_times_sigmoid_of_minus_margin():
    of_chosen, of_rejected = coefficients("sigmoid", CHOSEN, REJECTED, BETA)
    expected = [0.1 / (1 + math.exp(0.1 * (w - r))) for w, r in zip(CHOSEN, REJECTED, strict=True)]
    assert of_chosen.tolist() == pytest.approx([-e for e in expected])
    assert of_rejected.tolist() == pytest.approx(expected)
    assert of_chosen[0] == pytest.approx(-0.05), "beta/2 at the reference policy"


def test_hinge_pushes_until_the_margin_is_one():
    # margins 0.1 * (c_w - c_l): 0, 0.4, -0.65, 3.7, 0.025
    of_chosen, of_rejected = coefficients("hinge", CHOSEN, REJECTED, BETA)
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
        found = [float(side[0]) for side in coefficients(name, zero, zero, BETA)]
        assert found == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("name", OF_TWO)
@settings(max_examples=25, deadline=None)
@given(chosen=st.floats(-30, 30), rejected=st.floats(-30, 30), beta=st.floats(0.02, 1))
def test_coefficients_are_the_slope_of_the_loss(name, chosen, rejected, beta):
    sides, columns = [chosen, rejected], {key: one[:1] for key, one in COLUMNS.items()}
    if LOSSES[name].measures == "log_prob":
        sides = [-1 - abs(side) for side in sides]

    def loss(w: float, r: float) -> float:
        tensors = (torch.tensor([x], dtype=torch.float64) for x in (w, r))
        beside = {key: torch.tensor(one) for key, one in columns.items()}
        return of_pairs(LOSSES[name], *tensors, beta, columns=beside).item()

    w, r, step = *sides, 1e-5
    here = loss(w, r)
    right = np.array([loss(w + step, r) - here, loss(w, r + step) - here]) / step
    left = np.array([here - loss(w - step, r), here - loss(w, r - step)]) / step
    fine = (right + left) / 2
    size = np.abs(fine).max() + 1e-3
    assume(np.abs(right - left).max() < 1e-3 * size)  # a kink within reach has no slope
    found = coefficients(name, *(np.array([s]) for s in sides), beta, columns=columns)
    assert np.abs(np.concatenate(found) - fine).max() < 2e-4 * size + 1e-6


@pytest.mark.parametrize("name", OF_TWO)
def test_huge_margins_stay_finite(name):
    ends = (np.array([1e4, -1e4]), np.array([-1e4, 1e4]))
    if LOSSES[name].measures == "log_prob":
        ends = (np.array([-1.0, -1e4]), np.array([-1e4, -1.0]))
    if name in EXPONENTIAL:
        ends = (ends[0][:1], ends[1][:1])
    columns = {key: one[: len(ends[0])] for key, one in COLUMNS.items()}
    sides = coefficients(name, *ends, BETA, columns=columns)
    assert np.isfinite(sides).all(), name
    assert all(side.dtype == np.float64 for side in sides)


def test_an_unknown_loss_is_named_with_its_nearest():
    with pytest.raises(ValueError, match=r"no loss 'sigmoyd'.*Did you mean sigmoid"):
        coefficients("sigmoyd", CHOSEN, REJECTED, BETA)

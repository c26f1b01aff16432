"""Response gradients against autograd, one sequence at a time, with full weight gradients."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CONFIGS,
    DIM,
    RANK,
    VOCABULARY,
    assert_close,
    by_autograd,
    engine,
    policy,
    sequences,
)

from bpo_data.gradients.packing import padded_batches
from bpo_data.gradients.pairs import pair_gradients

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> Any:
    return policy(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return policy("llama")


def test_equal_to_autograd_one_response_at_a_time(model):
    prompts, responses = sequences()
    measured = engine(model, batch_tokens=64).of(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        gradient, log_prob = by_autograd(model, prompt, response)
        assert_close(measured.gradient[row], gradient)
        assert measured.log_prob[row] == pytest.approx(log_prob, rel=1e-5)
    assert measured.tokens.tolist() == [len(response) for response in responses]
    assert measured.finite.all()
    assert [part.dtype for part in (measured.gradient, measured.log_prob, measured.tokens)] == [
        np.float32, np.float32, np.int32,
    ]  # fmt: skip


def test_the_output_head_is_measured_when_asked_for(llama):
    prompts, responses = sequences()
    found = engine(llama, layers="all")
    assert "lm_head" in found.layers
    assert "lm_head" not in engine(llama).layers
    gradient = found.of(prompts, responses).gradient
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(gradient[row], by_autograd(llama, prompt, response, "all")[0])


def test_a_pattern_picks_layers_and_changes_nothing_in_them(llama):
    prompts, responses = sequences()
    whole = engine(llama, dim=10_000)
    last = engine(llama, dim=10_000, layers=r"layers\.1\.mlp")
    assert last.layers == tuple(
        f"model.layers.1.mlp.{side}_proj" for side in ("down", "gate", "up")
    )
    places = [whole.layers.index(name) for name in last.layers]
    assert (whole.dim, last.dim) == (14 * RANK**2, 3 * RANK**2)
    by_layer = whole.of(prompts, responses).gradient.reshape(len(prompts), 14, -1)
    assert_close(
        last.of(prompts, responses).gradient, by_layer[:, places].reshape(len(prompts), -1)
    )


@functools.cache
def in_one_batch(model: Any) -> Any:
    return engine(model).of(*sequences())


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(9)), batch_tokens=st.integers(1, 400))
def test_order_and_batching_change_nothing_beyond_rounding(llama, order, batch_tokens):
    prompts, responses = sequences()
    expected = in_one_batch(llama)
    found = engine(llama, batch_tokens=batch_tokens).of(
        [prompts[i] for i in order], [responses[i] for i in order]
    )
    assert_close(found.gradient, expected.gradient[order], 1e-5)
    assert found.log_prob == pytest.approx(expected.log_prob[order], rel=1e-6)


def test_the_same_call_gives_the_same_bytes(llama):
    prompts, responses = sequences()
    first = engine(llama)
    expected = first.of(prompts, responses).gradient.tobytes()
    first.of(prompts[:3], responses[:3])
    assert first.of(prompts, responses).gradient.tobytes() == expected
    assert engine(llama).of(prompts, responses).gradient.tobytes() == expected


@given(
    lengths=st.lists(st.integers(1, 90), max_size=40),
    tokens=st.integers(1, 500),
)
def test_batches_hold_every_row_once_within_the_budget(lengths, tokens):
    made = padded_batches(range(len(lengths)), lengths, tokens)
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens
    sizes = [lengths[row] for batch in made for row in batch]
    assert sizes == sorted(sizes, reverse=True)


def state_of(model: Any) -> list[Any]:
    """All that a measurement could leave behind on a model."""
    weights = [(w.requires_grad, w.grad is None) for w in model.parameters()]
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    return [weights, modules]


def test_no_weight_gradient_is_formed_and_the_model_is_left_as_it_was():
    model = policy("llama").train()
    model.model.layers[0].requires_grad_(False)
    model.lm_head.eval()
    formed = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, name=name: formed.append(name))
    before = state_of(model)
    engine(model).of(*sequences())
    assert formed == []
    assert state_of(model) == before


def test_the_model_is_left_as_it_was_when_measuring_fails():
    model = policy("llama").train()
    before = state_of(model)
    with pytest.raises(IndexError):
        engine(model).of([[1, 2]], [[3, VOCABULARY + 7, 4]])
    assert state_of(model) == before


def test_an_empty_side_is_named(llama):
    with pytest.raises(ValueError, match="response 1 has no tokens"):
        engine(llama).of([[1], [2]], [[3], []])
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        engine(llama).of([[], [2]], [[3], [4]])
    assert engine(llama).of([], []).gradient.shape == (0, DIM)


def test_a_row_that_is_not_finite_is_flagged_and_spoils_no_other():
    model = policy("llama")
    prompts, responses = [[1, 2], [3, 63], [4, 5]], [[6, 7, 8]] * 3
    expected = engine(model).of(prompts, responses)
    model.model.embed_tokens.weight.data[63] = torch.nan
    found = engine(model).of(prompts, responses)
    assert found.finite.tolist() == [True, False, True]
    assert_close(found.gradient[[0, 2]], expected.gradient[[0, 2]], 1e-5)


def test_a_broken_embedding_does_not_refuse_the_model():
    # Half of all tokens, so that those the engine is tried on have some, and then all.
    prompts, responses = [[1, 3], [5, 7], [2, 4]], [[9, 11, 13], [15, 17], [19, 21]]
    model = policy("llama")
    expected = engine(model).of(prompts, responses)
    model.model.embed_tokens.weight.data[::2] = torch.nan
    found = engine(model).of(prompts, responses)
    assert found.finite.tolist() == [True, True, False]
    assert_close(found.gradient[:2], expected.gradient[:2], 1e-5)
    model.model.embed_tokens.weight.data[:] = torch.nan
    assert not engine(model).of(prompts, responses).finite.any()


def test_sums_are_float32_under_a_bfloat16_model():
    prompts, responses = sequences()
    exact = engine(policy("llama"), dim=10_000).of(prompts, responses)
    found = engine(policy("llama").to(torch.bfloat16), dim=10_000).of(prompts, responses)
    assert_close(found.gradient, exact.gradient, 0.05)
    rounded = torch.from_numpy(found.gradient).bfloat16().float().numpy()
    assert (rounded != found.gradient).mean() > 0.5, "the sums were rounded to bfloat16"


def test_a_lora_adapter_is_seen_through():
    peft = pytest.importorskip("peft")
    prompts, responses = sequences()
    bare = engine(policy("llama"))
    wrapped = peft.get_peft_model(
        policy("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    fresh = engine(wrapped)
    assert fresh.layers == bare.layers
    expected = bare.of(prompts, responses).gradient
    assert_close(fresh.of(prompts, responses).gradient, expected)

    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    adapted = engine(wrapped).of(prompts, responses).gradient
    merged = engine(wrapped.merge_and_unload()).of(prompts, responses).gradient
    assert_close(adapted, merged)
    assert np.linalg.norm(adapted - expected) > 0.1 * np.linalg.norm(expected)


def test_a_linear_expert_that_sees_a_selection_of_tokens_is_named():
    model = policy("llama")

    class Expert(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            flat = hidden.flatten(0, 1)
            chosen = torch.arange(0, len(flat), 2)
            return (
                torch.zeros_like(flat)
                .index_add(0, chosen, self.inner(flat[chosen]))
                .view_as(hidden)
            )

    model.model.layers[1].mlp = Expert(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.inner\.\w+ sees a selection"):
        engine(model).of(*sequences())


def test_settings_that_measure_nothing_are_refused(llama):
    with pytest.raises(ValueError, match="layers='nowhere' picks no linear layer"):
        engine(llama, layers="nowhere")
    with pytest.raises(ValueError, match="rank=0"):
        engine(llama, rank=0)


def test_inner_products_err_like_one_over_root_dim_against_exact_gradients(llama):
    # Rank 48 is wider than the layers, so that the sketch decides.
    prompts, responses = sequences(12)
    exact = unit([whole_gradient(llama, *row) for row in zip(prompts, responses, strict=True)])
    apart = ~np.eye(len(exact), dtype=bool)
    errors = {}
    for dim in (32, 128, 512):
        found = [
            unit(engine(llama, rank=48, dim=dim, seed=seed).of(prompts, responses).gradient)
            for seed in range(6)
        ]
        wrong = np.array([(rows @ rows.T - exact @ exact.T)[apart] for rows in found])
        errors[dim] = float(np.sqrt((wrong**2).mean()))
        assert abs(wrong.mean()) < errors[dim] / 5, "the error is not centred"
    assert errors[32] / errors[128] == pytest.approx(2, rel=0.25), errors
    assert errors[128] / errors[512] == pytest.approx(2, rel=0.25), errors


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def whole_gradient(model: Any, prompt: list[int], response: list[int]) -> np.ndarray:
    """All weight gradients of the blocks' linear layers, end to end, not projected."""
    model.zero_grad()
    logits = model.eval()(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logits.log_softmax(-1)[range(len(response)), response].sum().backward()
    linear = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    whole = torch.cat([module.weight.grad.flatten() for module in linear]).numpy().copy()
    model.zero_grad()
    return whole


def test_pair_gradient_by_hand():
    chosen, rejected = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[4.0, -2.0], [1.0, 1.0]])
    found = pair_gradients(chosen, rejected, np.array([-0.5, -2.0]), np.array([0.5, 1.0]))
    assert found.tolist() == [[1.5, -2.0], [-5.0, 1.0]]
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match=r"shape \(2, 2\), rejected \(1, 2\)"):
        pair_gradients(chosen, rejected[:1], np.zeros(2), np.zeros(2))

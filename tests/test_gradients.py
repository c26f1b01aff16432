"""Response gradients against autograd, one sequence at a time, with full weight gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from bpo_data.gradients.engine import ResponseGradients
from bpo_data.gradients.packing import padded_batches
from bpo_data.gradients.pairs import pair_gradients
from bpo_data.gradients.projection import Sketch, layer_signs

torch.set_num_threads(1)

RANK, DIM, SEED, VOCABULARY = 4, 96, 11, 64
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    # Biases in q, k, v; embeddings tied to the output head.
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=64
    ),
    # Soft-capping of attention and logits, a sliding window shorter than the sequences.
    "gemma2": lambda: transformers.Gemma2Config(
        **LLAMA, head_dim=6, sliding_window=8, final_logit_softcapping=2.0, query_pre_attn_scalar=6
    ),
    "gemma2_eager": lambda: transformers.Gemma2Config(
        **LLAMA, head_dim=6, attn_logit_softcapping=1.0, attn_implementation="eager"
    ),
}


def policy(kind: str) -> Any:
    """A tiny model with random weights, large enough that nothing is near linear."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    for name, weight in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            weight.data.normal_(std=0.2)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> Any:
    return policy(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return policy("llama")


def sequences(count: int = 9) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1 to 19 tokens, one to four times each, and responses of 1 to 12."""
    generator = np.random.default_rng(5)
    sides = []
    for longest in (19, 12):
        lengths = generator.integers(1, longest + 1, count)
        sides.append([generator.integers(0, VOCABULARY, size).tolist() for size in lengths])
    prompts, responses = sides
    shared = [prompts[n] for n in (0, 1, 0, 2, 3, 3, 3, 4, 3)]
    shared[3] = shared[3][:1]  # nothing to share: its one token predicts the response
    return (shared * count)[:count], responses


def by_autograd(
    model: Any, prompt: list[int], response: list[int], head: bool = False
) -> tuple[np.ndarray, float]:
    """(dim,) gradient and log-probability from whole weight gradients of this response alone."""
    model.eval()
    model.zero_grad()
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and (head or name != "lm_head"):
            weights[name] = module
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1)[range(len(response)), response]
    log_probs.sum().backward()
    kept = []
    for name, module in sorted(weights.items()):
        gradient = module.weight.grad.T if isinstance(module, Conv1D) else module.weight.grad
        left, right = layer_signs(SEED, name, *gradient.shape, RANK)
        kept.append((left.T @ gradient @ right / RANK).flatten())
    model.zero_grad()
    rows = Sketch(len(kept) * RANK * RANK, DIM, SEED)(torch.cat(kept)[None])
    return rows[0].numpy(), log_probs.sum().item()


def engine(model: Any, **settings: Any) -> ResponseGradients:
    return ResponseGradients(model, **{"rank": RANK, "dim": DIM, "seed": SEED} | settings)


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    worst = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert worst.max() < relative, worst


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
        assert_close(gradient[row], by_autograd(llama, prompt, response, head=True)[0])


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


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(9)), batch_tokens=st.integers(1, 400))
def test_order_and_batching_change_nothing_beyond_rounding(llama, order, batch_tokens):
    prompts, responses = sequences()
    expected = engine(llama).of(prompts, responses)
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


def test_weights_that_are_no_linear_layer_are_named_unless_left_out():
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=4)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\S* \(Mixtral\w+\) holds weights"):
        engine(model)
    measured = engine(model, layers="self_attn").of(*sequences())
    assert measured.finite.all()
    assert measured.gradient.any(axis=1).all()


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


def test_pair_gradient_by_hand():
    chosen, rejected = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[4.0, -2.0], [1.0, 1.0]])
    found = pair_gradients(chosen, rejected, np.array([-0.5, -2.0]), np.array([0.5, 1.0]))
    assert found.tolist() == [[1.5, -2.0], [-5.0, 1.0]]
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match=r"shape \(2, 2\), rejected \(1, 2\)"):
        pair_gradients(chosen, rejected[:1], np.zeros(2), np.zeros(2))

"""Responses share their prompt's tokens, and nothing else: exactness and memory."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CONFIGS,
    LLAMA,
    VOCABULARY,
    assert_close,
    by_autograd,
    engine,
    policy,
    sequences,
)
from torch.utils._python_dispatch import TorchDispatchMode

from bpo_data.gradients import head, kernels

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama() -> Any:
    return policy("llama")


def drawn(prompts: list[int], responses: list[int], seed: int = 3) -> list[list[int]]:
    """Token ids of these lengths."""
    generator = np.random.default_rng(seed)
    lengths = [*prompts, *responses]
    return [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]


@pytest.mark.parametrize("kind", CONFIGS)
def test_shared_prompts_give_what_whole_sequences_give(kind):
    prompts, responses = sequences(16)
    model = policy(kind)
    found = engine(model)
    assert found.shares == (kind != "bloom")
    expected = engine(model, share=False).of(prompts, responses)
    shared = found.of(prompts, responses)
    assert_close(shared.gradient, expected.gradient, 1e-5)
    assert shared.log_prob == pytest.approx(expected.log_prob, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bloom"])
def test_attention_without_the_cpus_kernel_is_the_same(kind, monkeypatch):
    # What runs on a GPU: torch's public attention, tile by tile.
    prompts, responses = sequences(16)
    expected = engine(policy(kind)).of(prompts, responses)
    monkeypatch.setattr(kernels.Kernel, "fused", lambda *args: False)
    found = engine(policy(kind))
    assert found.shares
    assert_close(found.of(prompts, responses).gradient, expected.gradient, 1e-5)


@settings(max_examples=20, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    lengths=st.lists(st.integers(1, 45), min_size=9, max_size=9),
    prompt_lengths=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    batch_tokens=st.integers(1, 300),
)
def test_any_shape_of_a_batch_gives_the_same_rows(
    llama, owners, lengths, prompt_lengths, batch_tokens
):
    texts = drawn(prompt_lengths, lengths)
    prompts = [texts[owner] for owner in owners]
    responses = texts[4 : 4 + len(owners)]
    found = engine(llama, batch_tokens=batch_tokens).of(prompts, responses)
    expected = engine(llama, share=False).of(prompts, responses)
    assert_close(found.gradient, expected.gradient, 1e-5)


def test_another_response_does_not_touch_a_row(llama):
    prompt, one, other, long = drawn([20], [6, 9, 40])
    first = engine(llama).of([prompt, prompt], [one, other]).gradient[0]
    second = engine(llama).of([prompt, prompt], [one, long]).gradient[0]
    assert_close(second[None], first[None], 1e-5)


def test_a_prompt_runs_once_and_only_its_responses_reach_the_head(llama, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 5 * VOCABULARY)
    prompts, responses = [list(range(30))] * 4, drawn([], [7, 7, 5, 3])
    seen: dict[str, list[int]] = {"embed_tokens": [], "lm_head": []}

    def count(name: str) -> Any:
        return lambda module, args, out: seen[name].append(out.shape[1])

    ends = {"embed_tokens": llama.model.embed_tokens, "lm_head": llama.lm_head}
    handles = [module.register_forward_hook(count(name)) for name, module in ends.items()]
    measuring = engine(llama)
    for part in seen.values():
        part.clear()
    found = measuring.of(prompts, responses)
    for handle in handles:
        handle.remove()
    assert seen == {"embed_tokens": [29, 22], "lm_head": [5, 5, 5, 5, 2]}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(found.gradient[row], by_autograd(llama, prompt, response)[0])


@pytest.mark.parametrize("layers", ["lm_head", r"layers\.1\.mlp", "last:1", "all"])
def test_layers_that_leave_the_prompt_alone_still_share_it(llama, layers):
    prompts, responses = sequences()
    found = engine(llama, layers=layers).of(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(found.gradient[row], by_autograd(llama, prompt, response, layers)[0])


class Largest(TorchDispatchMode):
    """The most numbers that any one tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                Largest.numbers = max(Largest.numbers, part.numel())
        return out


@pytest.mark.parametrize("kind", ["mistral", "gemma2_softcap", "gpt_oss"])
def test_windows_and_sinks_hold_no_tokens_times_tokens(kind, monkeypatch):
    monkeypatch.setattr(kernels, "SCORES", 1 << 14)
    model = policy(kind)
    prompt, response = drawn([500], [500])
    measuring = engine(model)
    assert measuring.shares
    Largest.numbers = 0
    with Largest():
        found = measuring.of([prompt], [response])
    assert Largest.numbers < 500 * 500 / 2
    assert_close(found.gradient[0], by_autograd(model, prompt, response)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_has_the_size_of_tokens_times_tokens(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SCORES", 1 << 14)
    monkeypatch.setattr(head, "LOGITS", 1 << 12)
    model = policy("llama").to(dtype)
    prompt, response = drawn([900], [900])
    measuring = engine(model)
    assert measuring.shares
    Largest.numbers = 0
    with Largest():
        found = measuring.of([prompt], [response])
    assert Largest.numbers < 900 * 900 / 4, "the widest layer has 40 x 900 numbers"
    if dtype == torch.float32:
        assert_close(found.gradient[0], by_autograd(model, prompt, response)[0])


def test_bfloat16_loses_no_more_by_sharing_than_by_rounding():
    prompts, responses = [], drawn([], [50] * 12)
    for prompt in drawn([70] * 3, []):
        prompts += [prompt] * 4
    exact = engine(policy("llama")).of(prompts, responses).gradient
    errors = {}
    for share in (True, False):
        rounded = engine(policy("llama").to(torch.bfloat16), share=share).of(prompts, responses)
        errors[share] = np.linalg.norm(rounded.gradient - exact) / np.linalg.norm(exact)
    assert errors[True] < 1.25 * errors[False] < 0.2, errors


def by_torch(leaves: list[torch.Tensor], g: torch.Tensor) -> list[torch.Tensor]:
    """Attention and its gradients on q, k, v and the prompt's keys and values."""
    leaves = [x.detach().to(g.dtype).requires_grad_() for x in leaves]
    keys, values = (torch.cat([leaves[n + 2], leaves[n]], 2) for n in (1, 2))
    seen = torch.ones(keys.shape[2] - leaves[3].shape[2], keys.shape[2], dtype=torch.bool)
    out = torch.nn.functional.scaled_dot_product_attention(
        leaves[0], keys, values, attn_mask=seen.tril(leaves[3].shape[2]), scale=0.25
    )
    return [out, *torch.autograd.grad(out, leaves, g)]


@pytest.mark.parametrize("size", [1, 5], ids=["units", "tens"])
@pytest.mark.parametrize("prefix", [0, 23])
def test_attention_in_16_bits_loses_about_what_torchs_own_does(prefix, size, monkeypatch):
    """With scores of a few units, and of some tens."""
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(2, 3, 50, 16).bfloat16() for _ in range(4))
    q, k = q * size, k * size
    before = [torch.randn(2, 3, prefix, 16).bfloat16() * factor for factor in (size, 1)]
    exact = by_torch([q, k, v, *before], g.double())
    rounded = by_torch([q, k, v, *before], g)
    kernel, prompt = kernels.Kernel(0.25, None, None), tuple(before) if prefix else None
    for scores in (1 << 22, 2 * 3 * 50 * 7):
        monkeypatch.setattr(kernels, "SCORES", scores)
        out, total = kernels.flash(q, k, v, prompt, kernel)
        found = kernels.flash_backward(g, q, k, v, prompt, out, total, 0.25)
        assert len(found) == (5 if prefix else 3)
        for have, want, torchs in zip((out, *found), exact, rounded, strict=False):
            allowed = 2 * (torchs.double() - want).norm() + 0.002 * want.norm()
            assert (have.double() - want).norm() < allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 8, 40])
@pytest.mark.parametrize("scale", [80**-0.5, 0.125])
def test_large_scores_are_told_apart_in_16_bits(dtype, size, scale):
    # A scale that is no power of two and one that is; scores of thousands at the largest size.
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(1, 2, 60, 80).to(dtype) for _ in range(4))
    q, k = q * size, k * size
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    exact = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale)
    expected = torch.autograd.grad(exact, leaves, g.double())
    out, total = kernels._forward(q, k, v, 0.0, True, scale=scale)
    torchs = kernels._half_backward(g, q, k, v, out, total, True, scale)
    found = kernels._half_backward_in_16_bits(g, q, k, v, out, total, True, scale)
    for have, want, other in zip(found, expected, torchs, strict=True):
        allowed = 3 * (other.double() - want).norm() + 0.005 * want.norm()
        assert (have.double() - want).norm() < allowed


def test_sharing_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="BloomForCausalLM cannot share prompts"):
        engine(policy("bloom"), share=True)


def test_a_model_that_looks_ahead_is_refused():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config)
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    with pytest.raises(ValueError, match="depend on what is padded"):
        engine(model, layers="attention")


def test_two_threads_measure_two_models():
    prompts, responses = sequences(16)
    engines = [engine(policy(kind)) for kind in ("llama", "gemma3")]
    expected = [measuring.of(prompts, responses).gradient for measuring in engines]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda one: one.of(prompts, responses).gradient, engines))
            for have, want in zip(found, expected, strict=True):
                assert_close(have, want, 1e-5)


def test_inference_mode_and_autocast_change_nothing(llama):
    prompts, responses = sequences()
    expected = engine(llama).of(prompts, responses).gradient
    measuring = engine(llama)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(measuring.of(prompts, responses).gradient, expected, 1e-5)
    with torch.inference_mode():
        assert_close(measuring.of(prompts, responses).gradient, expected, 1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_beyond_the_first_length_are_measured_as_if_alone(kind):
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 3, "long_factor": [4.0, 2.0, 3.0],
                 "original_max_position_embeddings": 16}  # fmt: skip
    length = 64 if kind == "longrope" else 16
    config = transformers.LlamaConfig(**LLAMA, max_position_embeddings=length, rope_parameters=rope)

    def fresh() -> Any:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.data.normal_(std=0.2)
        return model

    texts = drawn([10, 12], [3, 6, 7, 20, 30, 5, 4])
    prompts = [texts[0]] * 5 + [texts[1]] * 2
    model = fresh()
    found = engine(model).of(prompts, texts[2:])
    before = model.model.rotary_emb.inv_freq.clone()
    for row, (prompt, response) in enumerate(zip(prompts, texts[2:], strict=True)):
        assert_close(found.gradient[row], by_autograd(fresh(), prompt, response)[0])
    if kind == "dynamic":
        assert torch.equal(model.model.rotary_emb.inv_freq, before)
        assert torch.equal(before, fresh().model.rotary_emb.inv_freq)


def test_log_probabilities_alone_are_those_of_the_gradients_pass(llama):
    prompts, responses = sequences()
    for share in (True, False):
        measuring = engine(llama, share=share)
        expected = measuring.of(prompts, responses).log_prob
        assert measuring.log_probs(prompts, responses) == pytest.approx(expected, rel=1e-5)


def test_adapters_off_is_the_reference():
    peft = pytest.importorskip("peft")
    prompts, responses = sequences()
    wrapped = peft.get_peft_model(policy("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    measuring = engine(wrapped)
    base = engine(policy("llama"))
    reference = measuring.log_probs(prompts, responses, adapters=False)
    assert reference == pytest.approx(base.log_probs(prompts, responses), rel=1e-6)
    adapted = measuring.of(prompts, responses).log_prob
    assert np.abs(adapted - reference).max() > 0.1
    assert measuring.of(prompts, responses).log_prob.tolist() == adapted.tolist()
    with pytest.raises(ValueError, match="no adapters"):
        base.log_probs(prompts, responses, adapters=False)


def test_modules_that_an_adapter_trains_whole_are_off_too():
    peft = pytest.importorskip("peft")
    prompts, responses = sequences()
    setting = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = peft.get_peft_model(policy("llama"), setting)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.data.normal_(std=0.3)
    found = engine(wrapped).log_probs(prompts, responses, adapters=False)
    expected = engine(policy("llama")).log_probs(prompts, responses)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # half a minute of the C++ compiler's
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_change_nothing_beyond_rounding(llama):
    prompts, responses = sequences(16)
    expected = engine(llama).of(prompts, responses)
    before = [block._compiled_call_impl for block in llama.model.layers]
    compiled = engine(llama, compile=True)
    found = compiled.of(prompts, responses)
    assert_close(found.gradient, expected.gradient, 1e-5)
    assert [block._compiled_call_impl for block in llama.model.layers] == before == [None, None]
    assert compiled.of(prompts[:1], responses[:1]).finite.all()

"""Which layers are measured, under which names, and layers of unusual make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import (
    CONFIGS,
    DIM,
    LLAMA,
    RANK,
    SEED,
    assert_close,
    by_autograd,
    engine,
    policy,
    sequences,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from bpo_data.gradients.projection import Sketch, layer_signs

torch.set_num_threads(1)
DENSE = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "opt", "bloom")


@pytest.mark.parametrize("kind", DENSE)
def test_blocks_are_all_linear_layers_but_the_head(kind):
    model = policy(kind)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    assert set(engine(model).layers) == linear - {"lm_head"}


def test_routers_and_experts_are_layers():
    found = engine(policy("mixtral")).layers
    block = "model.layers.0"
    assert [name for name in found if name.startswith(f"{block}.mlp")] == [
        f"{block}.mlp.experts.down_proj",
        f"{block}.mlp.experts.gate_up_proj",
        f"{block}.mlp.gate",
    ]
    assert f"{block}.self_attn.q_proj" in found
    assert set(engine(policy("mixtral"), layers="last:1").layers) == {
        name for name in found if ".1." in name
    }


def test_experts_that_are_not_picked_run_as_they_are():
    prompts, responses = sequences()
    model = policy("mixtral")
    found = engine(model, layers="self_attn").of(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(found.gradient[row], by_autograd(model, prompt, response, "self_attn")[0])


class Unknown(nn.Module):
    """A matrix of its own and no sizes: what it does with it cannot be known."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(24))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.mixing


def test_weights_that_are_no_linear_layer_are_named_unless_left_out():
    model = policy("llama")
    model.model.layers[0].mlp = Unknown()
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp \(Unknown\) holds weights"):
        engine(model)
    measured = engine(model, layers="self_attn").of(*sequences())
    assert measured.finite.all()
    assert measured.gradient.any(axis=1).all()


class Packed(nn.Module):
    """Like quantised layers: codes and scales in buffers, the weight made when it is needed."""

    def __init__(self, linear: nn.Linear, sizes: bool = True) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)
        if sizes:
            self.in_features, self.out_features = linear.in_features, linear.out_features

    def weight(self) -> torch.Tensor:
        return self.qweight * self.scales

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight().T


class Packed4Bit(nn.Linear):
    """Like bitsandbytes: an ``nn.Linear`` whose parameter holds two codes in a byte."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax() / 7
        codes = ((linear.weight.detach() / scale).round() + 8).to(torch.uint8)
        self.weight = nn.Parameter(codes[:, ::2] * 16 + codes[:, 1::2], requires_grad=False)
        self.scale = scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return hidden @ ((both.float() - 8) * self.scale).T


@pytest.mark.parametrize("make", [Packed, Packed4Bit])
def test_quantised_layers_are_measured_as_what_they_compute(make):
    prompts, responses = sequences()
    quantised, plain = policy("llama"), policy("llama")
    for block, twin in zip(quantised.model.layers, plain.model.layers, strict=True):
        packed = make(block.mlp.up_proj)
        block.mlp.up_proj = packed
        twin.mlp.up_proj.weight.data = packed(torch.eye(24)).T.contiguous()
    found, expected = engine(quantised), engine(plain)
    assert found.layers == expected.layers
    gradient = found.of(prompts, responses).gradient
    assert_close(gradient, expected.of(prompts, responses).gradient, 1e-5)


def test_a_quantised_layer_without_sizes_is_named():
    model = policy("llama")
    model.model.layers[1].mlp.up_proj = Packed(model.model.layers[1].mlp.up_proj, sizes=False)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj \(Packed\) holds weights"):
        engine(model)


def test_a_model_that_changes_outputs_in_place_is_measured():
    model = policy("llama")
    project = model.model.layers[1].self_attn.q_proj.forward

    class Clipped(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.inner(hidden).clamp_(-0.4, 0.4)

    assert project is not None
    model.model.layers[1].self_attn.q_proj = Clipped(model.model.layers[1].self_attn.q_proj)
    prompts, responses = sequences()
    found = engine(model).of(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(found.gradient[row], by_autograd(model, prompt, response)[0])


def test_adapters_that_put_tokens_before_the_prompt_are_refused():
    peft = pytest.importorskip("peft")
    setting = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="tokens of their own"):
        engine(peft.get_peft_model(policy("llama"), setting))


def second_moments(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.rand(model.get_submodule(name).weight.shape, generator=generator) + 0.01
        for name in engine(model).layers
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_scales_multiply_weight_gradients_before_they_are_projected(kind):
    model = policy(kind)
    scales = {name: 1 / (v.sqrt() + 1e-8) for name, v in second_moments(model).items()}
    prompts, responses = sequences()
    for share in (True, False):
        found = engine(model, scales=scales, share=share).of(prompts, responses)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            assert_close(found.gradient[row], scaled_by_autograd(model, scales, prompt, response))


def scaled_by_autograd(model: Any, scales: Any, prompt: list[int], response: list[int]) -> Any:
    model.zero_grad()
    logits = model.eval()(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logits.log_softmax(-1)[range(len(response)), response].sum().backward()
    kept = []
    for name in sorted(scales):
        module = model.get_submodule(name)
        gradient = module.weight.grad * scales[name]
        gradient = gradient.T if isinstance(module, Conv1D) else gradient
        left, right = layer_signs(SEED, name, *gradient.shape, RANK)
        kept.append((left.T @ gradient @ right / RANK).flatten())
    model.zero_grad()
    return Sketch(len(kept) * RANK**2, DIM, SEED)(torch.cat(kept)[None])[0].numpy()


def test_scales_that_do_not_fit_are_named():
    model = policy("llama")
    scales = second_moments(model)
    name = "model.layers.1.mlp.up_proj"
    with pytest.raises(ValueError, match=rf"{name}: its scale has shape \(3, 3\)"):
        engine(model, scales=scales | {name: torch.ones(3, 3)})
    del scales[name]
    with pytest.raises(ValueError, match=f"no scale for {name}"):
        engine(model, scales=scales)
    with pytest.raises(ValueError, match="stack of experts"):
        engine(policy("mixtral"), layers="experts", scales={})


def test_last_blocks_are_the_last_ones():
    config = transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": 11})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = {name.split(".")[2] for name in engine(model, layers="last:3").layers}
    assert found == {"8", "9", "10"}, "by number, not as text"
    every = set(engine(model).layers)
    assert set(engine(model, layers="last:20").layers) == every, "more than there are is all"
    with pytest.raises(ValueError, match="last:0"):
        engine(model, layers="last:0")


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_is_left_on_the_model(kind):
    model = policy(kind)
    by_autograd(model, [1, 2], [3])  # some models keep something of their first forward pass
    before = (model.config.to_dict(), state(model))
    attention = model.config._attn_implementation
    engine(model).of(*sequences())
    assert (model.config.to_dict(), state(model)) == before
    assert model.config._attn_implementation == attention
    assert np.isfinite(by_autograd(model, [1, 2], [3])[1])


def state(model: nn.Module) -> list[Any]:
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__))
        for m in model.modules()
    ]


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_a_model_that_accelerate_has_spread_is_measured(kind):
    accelerate = pytest.importorskip("accelerate")
    prompts, responses = sequences()
    expected = engine(policy(kind)).of(prompts, responses)
    model = policy(kind)
    base = model.base_model_prefix
    places = {f"{base}.{name}": "cpu" for name, _ in getattr(model, base).named_children()}
    spread = accelerate.dispatch_model(
        model, {**places, "lm_head": "cpu"}, main_device="cpu", force_hooks=True
    )
    found = engine(spread)
    assert found.shares
    assert_close(found.of(prompts, responses).gradient, expected.gradient, 1e-6)


def test_a_weight_that_two_layers_share_is_named():
    model = policy("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj and .*share one weight"):
        engine(model)


class Uncalled(nn.Module):
    """Uses a linear layer's weight and not the layer."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = torch.nn.functional.linear(hidden, self.mlp.gate_proj.weight)
        return self.mlp.down_proj(inner.sigmoid() * self.mlp.up_proj(hidden))


def test_a_weight_that_is_used_without_its_layer_is_named():
    model = policy("llama")
    model.model.layers[1].mlp = Uncalled(model.model.layers[1].mlp)
    for share in (None, False):
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.mlp\.gate_proj is not called"):
            engine(model, share=share)


def test_layers_that_no_text_runs_through_are_no_part_of_a_gradient():
    model = policy("llama")
    model.vision = nn.Linear(5, 7)
    assert engine(model).layers == engine(policy("llama")).layers
    with pytest.raises(ValueError, match="no text runs through"):
        engine(model, layers="vision")


def test_a_users_hook_that_changes_an_output_is_seen():
    prompts, responses = sequences()
    model = policy("llama")
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, args, out: out * 1.7)
    found = engine(model).of(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_close(found.gradient[row], by_autograd(model, prompt, response)[0])


def test_modules_that_an_adapter_trains_whole_are_one_layer():
    peft = pytest.importorskip("peft")
    setting = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["up_proj"])
    wrapped = peft.get_peft_model(policy("llama"), setting)
    assert engine(wrapped).layers == engine(policy("llama")).layers


def test_frozen_and_merged_adapters_are_left_as_they_are():
    peft = pytest.importorskip("peft")
    prompts, responses = sequences()
    wrapped = peft.get_peft_model(policy("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    wrapped.requires_grad_(False)
    measuring = engine(wrapped)
    measuring.log_probs(prompts, responses, adapters=False)
    assert not any(weight.requires_grad for weight in wrapped.parameters())
    wrapped.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        measuring.log_probs(prompts, responses, adapters=False)

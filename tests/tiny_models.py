"""Tiny models with random weights, and gradients of one response by autograd alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bpo_data.gradients.engine import ResponseGradients
from bpo_data.gradients.layers import Layer, linear_layers
from bpo_data.gradients.projection import Sketch, layer_signs
from bpo_data.scratch import Scratch, make_tokenizer

RANK, DIM, SEED, VOCABULARY = 4, 96, 11, 64
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {**LLAMA, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    # Biases in q, k, v; embeddings tied to the output head.
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    # Norms of queries and keys.
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=6),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=64
    ),
    # One layer in two sees a window shorter than the sequences; soft-capping of the logits.
    "gemma2": lambda: transformers.Gemma2Config(
        **LLAMA,
        head_dim=6,
        sliding_window=8,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=6,
    ),
    "gemma2_softcap": lambda: transformers.Gemma2Config(
        **LLAMA, head_dim=6, attn_logit_softcapping=1.0, attn_implementation="eager"
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**LLAMA, head_dim=6, sliding_window=8),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=8),
    # Other frequencies for sequences of more than 16 tokens.
    "phi3_longrope": lambda: transformers.Phi3Config(
        **LLAMA,
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 3,
            "long_factor": [4.0, 2.0, 3.0],
        },
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=12,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**EXPERTS, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **EXPERTS, num_experts=6, moe_intermediate_size=16, head_dim=6
    ),
    # Experts with biases, their weights transposed; attention with a sink.
    "gpt_oss": lambda: transformers.GptOssConfig(
        **EXPERTS,
        num_local_experts=4,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # Latent attention: keys and values of different widths; experts shared and routed.
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**EXPERTS, "num_key_value_heads": 4},
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=8,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=6,
        first_k_dense_replace=1,
    ),
    # No positions and no attention that could be replaced: whole sequences are padded.
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=4
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
    model: Any, prompt: list[int], response: list[int], layers: str = "blocks"
) -> tuple[np.ndarray, float]:
    """(dim,) gradient and log-probability from whole weight gradients of this response alone."""
    model.eval()
    model.zero_grad()
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1)[range(len(response)), response]
    log_probs.sum().backward()
    chosen = linear_layers(model, model.get_output_embeddings(), layers)
    kept = torch.cat([projected(model, layer) for layer in chosen])
    model.zero_grad()
    return Sketch(len(kept), DIM, SEED)(kept[None])[0].numpy(), log_probs.sum().item()


def projected(model: Any, layer: Layer) -> torch.Tensor:
    """(rank * rank,) of the weight gradient that autograd has left on the layer."""
    name = layer.name if layer.side else f"{layer.name}.weight"
    gradient = model.get_parameter(name).grad
    if isinstance(layer.module, transformers.pytorch_utils.Conv1D):
        gradient = gradient.T
    if getattr(layer.module, "is_transposed", False):
        gradient = gradient.transpose(1, 2)
    rows = layer.experts * layer.outputs
    left, right = layer_signs(SEED, layer.name, rows, layer.inputs, RANK)
    return (left.T @ gradient.reshape(rows, layer.inputs) @ right / RANK).flatten()


def engine(model: Any, **settings: Any) -> ResponseGradients:
    return ResponseGradients(model, **{"rank": RANK, "dim": DIM, "seed": SEED} | settings)


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    worst = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert worst.max() < relative, worst


def save_reward_model(
    folder: Path, labels: int = 1, padding: bool = True, **changes: object
) -> Path:
    """A tiny Llama with a head, random weights large enough that texts differ."""
    tokenizer = make_tokenizer(["say something yes no never perhaps so at all"] * 3, Scratch())
    shape = {**LLAMA, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = transformers.LlamaConfig(
        **shape,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id if padding else None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data.normal_(std=0.3)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

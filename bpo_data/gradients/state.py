"""What is changed on a model while it is measured, and put back; and what it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def adapters(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """PEFT's adapters are off inside the block when they are not to be ``on``."""
    layers = [m for m in model.modules() if isinstance(getattr(m, "disable_adapters", None), bool)]
    if not on and not layers:
        raise ValueError("the model has no adapters to leave out")
    if not on and any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError("the adapters are merged into the weights: unmerge them first")
    changed = [layer for layer in layers if not on and not layer.disable_adapters]
    try:
        for layer in changed:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in changed:
            layer.enable_adapters(True)


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """Without PEFT's and torch.compile's wrappers; adapters stay inside."""
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise ValueError("prompt-learning adapters put tokens of their own before the prompt")
    return model.get_base_model()


def original_length(model: PreTrainedModel) -> float:
    """Tokens above which a row's numbers depend on the longest row beside it.

    Beyond the length they were trained on, models with LongRoPE or dynamic rotary positions take
    other frequencies for the whole of a batch.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits, default=float("inf"))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no weight asks for a gradient; all as before afterwards."""
    asking = [(weight, weight.requires_grad) for weight in model.parameters()]
    training = [module for module in model.modules() if module.training]
    try:
        for weight, _ in asking:
            weight.requires_grad_(False)
        model.eval()
        yield
    finally:
        for weight, asked in asking:
            weight.requires_grad_(asked)
        for module in training:
            module.training = True


@contextmanager
def rotary(model: nn.Module) -> Iterator[None]:
    """Frequencies that a model changes with the length it sees are as before afterwards."""
    names = ("inv_freq", "max_seq_len_cached", "attention_scaling")
    changing = [module for module in model.modules() if hasattr(module, "max_seq_len_cached")]
    before = [
        {n: _copied(getattr(module, n)) for n in names if hasattr(module, n)} for module in changing
    ]
    try:
        yield
    finally:
        for module, kept in zip(changing, before, strict=True):
            for name, value in kept.items():
                setattr(module, name, value)


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value

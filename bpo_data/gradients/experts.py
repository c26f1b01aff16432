"""Mixtures of experts: the router's and the stacked experts' weight gradients, token by token.

transformers keeps all experts of a block in two tensors, (experts, outputs, inputs). A token meets
a few of them, so its rows cannot be told from the order in which a layer sees them. The forward
pass written here knows them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

NAME = "bpo_data_taps"
UP, DOWN = "up", "down"


def is_router(module: nn.Module) -> bool:
    """A module that scores experts with a matrix of its own, as transformers' routers do."""
    weight = module._parameters.get("weight")
    named = any(word in type(module).__name__.lower() for word in ("router", "gate"))
    return named and weight is not None and weight.ndim == 2


def is_stack(module: nn.Module) -> bool:
    """All experts of a block in two tensors, in the form that transformers dispatches."""
    weights = [module._parameters.get(name) for name in (_up(module), "down_proj")]
    known = hasattr(module, "is_transposed") and not getattr(module, "has_post_expert_norm", False)
    return known and all(weight is not None and weight.ndim == 3 for weight in weights)


def _up(module: nn.Module) -> str:
    return "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"


def parts(module: nn.Module) -> Iterator[tuple[str, str, int, int, int]]:
    """(side, weight's name, outputs, inputs, experts) of a stack's two weights."""
    for side, name in ((UP, _up(module)), (DOWN, "down_proj")):
        count, outputs, inputs = getattr(module, name).shape
        if module.is_transposed:
            outputs, inputs = inputs, outputs
        yield side, name, outputs, inputs, count


Tap = Callable[[nn.Module, str, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(stack, side, inputs, outputs, place) -> outputs: ``place`` (sorted calls, 2) has each row's
expert and its number among all (token, choice) pairs."""


class _Stack(threading.local):
    """Of the thread that measures."""

    def __init__(self) -> None:
        self.items: list[Tap] = []


_taps = _Stack()


@contextmanager
def tapped(model: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Stacks of experts run the forward pass below, which passes both products to ``tap``."""
    configs = {id(m.config): m.config for m in model.modules() if is_stack(m)}.values()
    before = [(config, config._experts_implementation_internal) for config in configs]
    try:
        for config, _ in before:
            config._experts_implementation_internal = NAME
        _taps.items.append(tap)
        yield
    finally:
        _taps.items.pop()
        for config, name in before:
            config._experts_implementation_internal = name


def forward(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """(tokens, width), (tokens, choices) experts and their weights -> (tokens, width)."""
    choices = chosen.shape[-1]
    expert, order = chosen.reshape(-1).sort(stable=True)
    counts = torch.bincount(expert, minlength=module.num_experts).tolist()
    place = torch.stack([expert, order], 1)

    def product(side: str, name: str, rows: torch.Tensor) -> torch.Tensor:
        weight, bias = getattr(module, name), getattr(module, f"{name}_bias", None)
        made = []
        for number, some in enumerate(rows.split(counts)):
            if len(some):
                matrix = weight[number] if module.is_transposed else weight[number].T
                out = some @ matrix
                made.append(out if bias is None else out + bias[number])
        return _taps.items[-1](module, side, rows, torch.cat(made), place)

    inner = product(UP, _up(module), hidden[order // choices])
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    out = product(DOWN, "down_proj", inner) * weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return out[back].view(len(hidden), choices, -1).sum(1).to(hidden.dtype)


ExpertsInterface.register(NAME, forward)


class _RouterTap(TorchFunctionMode):
    """While a router runs, passes its one product with its matrix to ``tap``."""

    def __init__(self, router: nn.Module, tap: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.shape = router.weight.shape
        self.tap = tap

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and args[1].shape == self.shape:
            return self.tap(args[0], out)
        return out


@contextmanager
def router_tapped(
    router: nn.Module, tap: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """While the router runs, its one product with its matrix goes through ``tap``."""
    inside: list[_RouterTap] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(_RouterTap(router, partial(tap, router)))
        inside[-1].__enter__()

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        inside.pop().__exit__(None, None, None)

    handles = [
        router.register_forward_pre_hook(enter),
        router.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Which linear layers of a model are measured, under which names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bpo_data.gradients import experts


@dataclass
class Layer:
    """A linear layer, or a stack of them (experts), whose weight gradient is measured."""

    name: str
    module: nn.Module
    outputs: int
    inputs: int
    is_head: bool = False
    side: str = ""
    """Of a stack of experts: which of its two products."""

    experts: int = 1
    """Weight matrices in the stack."""


def linear_layers(model: nn.Module, head: nn.Module, layers: str) -> list[Layer]:
    """The layers that ``layers`` picks, sorted by name.

    ``blocks`` is every linear layer but the output head, ``last:n`` those of the last n blocks,
    ``all`` is the head too, anything else a regular expression searched for in the layer's name.
    Names are those of the bare model: what PEFT or torch.compile wrap around it is taken off, so
    wrapping changes no number. Of an adapted layer (LoRA) the full base weight is measured, at the
    adapter's present state; the adapter's own matrices are left out. Embeddings, norms and biases
    are never part of a gradient.

    Measured are ``nn.Linear`` and whatever else names its ``in_features`` and ``out_features``
    (quantised layers), the ``Conv1D`` of transformers, and of a mixture of experts the router and
    the stacked weights. Raises ValueError naming a picked module that holds any other matrix, and
    when nothing is picked.
    """
    in_head = set(head.modules())
    modules = list(_bare_modules(model))
    pick = _picker(layers, [name for name, _ in modules])
    found = []
    for name, module in modules:
        if pick(name, module in in_head):
            found += _layers_of(name, module, module in in_head)
    if not found:
        raise ValueError(f"layers={layers!r} picks no linear layer of {type(model).__name__}.")
    owners: dict[int, str] = {}
    for layer in found:
        weight = getattr(layer.module, "weight", None)
        if isinstance(weight, nn.Parameter) and not layer.is_head:
            first = owners.setdefault(id(weight), layer.name)
            if first != layer.name:
                raise ValueError(
                    f"{first} and {layer.name} share one weight, whose gradient is a sum that is"
                    " not measured. Give `layers` a regular expression that leaves them out."
                )
    return sorted(found, key=lambda layer: layer.name)


def _layers_of(name: str, module: nn.Module, is_head: bool) -> list[Layer]:
    sizes = _linear_sizes(module)
    if sizes is not None:
        return [Layer(name, module, *sizes, is_head)]
    if experts.is_router(module):
        return [Layer(name, module, *_shape(module.weight))]
    if experts.is_stack(module):
        return [
            Layer(f"{name}.{weight}", module, outputs, inputs, False, side, count)
            for side, weight, outputs, inputs, count in experts.parts(module)
        ]
    if _holds_a_matrix(module):
        raise ValueError(
            f"{name} ({type(module).__name__}) holds weights of its own and is no linear layer,"
            " so its gradient cannot be measured. Give `layers` a regular expression that"
            " leaves it out, such as 'self_attn'."
        )
    return []


def _shape(weight: Any) -> tuple[int, int]:
    outputs, inputs = weight.shape
    return outputs, inputs


def _linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer of any make; None for anything else."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    return None


def _picker(layers: str, names: list[str]) -> Callable[[str, bool], bool]:
    """Whether a name (and whether it is of the output head) is picked by ``layers``."""
    if layers == "all":
        return lambda name, is_head: True
    if layers == "blocks":
        return lambda name, is_head: not is_head
    last = re.fullmatch(r"last:(\d+)", layers)
    if last is None:
        return lambda name, is_head: re.search(layers, name) is not None
    blocks = {int(found[1]) for name in names if (found := _BLOCK.search(name))}
    kept = set(sorted(blocks, reverse=True)[: int(last[1])])
    return lambda name, is_head: (
        not is_head and (found := _BLOCK.search(name)) is not None and int(found[1]) in kept
    )


_BLOCK = re.compile(r"\.(\d+)\.")


def _bare_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, under its name in the bare model, without adapters' own modules."""
    adapters: set[nn.Module] = set()
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module):
            adapters |= {module, *module.modules()} - set(base.modules())
        if isinstance(getattr(module, "original_module", None), nn.Module):
            adapters |= set(module.modules()) - {module}
        if module not in adapters:
            bare = name.replace("_orig_mod.", "")
            yield re.sub(r"\.base_layer\b", "", bare), module


def _holds_a_matrix(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    trained = any(isinstance(weight, nn.Parameter) and weight.ndim > 1 for weight in own)
    quantised = any("weight" in name for name, _ in module.named_buffers(recurse=False))
    return not isinstance(module, nn.Embedding) and (trained or quantised)

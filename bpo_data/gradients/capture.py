"""Which layers are measured, and the hooks that sum their projected gradients.

For a linear layer with input ``a_t`` and output gradient ``d_t`` the weight gradient of a sequence
is ``sum_t d_t a_t^T``. Its projection ``sum_t (L d_t)(R a_t)^T`` needs only the two projected
vectors of each token, so the weight gradient itself is never formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bpo_data.gradients.projection import layer_signs


@dataclass
class Layer:
    """A linear layer whose weight gradient (outputs x inputs) is measured."""

    name: str
    module: nn.Module
    outputs: int
    inputs: int
    is_head: bool


def linear_layers(model: nn.Module, head: nn.Module, layers: str) -> list[Layer]:
    """The layers that ``layers`` picks, sorted by name.

    ``blocks`` is every linear layer but the output head, ``all`` is the head too, anything else a
    regular expression searched for in the layer's name. Names are those of the bare model: what
    PEFT or torch.compile wrap around it is taken off, so wrapping changes no number. Of an adapted
    layer (LoRA) the full base weight is measured, at the adapter's present state; the adapter's
    own matrices are left out. Embeddings, norms and biases are never part of a gradient.

    Raises ValueError naming a picked module that holds a weight matrix and is neither ``nn.Linear``
    (or a subclass, such as 4-bit ones) nor the ``Conv1D`` of transformers, and when nothing is
    picked.
    """
    in_head = set(head.modules())
    found = []
    for name, module in _bare_modules(model):
        is_head = module in in_head
        if not _picked(name, is_head, layers):
            continue
        if isinstance(module, Conv1D):
            found.append(Layer(name, module, module.nf, module.nx, is_head))
        elif isinstance(module, nn.Linear):
            sizes = module.out_features, module.in_features
            found.append(Layer(name, module, *sizes, is_head))
        elif _holds_a_matrix(module):
            raise ValueError(
                f"{name} ({type(module).__name__}) holds weights of its own and is no linear layer,"
                " so its gradient cannot be measured. Give `layers` a regular expression that"
                " leaves it out, such as 'self_attn'."
            )
    if not found:
        raise ValueError(f"layers={layers!r} picks no linear layer of {type(model).__name__}.")
    return sorted(found, key=lambda layer: layer.name)


def _picked(name: str, is_head: bool, layers: str) -> bool:
    if layers == "all":
        return True
    return not is_head if layers == "blocks" else re.search(layers, name) is not None


def _bare_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, under its name in the bare model, without adapters' own modules."""
    adapters: set[nn.Module] = set()
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module):
            adapters |= {module, *module.modules()} - set(base.modules())
        if module not in adapters:
            bare = name.replace("_orig_mod.", "").removeprefix("base_model.model.")
            yield re.sub(r"\.base_layer\b", "", bare), module


def _holds_a_matrix(module: nn.Module) -> bool:
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Embedding) and any(weight.ndim > 1 for weight in own)


class Capture:
    """Hooks that add up ``sum_t (L d_t)(R a_t)^T`` for every sequence and layer of a batch."""

    def __init__(self, layers: list[Layer], rank: int, seed: int) -> None:
        self.layers = layers
        self.rank = rank
        self.sums = torch.empty(0)
        """(sequences, layers, rank, rank) float32, filled by a backward pass after ``begin``."""
        self._signs = [
            layer_signs(seed, layer.name, layer.outputs, layer.inputs, rank) for layer in layers
        ]

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """The hooks are on the model inside the block and gone after it, whatever happens."""
        handles = []
        try:
            for number, layer in enumerate(self.layers):
                handles.append(layer.module.register_forward_hook(self._hook(number, layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.sums = torch.empty(0)

    def begin(self, tokens: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Forget the last batch: ``tokens`` is the next one, (sequences, length).

        The output head sees only the tokens at (``rows``, ``positions``), as (1, count, width).
        """
        shape = (len(tokens), len(self.layers), self.rank, self.rank)
        self.sums = torch.zeros(shape, device=tokens.device)
        self._length = tokens.shape[1]
        self._rows, self._positions = rows, positions

    def _hook(self, number: int, layer: Layer) -> Callable[..., torch.Tensor]:
        def after_forward(module: nn.Module, args: tuple[Any, ...], out: Any) -> torch.Tensor:
            left, right = (side.to(args[0]) for side in self._signs[number])
            self._signs[number] = left, right
            inputs = self._by_sequence(layer, args[0].detach() @ right)
            if not out.requires_grad:
                # The first layer measured: nothing below it needs a gradient. The copy is for
                # models that change the output in place, which a leaf does not allow.
                out = out.requires_grad_(True).clone()

            def after_backward(gradient: torch.Tensor) -> None:
                outputs = self._by_sequence(layer, gradient @ left)
                product = torch.bmm(outputs.transpose(1, 2), inputs)
                self.sums[:, number] += product.to(self.sums.device)

            out.register_hook(after_backward)
            return out

        return after_forward

    def _by_sequence(self, layer: Layer, projected: torch.Tensor) -> torch.Tensor:
        """Projected tokens as the layer saw them -> (sequences, tokens, rank) float32."""
        sequences = len(self.sums)
        projected = projected.float()
        if layer.is_head:
            spread = projected.new_zeros(sequences, self._length, self.rank)
            place = self._rows.to(spread.device), self._positions.to(spread.device)
            spread[place] = projected.view(-1, self.rank)
            return spread
        whole = projected.shape[0] == sequences and projected.ndim == 3
        if not whole and projected.numel() != sequences * self._length * self.rank:
            raise ValueError(
                f"{layer.name} sees a selection of the tokens (shape {tuple(projected.shape[:-1])}"
                f" of {sequences} x {self._length}), as an expert does, so they cannot be told"
                " apart by sequence. Give `layers` a regular expression that leaves it out."
            )
        return projected.reshape(sequences, -1, self.rank)

"""Taps on layers that sum their projected gradients.

For a linear layer with input ``a_t`` and output gradient ``d_t`` the weight gradient of a sequence
is ``sum_t d_t a_t^T``. Its projection ``sum_t (L d_t)(R a_t)^T`` needs only the two projected
vectors of each token, so the weight gradient itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bpo_data.gradients import experts
from bpo_data.gradients.layers import Layer
from bpo_data.gradients.projection import layer_signs
from bpo_data.gradients.taps import ExpertsTap, ScaledTap, Tap, by_segment


@dataclass(eq=False)
class Port:
    """What a layer's tap has to know of the sequence that runs through it.

    It hangs on the module as an attribute: torch.compile then takes its tensors as inputs and
    compiles one graph for all blocks.
    """

    layer: Layer
    left: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor | None
    grid: torch.Tensor
    tokens: int
    sink: torch.Tensor
    copy: bool = False
    met: bool = False
    """Whether any tokens have run through it."""

    family: Family | None = None


@dataclass(eq=False)
class Family:
    """Layers that read the same tensor, as queries, keys and values do: one product for all."""

    ports: list[Port]
    source: torch.Tensor | None = None
    """What was read last."""

    pieces: list[torch.Tensor] = field(default_factory=list)
    """It, projected for each port that has not asked yet."""

    def inside(self, port: Port, inputs: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """(segments, longest, rank) float32 projected inputs of one of the ports."""
        if self.source is not inputs:
            right = torch.cat([member.right for member in self.ports], 1)
            made = by_segment((flat @ right).float(), port.grid)
            self.source, self.pieces = inputs, list(made.split(port.right.shape[1], -1))
        found = self.pieces[self.ports.index(port)]
        if port is self.ports[-1]:
            self.source, self.pieces = None, []
        return found


class Capture:
    """Taps that add up ``sum_t (L d_t)(R a_t)^T`` for every segment of a batch and every layer.

    ``scales`` has for layers' names what to multiply their weight gradients with, number by number:
    (outputs, inputs). Such a gradient has to be formed, one segment and layer at a time.
    """

    def __init__(
        self, layers: list[Layer], rank: int, seed: int, scales: Mapping[str, torch.Tensor] | None
    ) -> None:
        self.layers = layers
        self.rank = rank
        self.ports = [_port(layer, rank, seed, scales) for layer in layers]
        self.head = next((n for n, layer in enumerate(layers) if layer.is_head), None)

    @contextmanager
    def hooks(self, model: Any) -> Iterator[None]:
        """The taps are on the model inside the block and gone after it, whatever happens."""
        stacked = [port for port in self.ports if port.layer.side]
        with ExitStack() as stack:
            for port in self.ports:
                module = port.layer.module
                name = f"{PORT}{port.layer.side}"
                setattr(module, name, port)
                stack.callback(delattr, module, name)
                if port.layer.side:
                    continue
                if experts.is_router(module):
                    stack.enter_context(experts.router_tapped(module, _tap))
                else:
                    stack.callback(module.register_forward_hook(_after, prepend=True).remove)
            if stacked:
                stack.enter_context(experts.tapped(model, _tap_experts))
            try:
                yield
            finally:
                for port in self.ports:
                    port.sink = port.grid = torch.empty(0)
                    if port.family:
                        port.family.source, port.family.pieces = None, []

    @contextmanager
    def families(self) -> Iterator[None]:
        """Learn, from what runs inside the block, which layers read the same tensor."""
        seen: list[tuple[Port, torch.Tensor]] = []

        def look(port: Port) -> Callable[..., None]:
            return lambda module, args: seen.append((port, args[0]))

        handles = [
            port.layer.module.register_forward_pre_hook(look(port))
            for port in self.ports
            if not port.layer.side and port.scale is None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for _, group in groupby(seen, key=lambda one: id(one[1])):
            ports = [port for port, _ in group]
            if len(ports) > 1 and len({port.right.dtype for port in ports}) == 1:
                family = Family(ports)
                for port in ports:
                    port.family = family

    def drop_unmet(self) -> None:
        """Forget layers that no text runs through, such as those of a vision tower.

        Raises ValueError when none is left.
        """
        self.ports = [port for port in self.ports if port.met]
        if not self.ports:
            raise ValueError("no text runs through any of the picked layers")
        self.layers = [port.layer for port in self.ports]
        self.head = next((n for n, layer in enumerate(self.layers) if layer.is_head), None)

    def unmet_weights(self) -> dict[str, torch.Tensor]:
        """Weights, that could have a gradient, of layers that nothing has run through."""
        weights = {
            p.layer.name: getattr(p.layer.module, "weight", None) for p in self.ports if not p.met
        }
        return {
            name: weight
            for name, weight in weights.items()
            if isinstance(weight, torch.Tensor) and weight.is_floating_point()
        }

    def copy_outputs(self) -> None:
        """Give the model a copy of each output, since it changes some of them in place."""
        for port in self.ports:
            port.copy = True

    def begin(self, grid: torch.Tensor, tokens: int) -> list[torch.Tensor]:
        """New sums for a sequence of ``tokens`` tokens: a (segments, rank, rank) float32 for each
        layer, whose gradient a backward pass is to give.

        ``grid`` (segments, longest) tells where each segment's tokens lie, and is ``tokens`` past
        its end.
        """
        grids: dict[torch.device, torch.Tensor] = {}
        for port in self.ports:
            device = device_of(port.layer.module)
            if device not in grids:
                grids[device] = _dynamic(grid.to(device), 2)
            shape = (len(grid), self.rank, self.rank)
            port.sink = _dynamic(torch.zeros(shape, device=device, requires_grad=True), 1)
            port.grid, port.tokens = grids[device], tokens
        return [port.sink for port in self.ports]

    def begin_head(self, grid: torch.Tensor, chunk: slice) -> torch.Tensor | None:
        """As ``begin`` for the tokens in ``chunk``, which the output head sees next.

        ``grid`` is that of all tokens it is to see. None where the head is not measured.
        """
        if self.head is None:
            return None
        port = self.ports[self.head]
        port.tokens = chunk.stop - chunk.start
        within = (grid >= chunk.start) & (grid < chunk.stop)
        port.grid = torch.where(within, grid - chunk.start, port.tokens).to(port.sink.device)
        port.sink = torch.zeros_like(port.sink, requires_grad=True)
        return port.sink


PORT = "_bpo_data_port"


def _after(module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    return _tap(module, args[0], out)


def _tap(module: nn.Module, inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    port: Port = getattr(module, PORT)
    flat = inputs.detach().reshape(-1, port.right.shape[0])
    if not torch.compiler.is_compiling():
        _check(port, flat)
    _same_dtype(port, flat, out)
    port.met = True
    if port.scale is not None:
        out = ScaledTap.apply(out, flat, port.left, port.right, port.scale, port.grid, port.sink)
    else:
        if port.family is None:
            inside = by_segment((flat @ port.right).float(), port.grid)
        else:
            inside = port.family.inside(port, inputs, flat)
        out = Tap.apply(out, inside, port.left, port.grid, port.sink)
    return out.clone() if port.copy else out


def _dynamic(tensor: torch.Tensor, sizes: int) -> torch.Tensor:
    """Tell torch.compile that the first sizes change from batch to batch."""
    for size in range(sizes):
        torch._dynamo.maybe_mark_dynamic(tensor, size)
    return tensor


def _same_dtype(port: Port, inputs: torch.Tensor, out: torch.Tensor) -> None:
    """Signs are exact in every dtype, so they take that of what they meet, once."""
    if port.right.dtype != inputs.dtype or port.left.dtype != out.dtype:
        port.left, port.right = port.left.to(out.dtype), port.right.to(inputs.dtype)


def _check(port: Port, flat: torch.Tensor) -> None:
    if len(flat) != port.tokens:
        raise ValueError(
            f"{port.layer.name} sees a selection of the tokens ({len(flat)} of {port.tokens}), as"
            " an expert does, so they cannot be told apart by sequence. Give `layers` a regular"
            " expression that leaves it out."
        )


def _tap_experts(
    module: nn.Module, side: str, inputs: torch.Tensor, out: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    port: Port | None = getattr(module, f"{PORT}{side}", None)
    if port is None:
        return out
    _same_dtype(port, inputs, out)
    port.met = True
    choices = len(place) // port.tokens
    # Every choice of a token is a token of its own; past the end stays past the end.
    spread = torch.arange(choices, device=place.device)
    grid = (port.grid[..., None] * choices + spread).flatten(1).clamp(max=len(place))
    back = place[:, 1].argsort()
    inside = by_segment((inputs.detach() @ port.right).float()[back], grid)
    return ExpertsTap.apply(out, inside, port.left, grid, place, back, port.sink)


def _port(layer: Layer, rank: int, seed: int, scales: Mapping[str, torch.Tensor] | None) -> Port:
    """Signs of the layer on its device: (outputs, rank) and (inputs, rank), a stack's first is
    (experts, outputs, rank).

    Experts share the signs of their inputs: with independent ones for their outputs, the sum of
    their projections still has the inner products of the whole stack on average.
    """
    left, right = layer_signs(seed, layer.name, layer.experts * layer.outputs, layer.inputs, rank)
    device, scale = device_of(layer.module), None
    if layer.side:
        left = left.view(layer.experts, layer.outputs, rank)
    if scales is not None:
        scale = _scale_of(layer, scales).to(device)
    none = torch.empty(0)
    return Port(layer, left.to(device), right.to(device), scale, none, 0, none)


def _scale_of(layer: Layer, scales: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if layer.side:
        raise ValueError(f"{layer.name} is a stack of experts, whose gradients cannot be scaled")
    scale = scales.get(layer.name)
    if scale is None:
        raise ValueError(f"there is no scale for {layer.name}")
    if isinstance(layer.module, Conv1D):
        scale = scale.T
    if scale.shape != (layer.outputs, layer.inputs):
        shape = tuple(scale.shape)
        raise ValueError(f"{layer.name}: its scale has shape {shape}, its weight another")
    return scale.float()


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, which accelerate's hooks know better than its weights."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if place is not None:
        return torch.device(place)
    return next(iter([*module.parameters(), *module.buffers()])).device

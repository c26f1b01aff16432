"""Attention in which the responses to a prompt share its keys and values.

It takes the place of a transformers model's own attention while a batch is measured. Nothing of
size tokens x tokens outlives a call, and in the backward pass every response leaves its own
gradient on the prompt's keys and values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from bpo_data.gradients.kernels import (
    Kernel,
    Prompt,
    flash,
    flash_backward,
    joined,
    plain_backward,
)
from bpo_data.gradients.packing import Tile

NAME = "bpo_data_shared_prompt"


class CannotShare(Exception):
    """The model's attention does something that is not done here."""


class Enough(Exception):
    """The last layer's keys and values are there: nothing above them is needed."""


@dataclass
class Call:
    """One forward pass: over the shared tokens (``prompts`` is None) or over the responses."""

    tiles: tuple[Tile, ...]
    prompts: Call | None = None
    passes: int = 0
    """The most responses that one prompt of the batch has."""

    last: int | None = None
    """Stop when so many layers have been met; None goes through."""

    keys: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Each layer's keys and values, (1, heads, tokens, width)."""

    gradients: list[Prompt | None] = field(default_factory=list)
    """Each layer's (passes, heads, shared tokens, width) gradients on the prompts' keys and values;
    None where nothing below those keys is measured."""

    layer: int = 0

    def prompt_side(self) -> Prompt | None:
        """The prompts' keys and values at this layer, and a place for their gradients."""
        if self.prompts is None:
            return None
        key, value = self.prompts.keys[self.layer]
        wanted = key.requires_grad or value.requires_grad
        self.gradients.append(
            (self._zeros(key), self._zeros(value)) if wanted and torch.is_grad_enabled() else None
        )
        return key.detach(), value.detach()

    def _zeros(self, side: torch.Tensor) -> torch.Tensor:
        return side.new_zeros(self.passes, *side.shape[1:])

    def upstream(self, own: Call, turn: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The prompts' keys and values below which something is measured, and the gradients that
        each prompt's response number ``turn`` left on them in ``own``."""
        pairs = [
            (side, place[turn : turn + 1])
            for layer, places in zip(self.keys, own.gradients, strict=True)
            for side, place in zip(layer, places or (), strict=False)
            if side.requires_grad
        ]
        return [side for side, _ in pairs], [place for _, place in pairs]


class _Stack(threading.local):
    """Of the thread that measures."""

    def __init__(self) -> None:
        self.items: list[Call] = []


_running = _Stack()


@contextmanager
def running(model: PreTrainedModel, call: Call) -> Iterator[Call]:
    """The model's attention is this one inside the block."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    nested = [c for top in configs.values() for c in (top, *_parts(top))]
    before = [(c, c._attn_implementation_internal) for c in nested]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        _running.items.append(call)
        yield call
    finally:
        _running.items.pop()
        for config, name in before:
            config._attn_implementation_internal = name


def _parts(config: Any) -> Iterator[Any]:
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield part


@torch.compiler.disable
def shared_prompt_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, width) queries, keys and values -> (1, tokens, heads, width)."""
    if others.get("position_bias") is not None:
        raise CannotShare("a bias of its own")
    if attention_mask is not None or (sliding_window is None and _should_slide(module)):
        raise CannotShare("a mask of its own")
    call = _running.items[-1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = Kernel(scale, sliding_window, softcap, None if s_aux is None else s_aux.detach())
    prompt = call.prompt_side()
    if call.prompts is None:
        call.keys.append((key, value))
        if call.last == len(call.keys):
            raise Enough
    place = call.gradients[call.layer] if prompt else None
    call.layer += 1
    return _Shared.apply(query, key, value, call.tiles, kernel, prompt, place), None


def _should_slide(module: nn.Module) -> bool:
    """Whether the configuration gives this layer a window, so that its call should have one."""
    config: Any = getattr(module, "config", None)
    number = getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or number is None:
        return getattr(config, "sliding_window", None) is not None
    return kinds[number] == "sliding_attention"


AttentionInterface.register(NAME, shared_prompt_attention)


class _Shared(torch.autograd.Function):
    """All tiles of a layer. Written by hand so that slicing a batch into tiles costs nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tiles: tuple[Tile, ...],
        kernel: Kernel,
        prompt: Prompt | None,
        place: Prompt | None,
    ) -> torch.Tensor:
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        sums = []
        for tile in tiles:
            q, k, v = (_cut(x, tile) for x in (query, key, value))
            before = _prefix(prompt, tile)
            if kernel.fused(q, v, _reach(tile)):
                found, log_sum = flash(q, k, v, before, kernel)
            else:
                k, v = joined(k, v, before)
                found, log_sum = kernel.plain(q, k, v), None
            sums.append(log_sum)
            out[0, tile.start : tile.end] = _flat(found, tile).transpose(0, 1)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.rest = tiles, kernel, prompt, place
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        tiles, kernel, prompt, place = ctx.rest
        made = [torch.empty_like(x) for x in (query, key, value)]
        gradient, out = gradient.transpose(1, 2), out.transpose(1, 2)
        for tile, log_sum in zip(tiles, sums, strict=True):
            q, k, v, g = (_cut(x, tile) for x in (query, key, value, gradient))
            before = _prefix(prompt, tile)
            if log_sum is not None:
                found = flash_backward(g, q, k, v, before, _cut(out, tile), log_sum, kernel.scale)
            else:
                found = plain_backward(g, q, k, v, before, kernel)
            for whole, part in zip(made, found[:3], strict=True):
                whole[0, :, tile.start : tile.end] = _flat(part, tile)
            if before is not None and place is not None:
                turns = slice(tile.first, tile.first + len(tile.lengths))
                for whole, part in zip(place, found[3:], strict=True):
                    whole[turns, :, slice(*tile.prefix)] = part
        return (*made, None, None, None, None)


def _width(tile: Tile) -> int:
    return tile.prefix[1] - tile.prefix[0]


def _reach(tile: Tile) -> int:
    return _width(tile) + max(tile.lengths)


def _cut(whole: torch.Tensor, tile: Tile) -> torch.Tensor:
    """(1, heads, tokens, width) -> (rows, heads, longest, width), zeros after a row's end."""
    part = whole[0, :, tile.start : tile.end]
    rows, longest = len(tile.lengths), max(tile.lengths)
    if rows * longest == part.shape[1]:
        return part.unflatten(1, (rows, longest)).transpose(0, 1)
    padded = part.new_zeros(rows, longest, part.shape[0], part.shape[2])
    padded[_ends(tile, whole.device)] = part.transpose(0, 1)
    return padded.transpose(1, 2)


def _flat(rows: torch.Tensor, tile: Tile) -> torch.Tensor:
    """(rows, heads, longest, width) -> (heads, tokens, width): the way back."""
    if rows.shape[0] * rows.shape[2] == sum(tile.lengths):
        return rows.transpose(0, 1).flatten(1, 2)
    return rows.transpose(1, 2)[_ends(tile, rows.device)].transpose(0, 1)


def _ends(tile: Tile, device: torch.device) -> torch.Tensor:
    """(rows, longest) bool: where a row of the tile still has tokens."""
    lengths = torch.tensor(tile.lengths, device=device)
    return torch.arange(max(tile.lengths), device=device) < lengths[:, None]


def _prefix(prompt: Prompt | None, tile: Tile) -> Prompt | None:
    """The tile's prompt, once for every row: (rows, heads, shared tokens, width) views."""
    if prompt is None or not _width(tile):
        return None
    rows = len(tile.lengths)
    key, value = (x[:, :, slice(*tile.prefix)].expand(rows, -1, -1, -1) for x in prompt)
    return key, value

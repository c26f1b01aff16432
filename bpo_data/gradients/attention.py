"""Attention in which the responses to a prompt share its keys and values.

It takes the place of a transformers model's own attention while a batch is measured. Nothing of
size tokens x tokens outlives a call, and in the backward pass every response leaves its own
gradient on the prompt's keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

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

    gradients: list[tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=list)
    """Each layer's (passes, heads, shared tokens, width) gradients on the prompts' keys and values;
    None where nothing below those keys is measured."""

    layer: int = 0

    def prompt_side(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The prompts' keys and values at this layer, and a place for their gradients."""
        if self.prompts is None:
            return None
        key, value = self.prompts.keys[self.layer]
        wanted = key.requires_grad or value.requires_grad
        self.gradients.append(
            tuple(x.new_zeros(self.passes, *x.shape[1:]) for x in (key, value))  # type: ignore[arg-type]
            if wanted and torch.is_grad_enabled()
            else None
        )
        return key.detach(), value.detach()


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


_running: list[Call] = []


@contextmanager
def running(model: PreTrainedModel, call: Call) -> Iterator[Call]:
    """The model's attention is this one inside the block."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    nested = [c for top in configs.values() for c in (top, *_parts(top))]
    before = [(c, c._attn_implementation_internal) for c in nested]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        _running.append(call)
        yield call
    finally:
        _running.pop()
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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, width) queries, keys and values -> (1, tokens, heads, width)."""
    for name in ("s_aux", "position_bias"):
        if others.get(name) is not None:
            raise CannotShare(name)
    if attention_mask is not None:
        raise CannotShare("a mask of its own")
    call = _running[-1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = Kernel(scale, sliding_window, softcap)
    prompt = call.prompt_side()
    if call.prompts is None:
        call.keys.append((key, value))
        if call.last == len(call.keys):
            raise Enough
    place = call.gradients[call.layer] if prompt else None
    call.layer += 1
    return _Shared.apply(query, key, value, call.tiles, kernel, prompt, place), None


AttentionInterface.register(NAME, shared_prompt_attention)


@dataclass(frozen=True)
class Kernel:
    """Softmax attention of one tile: rows of queries to their prompt and, causally, themselves."""

    scale: float
    window: int | None
    softcap: float | None

    def fused(self, q: torch.Tensor, v: torch.Tensor, reach: int) -> bool:
        """torch's flash attention on the CPU gives what merging needs: the log of its sums."""
        return (
            q.device.type == "cpu"
            and self.softcap is None
            and (self.window is None or reach <= self.window)
            and q.shape[-1] == v.shape[-1]
            and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        )

    def plain(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix: int
    ) -> torch.Tensor:
        """(rows, heads, m, width) queries, prefix + m keys -> (rows, heads, m, width)."""
        k, v = _all_heads(k, q), _all_heads(v, q)
        count, reach = q.shape[2], k.shape[2]
        if self.softcap is None and (self.window is None or reach <= self.window):
            mask = causal_lower_right(count, reach) if prefix else None
            return scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=not prefix, scale=self.scale
            )
        place = torch.arange(prefix, reach, device=q.device)[:, None]
        other = torch.arange(reach, device=q.device)
        seen = other <= place
        if self.window is not None:
            seen &= other > place - self.window
        if self.softcap is None:
            return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        scores = (q @ k.transpose(2, 3)) * self.scale
        scores = (scores / self.softcap).tanh() * self.softcap
        scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


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
        prompt: tuple[torch.Tensor, torch.Tensor] | None,
        place: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        sums = []
        for tile in tiles:
            q, k, v = (_cut(x, tile) for x in (query, key, value))
            before = _prefix(prompt, tile)
            if kernel.fused(q, v, _reach(tile)):
                found, log_sum = _flash(q, k, v, before, kernel.scale)
            else:
                k, v = _joined(k, v, before)
                found, log_sum = kernel.plain(q, k, v, _width(tile)), None
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
                found = _flash_backward(g, q, k, v, before, _cut(out, tile), log_sum, kernel.scale)
            else:
                found = _plain_backward(g, q, k, v, before, kernel)
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


def _prefix(
    prompt: tuple[torch.Tensor, torch.Tensor] | None, tile: Tile
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The tile's prompt, once for every row: (rows, heads, shared tokens, width) views."""
    if prompt is None or not _width(tile):
        return None
    rows = len(tile.lengths)
    key, value = (x[:, :, slice(*tile.prefix)].expand(rows, -1, -1, -1) for x in prompt)
    return key, value


def _all_heads(keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Grouped-query attention: every head of keys (or values) serves several queries."""
    times = query.shape[1] // keys.shape[1]
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)


def _own_heads(gradient: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    times = gradient.shape[1] // keys.shape[1]
    return gradient if times == 1 else gradient.unflatten(1, (-1, times)).sum(2)


def _joined(
    k: torch.Tensor, v: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if before is None:
        return k, v
    return torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the prompt and attention to itself, merged by the logs of their sums."""
    own, own_sum = _forward(q, _all_heads(k, q), _all_heads(v, q), 0.0, True, scale=scale)
    if before is None:
        return own, own_sum
    keys, values = (_all_heads(x, q) for x in before)
    shared, shared_sum = _forward(q, keys, values, 0.0, False, scale=scale)
    both = torch.logaddexp(own_sum, shared_sum)
    share = (shared_sum - both).exp()[..., None]
    return torch.lerp(own.float(), shared.float(), share).to(q.dtype), both


def _flash_backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients on q, k, v and, with a prompt, on its keys and values.

    With the merged output and sum, each half's own backward gives its part of the whole one's.
    """
    half = _half_backward if q.dtype == torch.float32 else _half_backward_in_16_bits
    keys, values = _all_heads(k, q), _all_heads(v, q)
    dq, dk, dv = half(g, q, keys, values, out, log_sum, True, scale)
    own = _own_heads(dk, k), _own_heads(dv, v)
    if before is None:
        return dq, *own
    keys, values = (_all_heads(x, q) for x in before)
    more, dk, dv = half(g, q, keys, values, out, log_sum, False, scale)
    return dq + more, *own, _own_heads(dk, before[0]), _own_heads(dv, before[1])


def _half_backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    return _backward(g, q, k, v, out, log_sum, 0.0, causal, scale=scale)


SCORES = 1 << 22
"""Attention scores held at once in the backward pass."""


def _half_backward_in_16_bits(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """The same as ``_half_backward`` in products of matrices, three times as fast as torch's.

    What is to be taken off a product (the log of the sum from the scores, ``g . out`` from
    ``g . v``) goes into it as three more columns, so that only the difference is rounded.
    """
    taken = _in_three(log_sum), _in_three((g.float() * out.float()).sum(-1))
    scaled = torch.cat([q * scale, taken[0].to(q.dtype)], -1)
    upward = torch.cat([g, taken[1].to(q.dtype)], -1)
    minus = k.new_full((1, 1, 1, 3), -1).expand(*k.shape[:3], 3)
    keys = torch.cat([k, minus], -1).transpose(2, 3)
    values = torch.cat([v, minus], -1).transpose(2, 3)
    size = max(1, SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    many = size < q.shape[2]
    if many:
        dk, dv = dk.float(), dv.float()
    for start in range(0, q.shape[2], size):
        rows = slice(start, start + size)
        seen = slice(0, min(start + size, k.shape[2]) if causal else k.shape[2])
        shares = (scaled[:, :, rows] @ keys[..., seen]).exp_()
        if causal:
            shares.tril_(start)
        slopes = (upward[:, :, rows] @ values[..., seen]).mul_(shares)
        dq[:, :, rows] = (slopes @ k[:, :, seen]).mul_(scale)
        dk[:, :, seen] += slopes.transpose(2, 3) @ q[:, :, rows]
        dv[:, :, seen] += shares.transpose(2, 3) @ g[:, :, rows]
    return dq, dk.mul_(scale).to(k.dtype), dv.to(v.dtype)


def _in_three(numbers: torch.Tensor) -> torch.Tensor:
    """(...,) float32 -> (..., 3): addends that bfloat16 holds, and whose sum float32 cannot tell
    from ``numbers``."""
    parts = []
    for _ in range(3):
        parts.append(numbers.bfloat16().float())
        numbers = numbers - parts[-1]
    return torch.stack(parts, -1)


def _plain_backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    kernel: Kernel,
) -> tuple[torch.Tensor, ...]:
    """As above through autograd, computing the tile again: no more than a tile is held."""
    with torch.enable_grad():
        parts = [x.detach().requires_grad_(True) for x in (q, k, v, *(before or ()))]
        joined = _joined(parts[1], parts[2], (parts[3], parts[4]) if before else None)
        out = kernel.plain(parts[0], *joined, 0 if before is None else before[0].shape[2])
        return torch.autograd.grad(out, parts, g)

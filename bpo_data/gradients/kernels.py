"""Attention of one tile, forward and backward: rows of queries to their prompt and themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

Prompt = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a tile's prompt, once for every row: (rows, heads, shared tokens, width)."""


@dataclass(frozen=True)
class Kernel:
    """Softmax attention of one tile: rows of queries to their prompt and, causally, themselves."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None = None
    """(heads,): a score in every head that takes its share of attention and gives nothing."""

    def fused(self, q: torch.Tensor, v: torch.Tensor, reach: int) -> bool:
        """torch's flash attention on the CPU gives what merging needs: the log of its sums."""
        return (
            q.device.type == "cpu"
            and self.softcap is None
            and (self.window is None or reach <= self.window)
            and q.shape[-1] == v.shape[-1]
            and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        )

    def blocks(self, q: torch.Tensor, reach: int) -> list[tuple[slice, slice]]:
        """Queries to take at once and the keys they see: all, where torch's attention forms no
        scores, else so many that their scores stay few."""
        count, prefix = q.shape[2], reach - q.shape[2]
        window = reach if self.window is None else self.window
        simple = self.softcap is None and self.sinks is None and reach <= window
        size = count if simple else max(1, SCORES // (q.shape[0] * q.shape[1] * reach))
        ends = [(start, min(start + size, count)) for start in range(0, count, size)]
        return [
            (slice(start, end), slice(max(0, prefix + start + 1 - window), prefix + end))
            for start, end in ends
        ]

    def plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(rows, heads, m, width) queries, m keys or more -> (rows, heads, m, width)."""
        parts = [
            self._plain(q[:, :, rows], k[:, :, seen], v[:, :, seen])
            for rows, seen in self.blocks(q, k.shape[2])
        ]
        return torch.cat(parts, 2)

    def _plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        prefix = k.shape[2] - q.shape[2]
        k, v = _all_heads(k, q), _all_heads(v, q)
        count, reach = q.shape[2], k.shape[2]
        plain = self.softcap is None and self.sinks is None
        if plain and (self.window is None or reach <= self.window):
            mask = causal_lower_right(count, reach) if prefix else None
            return scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=not prefix, scale=self.scale
            )
        place = torch.arange(prefix, reach, device=q.device)[:, None]
        other = torch.arange(reach, device=q.device)
        seen = other <= place
        if self.window is not None:
            seen &= other > place - self.window
        if plain:
            return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        scores = (q @ k.transpose(2, 3)) * self.scale
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        scores = scores.masked_fill(~seen, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], -1)
        shares = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        return shares[..., :reach] @ v


def _all_heads(keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Grouped-query attention: every head of keys (or values) serves several queries."""
    times = query.shape[1] // keys.shape[1]
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)


def _own_heads(gradient: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    times = gradient.shape[1] // keys.shape[1]
    return gradient if times == 1 else gradient.unflatten(1, (-1, times)).sum(2)


def joined(
    k: torch.Tensor, v: torch.Tensor, before: Prompt | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if before is None:
        return k, v
    return torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: Prompt | None,
    kernel: Kernel,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the prompt and attention to itself, merged by the logs of their sums."""
    scale = kernel.scale
    out, total = _forward(q, _all_heads(k, q), _all_heads(v, q), 0.0, True, scale=scale)
    if before is not None:
        keys, values = (_all_heads(x, q) for x in before)
        shared, shared_sum = _forward(q, keys, values, 0.0, False, scale=scale)
        both = torch.logaddexp(total, shared_sum)
        share = (shared_sum - both).exp()[..., None]
        out, total = torch.lerp(out.float(), shared.float(), share).to(q.dtype), both
    if kernel.sinks is not None:
        both = torch.logaddexp(total, kernel.sinks.float()[:, None])
        out, total = (out * (total - both).exp()[..., None]).to(q.dtype), both
    return out, total


def flash_backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: Prompt | None,
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
    ``g . v``) goes into it as three more columns, so that only the difference is rounded. The
    scale comes after it unless it is a power of two: queries times another would be rounded too.
    """
    before, after = (scale, 1.0) if math.frexp(scale)[0] == 0.5 else (1.0, scale)
    largest = (log_sum / after).abs().max()
    if q.dtype == torch.float16 and largest > 60_000:
        return _half_backward(g, q, k, v, out, log_sum, causal, scale)
    scaled = torch.cat([q * before, _in_three(log_sum / after, q.dtype)], -1)
    upward = torch.cat([g, _in_three((g.float() * out.float()).sum(-1), q.dtype)], -1)
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
        scores = scaled[:, :, rows] @ keys[..., seen]
        shares = (scores if after == 1 else scores.mul_(after)).exp_()
        if causal:
            shares.tril_(start)
        slopes = (upward[:, :, rows] @ values[..., seen]).mul_(shares)
        dq[:, :, rows] = (slopes @ k[:, :, seen]).mul_(scale)
        dk[:, :, seen] += slopes.transpose(2, 3) @ q[:, :, rows]
        dv[:, :, seen] += shares.transpose(2, 3) @ g[:, :, rows]
    return dq, dk.mul_(scale).to(k.dtype), dv.to(v.dtype)


def _in_three(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(...,) float32 -> (..., 3) of ``dtype``, whose sum float32 cannot tell from ``numbers``."""
    parts = []
    for _ in range(3):
        parts.append(numbers.to(dtype))
        numbers = numbers - parts[-1].float()
    return torch.stack(parts, -1)


def plain_backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: Prompt | None,
    kernel: Kernel,
) -> tuple[torch.Tensor, ...]:
    """As above through autograd, computing block by block again: no more than that is held."""
    keys, values = joined(k, v, before)
    dq, dk, dv = (torch.zeros_like(x) for x in (q, keys, values))
    for rows, seen in kernel.blocks(q, keys.shape[2]):
        with torch.enable_grad():
            parts = [
                x.detach().requires_grad_(True)
                for x in (q[:, :, rows], keys[:, :, seen], values[:, :, seen])
            ]
            out = kernel.plain(*parts)
        found = torch.autograd.grad(out, parts, g[:, :, rows])
        dq[:, :, rows] = found[0]
        dk[:, :, seen] += found[1]
        dv[:, :, seen] += found[2]
    prefix = keys.shape[2] - q.shape[2]
    own = dk[:, :, prefix:], dv[:, :, prefix:]
    return dq, *own, *((dk[:, :, :prefix], dv[:, :, :prefix]) if before else ())

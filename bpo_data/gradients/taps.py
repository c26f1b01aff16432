"""Taps: autograd functions that hand an output on and sum projected weight gradients behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad


def by_segment(tokens: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """(tokens, rank) -> (segments, longest, rank), zeros past a segment's end.

    Zeros and not another segment's numbers: times zero those could still be NaN.
    """
    return pad(tokens, (0, 0, 0, 1))[grid]


class Tap(torch.autograd.Function):
    """Hands the output on; in the backward pass leaves the projected weight gradient in a sink."""

    @staticmethod
    def forward(
        ctx: Any,
        out: torch.Tensor,
        inputs: torch.Tensor,
        left: torch.Tensor,
        grid: torch.Tensor,
        sink: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, left, grid)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, left, grid = ctx.saved_tensors
        projected = (gradient.reshape(-1, left.shape[0]) @ left).float()
        outputs = by_segment(projected, grid)
        return gradient, None, None, None, torch.bmm(outputs.transpose(1, 2), inputs)


class ScaledTap(torch.autograd.Function):
    """The same for a weight gradient that is scaled number by number before it is projected."""

    @staticmethod
    def forward(
        ctx: Any,
        out: torch.Tensor,
        inputs: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        scale: torch.Tensor,
        grid: torch.Tensor,
        sink: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, left, right, scale, grid)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, left, right, scale, grid = ctx.saved_tensors
        flat = gradient.reshape(len(inputs), -1)
        left, right = left.float(), right.float()
        sums = []
        for row in grid:
            place = row[row < len(inputs)]
            whole = flat[place].T.float() @ inputs[place].float()
            sums.append(left.T @ (whole * scale) @ right)
        return gradient, None, None, None, None, None, torch.stack(sums)


class ExpertsTap(torch.autograd.Function):
    """The same where each row of the output is another expert's."""

    @staticmethod
    def forward(
        ctx: Any,
        out: torch.Tensor,
        inputs: torch.Tensor,
        left: torch.Tensor,
        grid: torch.Tensor,
        place: torch.Tensor,
        back: torch.Tensor,
        sink: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, left, grid, place, back)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, left, grid, place, back = ctx.saved_tensors
        counts = torch.bincount(place[:, 0], minlength=len(left)).tolist()
        parts = [some @ left[n] for n, some in enumerate(gradient.split(counts)) if len(some)]
        outputs = by_segment(torch.cat(parts).float()[back], grid)
        sums = torch.bmm(outputs.transpose(1, 2), inputs)
        return gradient, None, None, None, None, None, sums

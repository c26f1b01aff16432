"""Peers that make the whole gradient of a pair and then project it with one dense matrix.

The matrix is so large that no part of it outlives its use: a full projection takes minutes to hours
on a CPU. So it is timed on a block of the gradient and scaled, as the table says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from tests.benchmarks.machine import clock
from tests.benchmarks.workloads import (
    Measuring,
    Tokens,
    dpo_losses,
    log_probs,
    padded,
    pair_losses,
)

PROJECTED_COORDINATES = 65_536
"""Of a full gradient, in the dense projection that is timed; its cost grows in proportion."""

PROJECTED_ROWS = 16
"""Gradients in one call of the dense projection, which draws its matrix again in every call: the
``project_interval`` of LESS, and given to TRAK too, whose own is a batch."""

VMAPPED_NUMBERS = 200_000_000
"""Bound on what TRAK's vmap holds at a time: pairs times weights."""


class OneByOne(ABC):
    """What LESS and TRAK share: the dense projection, timed on a block of the gradient.

    The loop runs over some of the pairs and is scaled by tokens, the projection by coordinates.
    """

    method = ""

    def __init__(self, data: Tokens, how: Measuring) -> None:
        from trak.projectors import BasicProjector, ProjectionType

        self.data, self.how, self.model = data, how, how.model()
        self.pairs = data.pairs[: how.pairs_run]
        self.coordinates = sum(weight.numel() for weight in self.model.parameters())
        self.block = min(PROJECTED_COORDINATES, self.coordinates)
        self.projector = BasicProjector(
            grad_dim=self.block,
            proj_dim=how.dim,
            seed=0,
            proj_type=ProjectionType.rademacher,
            device=torch.device(how.device),
        )
        self.note = ""

    @abstractmethod
    def loop(self) -> torch.Tensor:
        """Every pair's gradient once; the last of them, (rows, coordinates), for the projection."""

    def run(self) -> float:
        data, how = self.data, self.how
        start = clock(how.device)
        last = self.loop()
        between = clock(how.device)
        rows = last[:, : self.block].expand(PROJECTED_ROWS, self.block)
        self.projector.project(rows, 0)
        end = clock(how.device)
        tokens = data.pair_tokens(data.pairs) / data.pair_tokens(self.pairs)
        calls = len(data.pairs) / PROJECTED_ROWS
        loop = (between - start) * tokens
        projection = (end - between) * calls * self.coordinates / self.block
        self.note = (
            f"{self.method}; loop {loop:.4g} s"
            + (f" (scaled from {len(self.pairs)} of {len(data.pairs)} pairs)" if tokens > 1 else "")
            + f" + projection {projection:.4g} s (scaled from {self.block:,}"
            f" of {self.coordinates:,} coordinates)"
        )
        return loop + projection - (end - start)


class Less(OneByOne):
    """LESS's loop: one pair at a time, gradients of all weights joined, 16 projected at a time."""

    method = "batches of 1 pair"

    def loop(self) -> torch.Tensor:
        for pair in self.pairs:
            pair_losses(self.model, self.data, pair[None]).sum().backward()
            joined = torch.cat([w.grad.flatten() for w in self.model.parameters()])
            self.model.zero_grad(set_to_none=True)
        return joined[None]


class Trak(OneByOne):
    """TRAK's featurisation of pairs: its vmap of gradients of all weights, then its projector."""

    def __init__(self, data: Tokens, how: Measuring) -> None:
        from trak.gradient_computers import FunctionalGradientComputer

        super().__init__(data, how)
        # Its vmap does not go through the fused attention of every device.
        self.model.set_attn_implementation("eager")
        self.model.requires_grad_(False)
        self.together = max(1, min(PROJECTED_ROWS, VMAPPED_NUMBERS // self.coordinates))
        self.method = f"vmap over {self.together} pairs"
        self.computer = FunctionalGradientComputer(
            self.model,
            task=PairOutput(),
            grad_dim=self.coordinates,
            dtype=self.model.dtype,
            device=torch.device(how.device),
        )

    def loop(self) -> torch.Tensor:
        from trak.utils import vectorize

        data, how = self.data, self.how
        order = sorted(range(len(self.pairs)), key=lambda p: -data.pair_tokens(self.pairs[p]))
        for first in range(0, len(order), self.together):
            pairs = self.pairs[order[first : first + self.together]]
            tokens, labels = padded(data, pairs.ravel(), how.device)
            shape = len(pairs), 2, tokens.shape[1]
            reference = torch.tensor(data.reference[pairs], dtype=torch.float32).to(how.device)
            batch = tokens.view(shape), labels.view(shape), reference
            last = vectorize(self.computer.compute_per_sample_grad(batch), device=how.device)
        return last[:1]


class PairOutput:
    """A pair's loss in the form TRAK asks a model output to have."""

    @staticmethod
    def get_output(
        model: Any,
        weights: Any,
        buffers: Any,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        reference: torch.Tensor,
    ) -> torch.Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (tokens,)).logits
        return dpo_losses(log_probs(logits, labels), reference).sum()

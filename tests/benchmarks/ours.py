"""Our engine as a contender; its numbers against autograd; its peak memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bpo_data.gradients.engine import Measured, ResponseGradients
from bpo_data.gradients.pairs import pair_gradients
from bpo_data.gradients.projection import Sketch, layer_signs
from bpo_data.losses import coefficients
from tests.benchmarks.machine import clock
from tests.benchmarks.workloads import (
    BETA,
    SIZES,
    WORKLOADS,
    Measuring,
    Tokens,
    pair_losses,
    tokens_of,
)

SEED = 0
"""Of the projections."""

PART_PROMPTS = 32
"""Prompts in one part of the dataset whose memory is measured."""


def engine(how: Measuring, compile: bool = False) -> ResponseGradients:
    return ResponseGradients(
        how.model(),
        rank=how.rank,
        dim=how.dim,
        seed=SEED,
        batch_tokens=how.batch_tokens,
        compile=compile,
    )


class Ours:
    """One gradient a response, then the pairs' as combinations of them."""

    note = "1 row a response; pairs combined"

    def __init__(self, data: Tokens, how: Measuring, compile: bool = False) -> None:
        self.data, self.engine = data, engine(how, compile)

    def run(self) -> float:
        measured = self.engine.of(self.data.prompts, self.data.responses)
        assert np.isfinite(pair_rows(self.data, measured)).all()
        return 0.0


def operations(data: Tokens, how: Measuring) -> float:
    """Floating-point operations of our matrix products, two for each weight and token.

    A prompt but its last token runs forward once and backward once for each of its responses, and
    nothing above the last block's keys and values; a response runs once in both directions; the
    head sees responses only. Attention and projections are not counted.
    """
    shape = SIZES[how.size]
    heads = shape.hidden // shape.heads * shape.key_heads
    block = 2 * shape.hidden * (shape.hidden + heads) + 3 * shape.hidden * shape.inner
    keys = 2 * shape.hidden * heads
    blocks, below = shape.layers * block, (shape.layers - 1) * block + keys
    own = sum(map(len, data.responses))
    shared = {tuple(prompt): len(prompt) - 1 for prompt in data.prompts}
    back = sum(len(prompt) - 1 for prompt in data.prompts)
    head = shape.hidden * shape.vocabulary
    return 2.0 * (2 * own * (blocks + head) + (sum(shared.values()) + back) * below)


def matmul_peak(how: Measuring) -> float:
    """Operations a second of one large matrix product on this device in this dtype."""
    size = 8192 if how.device.startswith("cuda") else 2048
    left, right = (
        torch.randn(size, size, device=how.device, dtype=getattr(torch, how.dtype))
        for _ in range(2)
    )
    left @ right
    best = np.inf
    for _ in range(5):
        start = clock(how.device)
        left @ right
        best = min(best, clock(how.device) - start)
    return 2.0 * size**3 / best


class OursCompiled(Ours):
    """The same with the model's blocks through torch.compile; compiled in the warm-up."""

    note = "the same, torch.compile"

    def __init__(self, data: Tokens, how: Measuring) -> None:
        super().__init__(data, how, compile=True)


def pair_rows(data: Tokens, measured: Measured) -> np.ndarray:
    """(p, dim) float32 gradients of the pairs' DPO loss from those of their responses."""
    chosen, rejected = data.pairs.T
    ratio = measured.log_prob - data.reference
    weights = coefficients("sigmoid", ratio[chosen], ratio[rejected], BETA)
    return pair_gradients(measured.gradient[chosen], measured.gradient[rejected], *weights)


def largest_error() -> float:
    """Of our pair gradients against autograd of the floor's own loss, relative to its length.

    A tiny model in float32, every workload, one pair at a time; autograd's weight gradients are
    projected layer by layer with the engine's matrices.
    """
    how, worst = Measuring("T", rank=4, dim=64), 0.0
    model, ours = how.model(), engine(how)
    sketch = Sketch(len(ours.layers) * how.rank**2, how.dim, SEED)
    for name in WORKLOADS:
        data = tokens_of(name, 3, SEED, SIZES["T"].vocabulary)
        rows = pair_rows(data, ours.of(data.prompts, data.responses))
        for pair, row in zip(data.pairs, rows, strict=True):
            model.zero_grad()
            pair_losses(model, data, pair[None]).sum().backward()
            layers = [projected(model, layer, how.rank) for layer in ours.layers]
            exact = sketch(torch.cat(layers)[None])[0].numpy()
            worst = max(worst, float(np.linalg.norm(row - exact) / np.linalg.norm(exact)))
    return worst


def projected(model: torch.nn.Module, layer: str, rank: int) -> torch.Tensor:
    """(rank * rank,) of a layer's weight gradient, which autograd has left on the model."""
    linear: Any = model.get_submodule(layer)
    left, right = layer_signs(SEED, layer, linear.out_features, linear.in_features, rank)
    return (left.T @ linear.weight.grad @ right / rank).flatten()


def peaks(arguments: list[str], prompts: int) -> dict[str, float]:
    """Peak MiB for ``prompts`` and for 8 times as many, each in a process of its own.

    ``arguments`` are the benchmark's. A new process, because a peak never goes down again.
    """
    found = {}
    for count in (prompts, 8 * prompts):
        child = subprocess.run(
            [
                *(sys.executable, "-m", "tests.benchmarks.gradients", *arguments),
                *("--prompts", str(count), "--memory-child"),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        before, peak = map(float, child.stdout.split()[-2:])
        found[f"{count} prompts"] = peak
        print(f"{count:8,} prompts: peak {peak:9.1f} MiB, {before:9.1f} MiB before the first part")
    small, large = found.values()
    print(f"ratio of the peaks: {large / small:.3f}")
    return {**found, "ratio": large / small}


def peak_of(name: str, count: int, seed: int, how: Measuring) -> tuple[float, float]:
    """MiB at this process's peak before the first part of a dataset and after its last.

    Measured part by part, as the stage does: a part's rows are written and forgotten.
    """
    ours = engine(how)
    before = peak_mebibytes(how.device)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, count, PART_PROMPTS):
            prompts = min(PART_PROMPTS, count - first)
            part = tokens_of(name, prompts, seed + first, SIZES[how.size].vocabulary)
            measured = ours.of(part.prompts, part.responses)
            np.save(Path(folder) / f"{first:08}.npy", measured.gradient)
    return before, peak_mebibytes(how.device)


def peak_mebibytes(device: str) -> float:
    """Peak of this process so far: resident memory, or on CUDA that of the device."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: it hands down the peak of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")

"""Random matrices that squeeze gradients and keep their inner products on average.

All of them are drawn on the CPU from a seed and a name through the raw stream of a PCG64
generator, which numpy promises never to change: a layer meets the same matrix on every device, in
every run and with every version of torch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def signs(seed: int, name: str, rows: int, columns: int) -> torch.Tensor:
    """A (rows, columns) matrix of independent +1 and -1, float32, that belongs to ``name``."""
    count = rows * columns
    words = _stream(seed, name).random_raw((count + 63) // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count)
    return torch.from_numpy(bits.reshape(rows, columns).astype(np.float32) * 2 - 1)


def layer_signs(
    seed: int, name: str, outputs: int, inputs: int, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sides of a layer's projection: (outputs, rank) and (inputs, rank) of +1 and -1.

    With ``left`` and ``right`` these matrices, the projection of a weight gradient G
    (outputs x inputs) is ``left.T @ G @ right / rank``: the L G R^T of the method with entries of
    variance 1/rank. Its inner products are on average those of G. The division is left to the
    caller because +1 and -1 are exact in every dtype and 1/sqrt(rank) is not.
    """
    left = signs(seed, f"{name}/outputs", outputs, rank)
    return left, signs(seed, f"{name}/inputs", inputs, rank)


class Sketch:
    """Fold rows of ``width`` numbers into ``dim`` with random signs: (n, width) -> (n, dim).

    A count sketch (Charikar, Chen and Farach-Colton 2002) with one bucket per number and evenly
    filled buckets: numbers are shuffled, get a random sign, and every ``dim``-th is summed. Inner
    products are kept on average, with an error of about ``|x| |y| / sqrt(dim)``. Shuffling and
    summing instead of scattering gives the same bytes on a GPU too. Rows that already fit are
    left whole, and ``dim`` is then their width.
    """

    def __init__(self, width: int, dim: int, seed: int) -> None:
        self.dim = min(width, dim)
        self.width = width
        if width <= dim:
            return
        slots = -(-width // dim) * dim
        order = np.argsort(_stream(seed, "sketch/order").random_raw(slots), kind="stable")
        self._order = torch.from_numpy(order)
        self._signs = signs(seed, "sketch/signs", 1, width)
        self._empty = slots - width

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, width) float32 -> (n, dim) float32, on the device of ``rows``."""
        if self.width == self.dim:
            return rows
        self._order = self._order.to(rows.device)
        self._signs = self._signs.to(rows.device)
        signed = torch.nn.functional.pad(rows * self._signs, (0, self._empty))
        return signed[:, self._order].view(len(rows), -1, self.dim).sum(1)


def _stream(seed: int, name: str) -> np.random.PCG64:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.PCG64(int.from_bytes(digest, "little"))

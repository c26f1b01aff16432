"""The nearest pairs of each pair by the cosine of their gradients."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

NEAREST = 10
"""Neighbours of a pair that are written down."""
MOST_WORK = 1_000_000_000_000
"""Pairs x pairs x (dimension + ``SORTING``) above which neighbours are left out: 27,000 pairs of
1,024 numbers, half a minute on one core (10,000 took 3.6 s)."""
SORTING = 300
"""What finding the nearest of so many cosines costs, in multiplications a cosine, as measured."""
BLOCK_CELLS = 16_000_000
"""Cosines held at once, 64 MB."""
TYPE = pa.struct(
    [pa.field("ids", pa.list_(pa.int32())), pa.field("distances", pa.list_(pa.float32()))]
)
"""What embedding-atlas reads: row numbers from 0 and distances."""


def too_many(pairs: int, dim: int) -> str:
    """Why neighbours are left out; empty where they are not."""
    if pairs * pairs * (dim + SORTING) <= MOST_WORK:
        return ""
    return (
        f"map.parquet has no column neighbours: comparing {pairs:,} pairs of {dim:,} numbers with "
        f"each other is more than a report's work"
    )


def nearest(directions: np.ndarray, count: int = NEAREST) -> pa.Array:
    """Row numbers and distances (1 - cosine) of the ``count`` nearest other rows, nearest first.

    ``directions`` is (n, d) float32 of unit length; a row of zeros has no neighbours and is
    nobody's. Of equally near rows the first come. Exact, in blocks of rows, so that memory stays
    bounded.
    """
    rows = np.flatnonzero(directions.any(axis=1))
    ids: list[list[int]] = [[] for _ in range(len(directions))]
    distances: list[list[float]] = [[] for _ in range(len(directions))]
    count = min(count, len(rows) - 1)
    if count > 0:
        held = directions[rows]
        size = max(1, BLOCK_CELLS // len(rows))
        with threadpool_limits(1):  # more threads add in another order
            for start in range(0, len(rows), size):
                near, cosines = block(held, start, size, count)
                for place, row in enumerate(rows[start : start + size]):
                    ids[row] = rows[near[place]].tolist()
                    distances[row] = np.maximum(1 - cosines[place], 0).tolist()
    found = [{"ids": near, "distances": far} for near, far in zip(ids, distances, strict=True)]
    return pa.array(found, TYPE)


def block(held: np.ndarray, start: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and cosines of the nearest of rows ``start`` to ``start + size``, (size, count)."""
    cosines = held[start : start + size] @ held.T
    here = np.arange(len(cosines))
    cosines[here, start + here] = -np.inf
    near = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    near.sort(axis=1)
    order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1, kind="stable")
    near = np.take_along_axis(near, order, axis=1)
    return near, np.take_along_axis(cosines, near, axis=1)

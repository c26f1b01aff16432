"""Pairs put into clusters that were fitted on a sample of them, part by part, on any engine."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bpo_data import disk
from bpo_data.artifacts import Artifact
from bpo_data.engines import Make, Place
from bpo_data.tables import lookup, lot

if TYPE_CHECKING:
    from bpo_data.stages.cluster import ClusterConfig

PART_ROWS = 4096  # pairs of a part
HELD = 64
"""Files of gradients that a worker keeps in memory: those of neighbouring prompts lie together."""


def drawn(pairs: pa.Table, count: int, seed: int) -> pa.Table:
    """``count`` pairs by lot, in the table's order."""
    names = pairs["pair_id"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: lot(seed, "fit", names[row]))
    return pairs.take(pa.array(sorted(order[:count]), pa.int64()))


class GradientRows:
    """The rows of a gradients artifact, a few files at a time."""

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        import pyarrow.parquet as pq

        first: dict[str, Path] = {}
        for path in (folder / file for file in files):
            names = pq.ParquetFile(path).read(columns=["response_id"])["response_id"]
            if len(names):
                first[names[0].as_py()] = path
        self.first = sorted(first)
        """The id that each file begins with: rows are sorted by id, from file to file too."""
        self.paths = [first[name] for name in self.first]
        self.file = lru_cache(HELD)(self._file)

    def _file(self, number: int) -> pa.Table:
        return disk.read_parquet(self.paths[number])

    def __call__(self, names: pa.ChunkedArray) -> pa.Table:
        """The rows of these responses, each once. Raises KeyError for one that has none."""
        wanted = names.unique()
        of_file: dict[int, list[str]] = {}
        for name in wanted.to_pylist():
            of_file.setdefault(max(0, bisect_right(self.first, name) - 1), []).append(name)
        found = [
            lookup(self.file(number), "response_id", own) for number, own in sorted(of_file.items())
        ]
        return lookup(pa.concat_tables(found), "response_id", wanted)


def gradient_rows(artifact: Artifact) -> GradientRows:
    """Of an artifact whose files are what was written. Raises UserError where one is not."""
    files = tuple(artifact.manifest["table"])
    for file in files:
        artifact.checked(file)
    return GradientRows(artifact.folder, files)


@dataclass(frozen=True)
class Assigning:
    """How a worker is set up to assign pairs to clusters: the centres go to all of them."""

    folder: Path
    files: tuple[str, ...]
    config: ClusterConfig
    centres: np.ndarray
    """(k, d) float32."""
    plane: tuple[np.ndarray, np.ndarray]
    """Mean (d,) and the two principal components (2, d) of the sample."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (str(self.folder),)

    def __call__(self, place: Place) -> Make:
        folder = Path(place.here(str(self.folder)))
        return partial(self.assigned, GradientRows(folder, self.files))

    def assigned(self, rows_of: GradientRows, pairs: pa.Table) -> pa.Table:
        """Each pair's cluster, the one with the nearest centre, and its scores."""
        from bpo_data.stages.cluster import directions_of, scored

        measured = directions_of(pairs, rows_of, self.config)
        cluster, distance = nearest(measured.directions, self.centres)
        mean, components = self.plane
        plane = ((measured.directions - mean) @ components.T).astype(np.float32)
        return scored(pairs, self.config, measured, cluster, distance, self.centres, plane)


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int32 number of the nearest centre, the lower of equals, and (n,) float32 distance."""
    squares = (centres**2).sum(axis=1) - 2 * rows @ centres.T  # but for the row's own length
    cluster = squares.argmin(axis=1).astype(np.int32)
    return cluster, np.linalg.norm(rows - centres[cluster], axis=1).astype(np.float32)

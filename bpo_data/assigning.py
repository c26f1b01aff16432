"""Pairs put into clusters that were fitted on a sample of them, part by part, on any engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bpo_data import disk
from bpo_data.artifacts import Artifact
from bpo_data.components.embedders import unit
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

        self.paths = [folder / file for file in files]
        self.places: dict[str, int] = {}
        for number, path in enumerate(self.paths):
            names = pq.ParquetFile(path).read(columns=["response_id"])["response_id"]
            self.places |= dict.fromkeys(names.to_pylist(), number)
        self.file = lru_cache(HELD)(self._file)

    def _file(self, number: int) -> pa.Table:
        return disk.read_parquet(self.paths[number])

    def __call__(self, names: pa.ChunkedArray) -> pa.Table:
        """The rows of these responses, each once."""
        wanted = names.unique()
        numbers = sorted({self.places[name] for name in wanted.to_pylist()})
        found = [self.file(number) for number in numbers]
        return lookup(pa.concat_tables(found).combine_chunks(), "response_id", wanted)


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
        from bpo_data.stages.cluster import gradients_of, scored

        both = pa.chunked_array([*pairs["chosen_id"].chunks, *pairs["rejected_id"].chunks])
        rows, tokens = gradients_of(pairs, rows_of(both), self.config)
        directions = unit(rows)
        cluster, distance = nearest(directions, self.centres)
        mean, components = self.plane
        plane = ((directions - mean) @ components.T).astype(np.float32)
        return scored(
            pairs, self.config, rows, tokens, directions, cluster, distance, self.centres, plane
        )


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int32 number of the nearest centre, the lower of equals, and (n,) float32 distance."""
    squares = (centres**2).sum(axis=1) - 2 * rows @ centres.T  # but for the row's own length
    cluster = squares.argmin(axis=1).astype(np.int32)
    return cluster, np.linalg.norm(rows - centres[cluster], axis=1).astype(np.float32)

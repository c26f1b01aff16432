"""Compress breadth: cluster the prompts' embeddings, keep the nearest to each centre."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.components import clusterers, kinds
from bpo_data.components.allocators import largest_remainder
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, matrix

VERSION = 1


@dataclass
class SelectConfig:
    kind: str = "faiss_kmeans"
    """A name in ``components.clusterers.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind, such as ``restarts``."""

    keep: int = 0
    """Prompts to keep; 0 means ``select.share`` of the pool."""

    share: float = 0.5
    """Share of the pool to keep when ``select.keep`` is 0. Our choice."""

    k: int = 0
    """Clusters; 0 means min(100, round(sqrt(prompts / 2))), and never more than prompts kept."""

    seed: int = 0
    """Of the k-means start."""

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(clusterers.KINDS, self.kind, self.options, "select.kind")
        if self.keep < 0 or self.k < 0:
            yield "select.keep and select.k are counts; use 0 for the default rule."
        if not 0 < self.share <= 1:
            yield f"select.share={self.share}: a share lies above 0, up to 1."


def schema(config: SelectConfig) -> pa.Schema:
    return columns(prompt_id=ID, cluster=pa.int32(), distance=pa.float32(), kept=pa.bool_())


def run(draft: Draft, config: SelectConfig, runtime: Runtime, *, embeddings: pa.Table) -> None:
    rows = matrix(embeddings["embedding"])
    count = len(rows)
    keep = config.keep or max(1, round(config.share * count))
    if keep > count:
        raise UserError(
            f"select.keep={keep} but the pool has {count} prompts. Lower select.keep, or use "
            f"select.keep=0 select.share=1 to keep all."
        )
    k = min(config.k or default_k(count), keep)
    clusterer = kinds.build(clusterers.KINDS, config.kind, config.options, "select.kind")
    cluster, distance, centres = clusterers.grouped(
        clusterer, rows, k, config.seed, runtime.threads
    )
    kept = representatives(cluster, distance, keep)
    draft.write(pa.table([embeddings["prompt_id"], cluster, distance, kept], schema=draft.schema))
    draft.facts |= {
        "result": f"{int(kept.sum()):,} of {count:,} prompts",
        "pool": count,
        "kept": int(kept.sum()),
        "clusters": len(centres),
        "coverage": round(coverage(rows, rows[kept]), 4),
    }


def coverage(rows: np.ndarray, chosen: np.ndarray) -> float:
    """Mean cosine of each unit row to the nearest chosen one; memory does not grow with n * m."""
    nearest = [
        (rows[start : start + 1024] @ chosen.T).max(axis=1) for start in range(0, len(rows), 1024)
    ]
    return float(np.concatenate(nearest).mean())


def default_k(count: int) -> int:
    """Our choice of the number of clusters for ``count`` rows."""
    return max(1, min(100, round((count / 2) ** 0.5)))


def representatives(cluster: np.ndarray, distance: np.ndarray, keep: int) -> np.ndarray:
    """Which rows to keep, (n,) bool: largest remainder on cluster size, at least 1, nearest first.

    Raises nothing for ``keep`` between the number of clusters and the number of rows.
    """
    size = np.bincount(cluster)
    above_one = np.maximum(size * keep / len(cluster) - 1, 0)
    quota = 1 + largest_remainder(above_one, keep - len(size), size - 1)
    kept = np.zeros(len(cluster), dtype=bool)
    for number, count in enumerate(quota):
        members = np.flatnonzero(cluster == number)
        kept[members[np.lexsort((members, distance[members]))][:count]] = True
    return kept

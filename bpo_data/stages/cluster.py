"""Cluster the pairs' gradients over all prompts; usefulness and informativeness of each pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.components import clusterers, kinds
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError
from bpo_data.losses import LOSSES, coefficients
from bpo_data.runtime import Runtime
from bpo_data.stages.select import default_k
from bpo_data.tables import ID, columns, lookup, matrix

VERSION = 2


@dataclass
class ClusterConfig:
    kind: str = "faiss_kmeans"
    """A name in ``components.clusterers.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind, such as ``restarts``."""

    k: int = 0
    """Clusters; 0 means min(100, round(sqrt(pairs / 2))). Our choice."""

    loss: str = "sigmoid"
    """The pair loss whose gradient is taken, a name in ``losses.LOSSES``; sigmoid is DPO."""

    beta: float = 0.1
    """The loss's beta."""

    per_token: bool = False
    """Measure informativeness per completion token of the pair."""

    seed: int = 0
    """Of the k-means start."""

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(clusterers.KINDS, self.kind, self.options, "cluster.kind")
        if self.k < 0:
            yield f"cluster.k={self.k}: give a number of clusters, or 0 for the default rule."
        if self.loss not in LOSSES:
            yield f"cluster.loss={self.loss}: choose {', '.join(LOSSES)}."
        if self.beta <= 0:
            yield f"cluster.beta={self.beta}: beta is above 0."


def schema(config: ClusterConfig) -> pa.Schema:
    return columns(
        pair_id=ID,
        cluster=pa.int32(),
        distance=pa.float32(),
        usefulness=pa.float32(),
        informativeness=pa.float32(),
        x=pa.float32(),
        y=pa.float32(),
    )


def run(
    draft: Draft, config: ClusterConfig, runtime: Runtime, *, pairs: pa.Table, gradients: pa.Table
) -> None:
    if config.k > pairs.num_rows:
        raise UserError(
            f"cluster.k={config.k} but there are only {pairs.num_rows} pairs. Lower cluster.k, or "
            f"raise pair.per_prompt."
        )
    rows, tokens = gradients_of(pairs, gradients, config)
    length = np.linalg.norm(rows, axis=1)
    directions = unit(rows)
    clusterer = kinds.build(clusterers.KINDS, config.kind, config.options, "cluster.kind")
    k = config.k or default_k(len(rows))
    cluster, distance, centres = clusterers.grouped(
        clusterer, directions, k, config.seed, runtime.threads
    )
    usefulness = (directions * unit(centres)[cluster]).sum(axis=1)
    plane = flat(directions, config.seed)
    columns_ = [
        pairs["pair_id"],
        cluster,
        distance,
        usefulness.astype(np.float32),
        (length / tokens if config.per_token else length).astype(np.float32),
        plane[:, 0],
        plane[:, 1],
    ]
    draft.write(pa.table(columns_, schema=draft.schema))
    draft.note(int((length == 0).sum()), len(rows), "pairs have a gradient of zero")
    draft.facts |= {
        "clusters": len(centres),
        "zero_gradients": int((length == 0).sum()),
        "distinct_gradients": len(clusterers.distinct_rows(directions)[0]),
        "mean_usefulness": round(float(usefulness.mean()), 4),
    }


def gradients_of(
    pairs: pa.Table, gradients: pa.Table, config: ClusterConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's gradient (n, d) float32 at the SFT policy, and its completion tokens (n,).

    It is the loss's two partial derivatives, at the log-ratios of policy and reference, times the
    two response gradients. Their scales go into the derivatives: float16 rows are never widened.
    """
    from bpo_data.gradients.pairs import pair_gradients

    chosen = lookup(gradients, "response_id", pairs["chosen_id"])
    rejected = lookup(gradients, "response_id", pairs["rejected_id"])
    of_chosen, of_rejected = coefficients(
        config.loss, log_ratios(chosen), log_ratios(rejected), config.beta
    )
    rows = pair_gradients(
        matrix(chosen["gradient"]),
        matrix(rejected["gradient"]),
        of_chosen * chosen["scale"].to_numpy(),
        of_rejected * rejected["scale"].to_numpy(),
    )
    tokens = chosen["tokens"].to_numpy() + rejected["tokens"].to_numpy()
    return rows, tokens


def log_ratios(rows: pa.Table) -> np.ndarray:
    """log pi(response | prompt) - log ref(response | prompt) in nats, (n,) float64."""
    policy, reference = (rows[name].to_numpy() for name in ("log_prob", "reference_log_prob"))
    return policy.astype(np.float64) - reference


def flat(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n, d) -> (n, 2) float32: the first two principal components, for the report's map."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    if min(rows.shape) < 2 or not np.ptp(rows, axis=0).any():
        return np.zeros((len(rows), 2), dtype=np.float32)
    with threadpool_limits(1):  # more threads add in another order
        plane = PCA(2, svd_solver="randomized", random_state=seed).fit_transform(rows)
    return plane.astype(np.float32)

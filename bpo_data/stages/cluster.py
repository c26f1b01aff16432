"""Cluster the pairs' gradients over all prompts; usefulness and informativeness of each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.assigning import PART_ROWS, Assigning, drawn, gradient_rows
from bpo_data.components import clusterers, kinds
from bpo_data.components.cluster_checks import UNSTABLE, choose_k_problems, stability
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError, nearest
from bpo_data.losses import LOG_PROB, LOSSES, TOKENS, coefficients
from bpo_data.runtime import Runtime
from bpo_data.stages.select import settle_k
from bpo_data.tables import ID, columns, lookup, matrix

VERSION = 3
BLOCK = 8192
"""Pairs whose gradients are combined at once."""


@dataclass
class ClusterConfig:
    kind: str = "faiss_kmeans"
    """A name in ``components.clusterers.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind, such as ``restarts`` or ``spherical``."""

    k: int = 0
    """Clusters; 0 leaves it to ``cluster.choose_k``."""

    choose_k: str = "root"
    """How ``cluster.k=0`` is settled: ``root`` is min(100, round(sqrt(pairs / 2))), ``silhouette``
    the number, up to twice that, with the highest mean silhouette on 5,000 pairs drawn by lot. With
    ``cluster.fit_on`` the pairs are those of the sample."""

    fit_on: int = 0
    """Pairs, drawn by lot, that clusters are fitted on; all are then assigned to the nearest
    centre, part by part on ``runtime.engine``, so that memory holds the sample and no more. 0 fits
    on all of them."""

    stability: int = 2
    """Further starts that the clusters are compared with, for the facts alone: each takes as long
    as the clustering itself; 0 compares none."""

    loss: str = "sigmoid"
    """The pair loss whose gradient is taken, a name in ``losses.LOSSES`` that needs no more than
    log-probabilities and lengths; sigmoid is DPO."""

    loss_options: dict[str, Any] = field(default_factory=dict)
    """Options of the loss, such as ``lam`` of sba."""

    beta: float = 0.1
    """The loss's beta."""

    per_token: bool = False
    """Measure informativeness per completion token of the pair."""

    seed: int = 0
    """Of the start of the clustering, and of what is drawn by lot."""

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(clusterers.KINDS, self.kind, self.options, "cluster.kind")
        if self.k < 0:
            yield f"cluster.k={self.k}: give a number of clusters, or 0 for the default rule."
        yield from choose_k_problems("cluster", self, ("root", "silhouette"))
        if self.fit_on < 0 or 0 < self.fit_on < self.k:
            yield f"cluster.fit_on={self.fit_on}: give at least cluster.k pairs, or 0 for all."
        if self.stability < 0:
            yield f"cluster.stability={self.stability}: give a number of starts, or 0 for none."
        usable = [name for name, loss in LOSSES.items() if loss.of_pairs]
        if self.loss not in usable:
            close = nearest(self.loss, usable)
            yield f"cluster.loss={self.loss}: choose {', '.join(usable)}.{close}"
        else:
            loss = LOSSES[self.loss]
            yield from loss.unknown_options(self.loss_options, "cluster")
            yield from loss.problems(self.loss_options, "cluster.loss_options")
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


class Measured(NamedTuple):
    """Gradients of n pairs."""

    directions: np.ndarray
    """(n, d) float32, of length 1; zeros where the gradient is."""
    length: np.ndarray
    """(n,) float32, of the gradients."""
    tokens: np.ndarray
    """(n,) whole numbers: completion tokens of both responses."""


def run(draft: Draft, config: ClusterConfig, runtime: Runtime, *, pairs: pa.Table) -> None:
    if config.k > pairs.num_rows:
        raise UserError(
            f"cluster.k={config.k} but there are only {pairs.num_rows} pairs. Lower cluster.k, or "
            f"raise pair.per_prompt."
        )
    rows_of = gradient_rows(draft.inputs["gradients"])
    whole = not config.fit_on or config.fit_on >= pairs.num_rows
    sample = pairs if whole else drawn(pairs, config.fit_on, config.seed)
    measured = directions_of(sample, rows_of, config)
    directions = measured.directions
    clusterer = kinds.build(clusterers.KINDS, config.kind, config.options, "cluster.kind")
    k = settle_k(draft, config, clusterer, directions, sample["pair_id"].to_pylist())
    cluster, distance, centres = clusterers.grouped(
        clusterer, directions, k, config.seed, runtime.threads
    )
    plane, axes = flat(directions, config.seed)
    if whole:
        draft.write(scored(pairs, config, measured, cluster, distance, centres, plane))
    else:
        artifact = draft.inputs["gradients"]
        files = tuple(artifact.manifest["table"])
        folder = artifact.folder.absolute()
        ids = pairs.select(["pair_id", "chosen_id", "rejected_id"])
        draft.map_parts(ids, Assigning(folder, files, config, centres, axes), PART_ROWS)
    made = draft.read(["cluster", "usefulness", "informativeness"])
    zeros = pc.sum(pc.equal(made["informativeness"], 0)).as_py()
    draft.note(zeros, made.num_rows, "pairs have a gradient of zero")
    alike = stability(
        clusterer, directions, cluster, k, config.seed, config.stability, runtime.threads
    )
    if alike is not None and alike < UNSTABLE:
        draft.say(
            f"clusters depend on where the search began: {config.stability + 1} starts agree at an "
            f"adjusted Rand index of {alike:.2f} (1 is the same clusters, 0 chance). Read nothing "
            f"into single clusters, or try cluster.options.restarts or another cluster.k"
        )
    draft.facts |= {
        "clusters": pc.count_distinct(made["cluster"]).as_py(),
        "zero_gradients": zeros,
        "distinct_gradients": len(clusterers.distinct_rows(directions)[0]),
        "mean_usefulness": round(float(made["usefulness"].to_numpy().mean()), 4),
        "starts_agree": alike if alike is None else round(alike, 4),
    }


def scored(
    pairs: pa.Table,
    config: ClusterConfig,
    measured: Measured,
    cluster: np.ndarray,
    distance: np.ndarray,
    centres: np.ndarray,
    plane: np.ndarray,
) -> pa.Table:
    """The rows of the clusters table."""
    length = measured.length / measured.tokens if config.per_token else measured.length
    found = [
        pairs["pair_id"],
        cluster,
        distance,
        cosines(measured.directions, unit(centres), cluster),
        length.astype(np.float32),
        plane[:, 0],
        plane[:, 1],
    ]
    return pa.table(found, schema=schema(config))


def cosines(rows: np.ndarray, centres: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(n,) float32: each unit row with the unit centre of its cluster."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), clusterers.BLOCK):
        block = slice(start, start + clusterers.BLOCK)
        found[block] = (rows[block] * centres[cluster[block]]).sum(axis=1)
    return found


def directions_of(
    pairs: pa.Table, rows_of: Callable[[pa.ChunkedArray], pa.Table], config: ClusterConfig
) -> Measured:
    """The gradients of n > 0 pairs, ``BLOCK`` pairs at a time: but for what is returned, nothing
    that is as large as all of them is made. ``rows_of`` gives the gradients of responses by id."""
    blocks = []
    directions = np.empty((0, 0), dtype=np.float32)
    for start in range(0, pairs.num_rows, BLOCK):
        some = pairs.slice(start, BLOCK)
        both = pa.chunked_array([*some["chosen_id"].chunks, *some["rejected_id"].chunks])
        rows, tokens = gradients_of(some, rows_of(both), config)
        if not start:
            directions = np.empty((pairs.num_rows, rows.shape[1]), dtype=np.float32)
        directions[start : start + BLOCK] = unit(rows)
        blocks.append((np.linalg.norm(rows, axis=1), tokens))
    length, tokens = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Measured(directions, length, tokens)


def gradients_of(
    pairs: pa.Table, gradients: pa.Table, config: ClusterConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's gradient (n, d) float32 at the policy measured, and its completion tokens (n,).

    It is the loss's two partial derivatives, at the log-ratios of policy and reference, times the
    two response gradients. Their scales go into the derivatives: float16 rows are never widened.
    """
    from bpo_data.gradients.pairs import pair_gradients

    chosen = lookup(gradients, "response_id", pairs["chosen_id"])
    rejected = lookup(gradients, "response_id", pairs["rejected_id"])
    of_chosen, of_rejected = coefficients(
        config.loss,
        log_ratio(chosen, config.loss),
        log_ratio(rejected, config.loss),
        config.beta,
        columns={
            name: side["tokens"].to_numpy()
            for name, side in zip(TOKENS, (chosen, rejected), strict=True)
        },
        options=config.loss_options,
    )
    rows = pair_gradients(
        matrix(chosen["gradient"]),
        matrix(rejected["gradient"]),
        of_chosen * chosen["scale"].to_numpy(),
        of_rejected * rejected["scale"].to_numpy(),
    )
    tokens = chosen["tokens"].to_numpy() + rejected["tokens"].to_numpy()
    return rows, tokens


def log_ratio(rows: pa.Table, loss: str) -> np.ndarray:
    """log pi(response | prompt) - log ref(response | prompt) in nats, (n,) float64; of a loss
    without a reference the first term alone."""
    policy, reference = (rows[name].to_numpy() for name in ("log_prob", "reference_log_prob"))
    whole = policy.astype(np.float64)
    return whole if LOSSES[loss].measures == LOG_PROB else whole - reference


def flat(rows: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(n, d) -> (n, 2) float32: the first two principal components, for the report's map; and
    what takes other rows there: the mean (d,) and the components (2, d)."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    if min(rows.shape) < 2 or not np.ptp(rows, axis=0).any():
        nowhere = np.zeros((2, rows.shape[1]), dtype=np.float32)
        return np.zeros((len(rows), 2), dtype=np.float32), (nowhere[0], nowhere)
    axes = PCA(2, svd_solver="randomized", random_state=seed)
    with threadpool_limits(1):  # more threads add in another order
        plane = axes.fit_transform(rows)
    return plane.astype(np.float32), (axes.mean_, axes.components_)

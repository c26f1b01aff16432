"""Clusters of rows: k-means by FAISS or scikit-learn, a hierarchy, a mixture of Gaussians."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any, Protocol

from bpo_data.errors import UserError

if TYPE_CHECKING:
    import numpy as np

BLOCK = 4096
"""Rows worked on at a time, so that no second table of the input's size is made."""


class Clusterer(Protocol):
    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        """(n, d) float32 distinct rows -> the cluster of each, (n,) whole numbers below ``k``.

        ``weights`` (n,) float32 say how often each row stands; ``k`` is at most n. An attribute
        ``seeded = False`` says that ``seed`` changes nothing.
        """


class FaissKMeans:
    """Lloyd's k-means of FAISS; of ``restarts`` the one with the lowest inertia is kept.

    Inertia counts every row as often as it stands, which FAISS's own ``nredo`` does not. ``start``
    is ``plus_plus`` (k-means++, Arthur and Vassilvitskii 2007) or ``random`` rows, FAISS's default.
    ``spherical`` scales the centres to length 1 after every step and goes by inner product
    (Dhillon and Modha 2001): for rows of length 1, clusters by direction alone.
    ``max_points_per_centroid`` caps the rows it learns from; 0, the default, takes all, where
    FAISS's own default is 256. ``gpu`` works on all GPUs, with the package faiss-gpu: sums end in
    other bits there, so it is a setting and nothing that is found out. We had no GPU to try it on.
    """

    def __init__(
        self,
        iterations: int = 25,
        restarts: int = 1,
        start: str = "plus_plus",
        spherical: bool = False,
        max_points_per_centroid: int = 0,
        gpu: bool = False,
    ) -> None:
        if iterations < 1 or restarts < 1:
            raise ValueError("iterations and restarts must be at least 1")
        if start not in ("plus_plus", "random"):
            raise ValueError("start is plus_plus or random")
        if max_points_per_centroid < 0:
            raise ValueError("max_points_per_centroid must be at least 1, or 0 for all rows")
        self.iterations = iterations
        self.restarts = restarts
        self.start = start
        self.spherical = spherical
        self.max_points_per_centroid = max_points_per_centroid
        self.gpu = gpu

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        """Raises UserError where GPUs are asked for and FAISS sees none."""
        seeds = [seed] + [
            random.Random(f"{seed}/{number}").getrandbits(31) for number in range(1, self.restarts)
        ]
        tries = (self.once(vectors, weights, k, one) for one in seeds)
        _, nearest = min(tries, key=lambda found: found[0])
        return nearest

    def once(
        self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int
    ) -> tuple[float, np.ndarray]:
        """Inertia (for spherical: of directions, up to a constant) and the cluster of each row."""
        import faiss

        if self.gpu and not faiss.get_num_gpus():
            raise UserError(
                "gpu=true of faiss_kmeans, but FAISS sees no GPU. Install bpo-data[gpu] on a "
                "machine that has one, or leave gpu out."
            )
        means = faiss.Kmeans(
            vectors.shape[1],
            k,
            niter=self.iterations,
            seed=seed,
            init_method=(
                faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
                if self.start == "plus_plus"
                else faiss.ClusteringInitMethod_RANDOM
            ),
            spherical=self.spherical,
            min_points_per_centroid=1,
            max_points_per_centroid=self.max_points_per_centroid or len(vectors),
            gpu=self.gpu,
        )
        means.train(vectors, weights=weights)
        far, nearest = means.assign(vectors)
        inertia = float((weights * far.astype(float)).sum())
        return -inertia if self.spherical else inertia, nearest


class SklearnKMeans:
    """scikit-learn's k-means with k-means++ starts: slower, the independent reference."""

    def __init__(self, n_init: int = 4, iterations: int = 100) -> None:
        if n_init < 1 or iterations < 1:
            raise ValueError("n_init and iterations must be at least 1")
        self.n_init = n_init
        self.iterations = iterations

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        means = KMeans(k, n_init=self.n_init, max_iter=self.iterations, random_state=seed)
        with threadpool_limits(1):  # its threads add their sums up in the order they end
            return means.fit_predict(vectors, sample_weight=weights)


class Agglomerative:
    """scikit-learn's hierarchy, cut at k: ``ward`` (variance), ``average`` or ``complete`` linkage.

    It takes no weights: a row is repeated as often as it stands, which is the same. No start is
    drawn. It keeps the distances of all pairs of rows, 4 n^2 bytes, and more while it works, so
    beyond ``max_rows`` rows (1.6 GB) it refuses.
    """

    seeded = False

    def __init__(self, linkage: str = "ward", max_rows: int = 20_000) -> None:
        if linkage not in ("ward", "average", "complete"):
            raise ValueError("linkage is ward, average or complete")
        if max_rows < 1:
            raise ValueError("max_rows must be at least 1")
        self.linkage = linkage
        self.max_rows = max_rows

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        from sklearn.cluster import AgglomerativeClustering

        rows = int(weights.sum())
        if rows > self.max_rows:
            raise UserError(
                f"kind=agglomerative compares all rows with each other: {rows:,} rows take "
                f"{4 * rows**2 / 1e9:.1f} GB, and its options.max_rows is {self.max_rows:,}. Raise "
                f"options.max_rows of that stage, give it fewer rows, or use kind=faiss_kmeans."
            )
        if rows == 1:
            return weights.astype(int) - 1
        repeated, first = as_often(vectors, weights)
        tree = AgglomerativeClustering(k, linkage=self.linkage)
        return tree.fit_predict(repeated)[first]


class Mixture:
    """scikit-learn's mixture of Gaussians, one variance a dimension, started from k-means.

    Each row goes to the component most likely to have made it. It takes no weights: a row is
    repeated as often as it stands, which is the same. It computes in float64: 8 n (d + k) bytes.
    """

    def __init__(self, n_init: int = 1, iterations: int = 100) -> None:
        if n_init < 1 or iterations < 1:
            raise ValueError("n_init and iterations must be at least 1")
        self.n_init = n_init
        self.iterations = iterations

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        repeated, first = as_often(vectors, weights)
        if len(repeated) == 1:
            return first
        mixture = GaussianMixture(
            k,
            covariance_type="diag",
            n_init=self.n_init,
            max_iter=self.iterations,
            random_state=seed,
        )
        with threadpool_limits(1):  # as in SklearnKMeans, which starts it
            return mixture.fit_predict(repeated.astype("float64"))[first]


KINDS = {
    "faiss_kmeans": FaissKMeans,
    "sklearn_kmeans": SklearnKMeans,
    "agglomerative": Agglomerative,
    "gaussian_mixture": Mixture,
}


def grouped(
    clusterer: Clusterer, vectors: np.ndarray, k: int, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster rows: -> cluster (n,) int32, distance to its centre (n,) float32, centres (k', d).

    Rows that are equal are clustered once, with their number as weight: a start on two equal rows
    would waste a centre. ``k`` is lowered to the number of distinct rows. The centres are the
    means of the rows that ended in them, and clusters that ended empty are dropped, so k' may be
    smaller: the numbers hold whatever the library did on its last step. Raises UserError for NaN.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    vectors = without_minus_zero(np.ascontiguousarray(vectors, dtype=np.float32))
    broken = np.flatnonzero(~np.isfinite(vectors.sum(axis=1)))
    if len(broken):
        raise UserError(
            f"{len(broken):,} of {len(vectors):,} rows to cluster hold NaN or infinity, first row "
            f"{broken[0]}. Make the rows again: another embed.options.model, or float32 gradients."
        )
    first, of_distinct, count = distinct_rows(vectors)
    with threadpool_limits(threads):
        weights = count.astype(np.float32)
        distinct = vectors if len(first) == len(vectors) else vectors[first]
        found = clusterer(distinct, weights, min(k, len(first)), seed)
    _, labels, sizes = np.unique(found[of_distinct], return_inverse=True, return_counts=True)
    by_cluster = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    means = [vectors[members].mean(axis=0, dtype=np.float64) for members in by_cluster]
    centres = np.stack(means).astype(np.float32)
    distance = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = slice(start, start + BLOCK)
        distance[block] = np.linalg.norm(vectors[block] - centres[labels[block]], axis=1)
    return labels.astype(np.int32), distance, centres


def without_minus_zero(vectors: np.ndarray) -> np.ndarray:
    """The same rows, in which equal numbers have equal bits; copied only where -0.0 is found."""
    import numpy as np

    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        if np.any(np.signbit(block) & (block == 0)):
            return vectors + np.float32(0)
    return vectors


def as_often(vectors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as often as its weight says, and where each stands first."""
    import numpy as np

    count = weights.astype(np.int64)
    return np.repeat(vectors, count, axis=0), np.cumsum(count) - count


def distinct_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each distinct row stands first (m,), which one each row is (n,), how often (m,)."""
    import numpy as np

    number: dict[bytes, int] = {}
    first: list[int] = []
    of_distinct = np.empty(len(vectors), dtype=np.int64)
    for row, vector in enumerate(vectors):
        digest = hashlib.sha256(vector.tobytes()).digest()
        if digest not in number:
            number[digest] = len(first)
            first.append(row)
        of_distinct[row] = number[digest]
    return np.array(first), of_distinct, np.bincount(of_distinct)


def seeded(clusterer: Any) -> bool:
    """Whether another seed may give other clusters."""
    return bool(getattr(clusterer, "seeded", True))

"""k-means over rows, by FAISS or by scikit-learn."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Clusterer(Protocol):
    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        """(n, d) float32 distinct rows -> the cluster of each, (n,) whole numbers below ``k``.

        ``weights`` (n,) float32 say how often each row stands; ``k`` is at most n.
        """


class FaissKMeans:
    """Lloyd's k-means of FAISS: all rows are used, the best of ``restarts`` by inertia is kept."""

    def __init__(self, iterations: int = 25, restarts: int = 1) -> None:
        if iterations < 1 or restarts < 1:
            raise ValueError("iterations and restarts must be at least 1")
        self.iterations = iterations
        self.restarts = restarts

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        import faiss

        means = faiss.Kmeans(
            vectors.shape[1],
            k,
            niter=self.iterations,
            nredo=self.restarts,
            seed=seed,
            min_points_per_centroid=1,
            # FAISS trains on 256 rows per centroid by default; the rest would have no say.
            max_points_per_centroid=vectors.shape[0],
        )
        means.train(vectors, weights=weights)
        _, nearest = means.index.search(vectors, 1)
        return nearest[:, 0]


class SklearnKMeans:
    """scikit-learn's k-means with k-means++ starts: slower, the independent reference."""

    def __init__(self, n_init: int = 4, iterations: int = 100) -> None:
        if n_init < 1 or iterations < 1:
            raise ValueError("n_init and iterations must be at least 1")
        self.n_init = n_init
        self.iterations = iterations

    def __call__(self, vectors: np.ndarray, weights: np.ndarray, k: int, seed: int) -> np.ndarray:
        from sklearn.cluster import KMeans

        means = KMeans(k, n_init=self.n_init, max_iter=self.iterations, random_state=seed)
        return means.fit_predict(vectors, sample_weight=weights)


KINDS = {"faiss_kmeans": FaissKMeans, "sklearn_kmeans": SklearnKMeans}


def grouped(
    clusterer: Clusterer, vectors: np.ndarray, k: int, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster rows: -> cluster (n,) int32, distance to its centre (n,) float32, centres (k', d).

    Rows that are equal are clustered once, with their number as weight: a start on two equal rows
    would waste a centre. ``k`` is lowered to the number of distinct rows. The centres are the
    means of the rows that ended in them, and clusters that ended empty are dropped, so k' may be
    smaller: the numbers hold whatever the library did on its last step.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    vectors = np.ascontiguousarray(vectors, dtype=np.float32) + 0.0  # -0.0 and 0.0 are one number
    first, of_distinct, count = distinct_rows(vectors)
    with threadpool_limits(threads):
        weights = count.astype(np.float32)
        found = clusterer(vectors[first], weights, min(k, len(first)), seed)
    _, labels, sizes = np.unique(found[of_distinct], return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    in_order = vectors[np.argsort(labels, kind="stable")]
    sums = np.add.reduceat(in_order, starts, axis=0, dtype=np.float64)
    centres = (sums / sizes[:, None]).astype(np.float32)
    distance = np.linalg.norm(vectors - centres[labels], axis=1)
    return labels.astype(np.int32), distance.astype(np.float32), centres


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

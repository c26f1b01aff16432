"""k-means over rows, by FAISS or by scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Clusterer(Protocol):
    def __call__(self, vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
        """(n, d) float32 rows -> the cluster of each row, (n,) whole numbers below ``k``.

        ``k`` is at most the number of distinct rows.
        """


class FaissKMeans:
    """Lloyd's k-means of FAISS: all rows are used, the best of ``restarts`` by inertia is kept."""

    def __init__(self, iterations: int = 25, restarts: int = 1) -> None:
        if iterations < 1 or restarts < 1:
            raise ValueError("iterations and restarts must be at least 1")
        self.iterations = iterations
        self.restarts = restarts

    def __call__(self, vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
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
        means.train(vectors)
        _, nearest = means.index.search(vectors, 1)
        return nearest[:, 0]


class SklearnKMeans:
    """scikit-learn's k-means with k-means++ starts: slower, the independent reference."""

    def __init__(self, n_init: int = 4, iterations: int = 100) -> None:
        if n_init < 1 or iterations < 1:
            raise ValueError("n_init and iterations must be at least 1")
        self.n_init = n_init
        self.iterations = iterations

    def __call__(self, vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
        from sklearn.cluster import KMeans

        means = KMeans(k, n_init=self.n_init, max_iter=self.iterations, random_state=seed)
        return means.fit_predict(vectors)


KINDS = {"faiss_kmeans": FaissKMeans, "sklearn_kmeans": SklearnKMeans}


def grouped(
    clusterer: Clusterer, vectors: np.ndarray, k: int, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster rows: -> cluster (n,) int32, distance to its centre (n,) float32, centres (k', d).

    ``k`` is lowered to the number of distinct rows. The centres are the means of the rows that
    ended in them, and clusters that ended empty are dropped, so k' may be smaller: the numbers
    hold whatever the library did on its last step.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    distinct = len({hash(row.tobytes()) for row in vectors})
    with threadpool_limits(threads):
        labels = clusterer(vectors, min(k, distinct), seed)
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    in_order = vectors[np.argsort(labels, kind="stable")]
    sums = np.add.reduceat(in_order, starts, axis=0, dtype=np.float64)
    centres = (sums / sizes[:, None]).astype(np.float32)
    distance = np.linalg.norm(vectors - centres[labels], axis=1)
    return labels.astype(np.int32), distance.astype(np.float32), centres

"""Clusters against scikit-learn called directly, and what must hold for any rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bpo_data.components import kinds
from bpo_data.components.clusterers import KINDS, Agglomerative, FaissKMeans, Mixture, grouped
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError


def blobs(clusters: int, each: int, dim: int = 16, spread: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(clusters, dim)).astype(np.float32))
    rows = np.repeat(centres, each, axis=0) + spread * rng.normal(size=(clusters * each, dim))
    return unit(rows.astype(np.float32))


def inertia(rows: np.ndarray, labels: np.ndarray) -> float:
    return sum(
        float(((rows[labels == one] - rows[labels == one].mean(0)) ** 2).sum())
        for one in np.unique(labels)
    )


def test_faiss_finds_the_clusters_that_scikit_learn_finds():
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rows = blobs(6, 40)
    cluster, _, _ = grouped(FaissKMeans(restarts=5), rows, 6, 0, 1)
    reference = KMeans(6, n_init=10, random_state=0).fit(rows)
    assert adjusted_rand_score(cluster, reference.labels_) == pytest.approx(1)
    assert inertia(rows, cluster) == pytest.approx(reference.inertia_, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_centres_are_means_and_distances_are_to_them(kind):
    rows = blobs(4, 30, spread=0.4)
    cluster, distance, centres = grouped(KINDS[kind](), rows, 7, 3, 1)
    for one in range(len(centres)):
        members = rows[cluster == one]
        assert len(members)
        np.testing.assert_allclose(centres[one], members.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        distance, np.sqrt(((rows - centres[cluster]) ** 2).sum(1)), atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_rows_cluster_without_empty_clusters(kind, data):
    count = data.draw(st.integers(1, 12))
    rows = data.draw(arrays(np.float32, (count, 3), elements=st.sampled_from([0.0, 0.5, 1.0])))
    k = data.draw(st.integers(1, 12))
    cluster, distance, centres = grouped(KINDS[kind](), rows, k, 0, 1)
    assert set(cluster) == set(range(len(centres)))
    assert len(centres) <= min(k, len(np.unique(rows, axis=0)))
    assert np.isfinite(distance).all()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing_within_a_process(kind):
    rows = blobs(5, 60, spread=0.5)
    one, two = (grouped(KINDS[kind](), rows, 9, 1, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])


def test_all_rows_have_a_say_in_faiss():
    # 2,000 rows for 2 centres: FAISS's own default would train on 512 of them, without a warning
    # that reaches anyone. A start on centres found from all rows must then stand still.
    rows = blobs(2, 1000, spread=0.3)
    cluster, _, _ = grouped(FaissKMeans(iterations=50), rows, 2, 0, 1)
    means = np.stack([rows[cluster == one].mean(0) for one in (0, 1)])
    nearest = ((rows[:, None] - means) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest, cluster)


def test_equal_rows_count_as_often_as_they_stand():
    rows = np.concatenate([np.zeros((300, 2)), np.ones((300, 2)), [[0.1, 0]]]).astype(np.float32)
    _, distance, centres = grouped(FaissKMeans(), rows, 2, 0, 1)
    assert sorted(map(tuple, centres.round(4))) == [
        (pytest.approx(0.1 / 301, abs=1e-4), 0), (1, 1)
    ]  # fmt: skip
    assert distance[:600].max() < 1e-3


def test_a_hierarchy_is_that_of_scikit_learn_with_rows_repeated():
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    rows = np.concatenate([blobs(5, 12, spread=0.6), np.repeat(blobs(2, 1), 9, axis=0)])
    for linkage in ("ward", "average", "complete"):
        cluster, _, _ = grouped(Agglomerative(linkage), rows, 6, 0, 1)
        reference = AgglomerativeClustering(6, linkage=linkage).fit_predict(rows)
        assert adjusted_rand_score(cluster, reference) == 1, linkage


def test_a_mixture_is_that_of_scikit_learn_in_float64():
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import GaussianMixture

    rows = blobs(4, 50, spread=0.3)
    cluster, _, _ = grouped(Mixture(n_init=2), rows, 4, 5, 1)
    reference = GaussianMixture(4, covariance_type="diag", n_init=2, random_state=5)
    assert adjusted_rand_score(cluster, reference.fit_predict(rows.astype(float))) == 1


def test_too_many_rows_for_a_hierarchy_are_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"41 rows take .* options\.max_rows is 40\. Raise"):
        grouped(Agglomerative(max_rows=40), blobs(1, 41), 3, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_finite_are_refused(kind):
    rows = blobs(2, 10)
    rows[3, 1] = np.nan
    with pytest.raises(
        UserError, match="1 of 20 rows to cluster hold NaN or infinity, first row 3"
    ):
        grouped(KINDS[kind](), rows, 2, 0, 1)


def test_of_several_starts_the_one_with_the_lowest_inertia_is_kept():
    rows = blobs(12, 20, spread=0.5)
    many = FaissKMeans(restarts=8)
    weights = np.ones(len(rows), dtype=np.float32)
    starts = [FaissKMeans(restarts=count)(rows, weights, 12, 7) for count in range(1, 9)]
    found = [inertia(rows, labels) for labels in starts]
    assert found == sorted(found, reverse=True), "another start can only help"
    assert found[-1] < found[0]
    assert inertia(rows, many(rows, weights, 12, 7)) == found[-1]


def test_k_means_plus_plus_finds_clear_clusters_that_random_rows_miss():
    rows = blobs(20, 15, spread=0.02)
    found = {}
    for start in ("plus_plus", "random"):
        tries = [grouped(FaissKMeans(start=start), rows, 20, seed, 1)[0] for seed in range(5)]
        found[start] = min(inertia(rows, cluster) for cluster in tries)
    assert found["plus_plus"] < found["random"] / 2


def test_inertia_counts_a_row_as_often_as_it_stands():
    # Two rows that stand 1,000 times each lie 1 apart, three single ones 3 apart. Splitting the
    # two costs 18 for the three; splitting the three costs 5 unweighted, but 504.5 as they stand.
    rows = np.array([[0, 0], [1, 0], [9, 0], [9, 3], [9, 6]], dtype=np.float32)
    weights = np.array([1000, 1000, 1, 1, 1], dtype=np.float32)
    labels = FaissKMeans(restarts=20, start="random")(rows, weights, 3, 0)
    assert labels[0] != labels[1]
    assert labels[2] == labels[3] == labels[4]


def test_spherical_clusters_go_by_direction_alone():
    directions = blobs(5, 40, spread=0.1)
    length = np.random.default_rng(1).uniform(0.1, 10, size=(len(directions), 1))
    spherical = FaissKMeans(restarts=5, spherical=True)
    weights = np.ones(len(directions), dtype=np.float32)
    labels = spherical(directions, weights, 5, 0)
    stretched = (directions * length).astype(np.float32)
    centres = np.stack([unit(directions[labels == one].mean(0)[None])[0] for one in range(5)])
    np.testing.assert_array_equal((stretched @ centres.T).argmax(1), labels)
    np.testing.assert_array_equal((directions @ centres.T).argmax(1), labels)


def test_a_cap_on_the_rows_learnt_from_is_faiss_s_own():
    import faiss

    rows = blobs(3, 400, spread=0.4)
    weights = np.ones(len(rows), dtype=np.float32)
    ours = FaissKMeans(start="random", max_points_per_centroid=50)(rows, weights, 3, 7)
    theirs = faiss.Kmeans(16, 3, niter=25, seed=7, max_points_per_centroid=50)
    theirs.train(rows)
    np.testing.assert_array_equal(ours, theirs.assign(rows)[1])
    assert (ours != FaissKMeans(start="random")(rows, weights, 3, 7)).any()


IN_A_PROCESS = """
import sys, numpy as np
from bpo_data.components.clusterers import KINDS, grouped
rows = np.random.default_rng(0).normal(size=(800, 32)).astype(np.float32)
rows = np.concatenate([rows, rows[:40]])
for kind in sys.argv[2:]:
    for found in grouped(KINDS[kind](), rows, 24, 1, int(sys.argv[1])):
        sys.stdout.buffer.write(found.tobytes())
"""


def test_threads_change_no_byte_in_processes_that_have_them():
    def found(threads: int) -> bytes:
        everywhere = {**environment(), "OMP_NUM_THREADS": str(threads)}
        everywhere["OPENBLAS_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-c", IN_A_PROCESS, str(threads), *KINDS]
        return subprocess.run(command, capture_output=True, check=True, env=everywhere).stdout

    one, four = map(found, (1, 4))
    assert len(one) > 800 * 8
    assert four == one


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("faiss_kmeans", {"restarts": 0}),
        ("faiss_kmeans", {"start": "middle"}),
        ("faiss_kmeans", {"max_points_per_centroid": -1}),
        ("agglomerative", {"linkage": "single"}),
        ("gaussian_mixture", {"n_init": 0}),
    ],
)
def test_options_that_make_no_sense_are_found_when_settings_are_read(kind, options):
    (problem,) = kinds.problems(KINDS, kind, options, "cluster.kind")
    assert f"cluster.options of cluster.kind={kind}" in problem


def test_k_means_on_a_gpu_that_is_not_there_is_refused():
    import faiss

    if faiss.get_num_gpus():
        pytest.skip("there is a GPU: -m gpu tries it")
    with pytest.raises(UserError, match="FAISS sees no GPU"):
        grouped(FaissKMeans(gpu=True), blobs(2, 5), 2, 0, 1)

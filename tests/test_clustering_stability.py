"""How many clusters, and whether other starts find the same: against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from judged import in_files

from bpo_data.artifacts import Draft
from bpo_data.components.cluster_checks import (
    SAMPLED,
    default_k,
    drawn,
    ladder,
    settled_k,
    silhouettes,
    stability,
)
from bpo_data.components.clusterers import Agglomerative, FaissKMeans, grouped
from bpo_data.components.embedders import unit
from bpo_data.runtime import Runtime
from bpo_data.stages import cluster as stage
from bpo_data.stages.cluster import ClusterConfig
from bpo_data.tables import vectors


def blobs(clusters: int, each: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(clusters, 24)).astype(np.float32))
    rows = np.repeat(centres, each, axis=0) + spread * rng.normal(size=(clusters * each, 24))
    return unit(rows.astype(np.float32))


def names(count: int) -> list[str]:
    return [f"{number:06d}" for number in range(count)]


def test_the_silhouette_finds_the_clusters_that_are_there():
    rows = blobs(6, 60, 0.05)
    k, scores = settled_k("silhouette", FaissKMeans(restarts=5), rows, names(len(rows)), 0)
    assert k == 6
    assert scores[6] > 0.6
    assert sorted(scores) == list(ladder(2 * default_k(360)))


def test_silhouettes_are_those_of_scikit_learn():
    from sklearn.metrics import silhouette_score

    rows = blobs(4, 30, 0.3)
    scores = silhouettes(FaissKMeans(), rows, 2)
    for k in (2, 4, 12):
        cluster, _, _ = grouped(FaissKMeans(), rows, k, 2, 1)
        assert scores[k] == pytest.approx(silhouette_score(rows, cluster), abs=1e-5)


@pytest.mark.parametrize(
    "rows", [np.zeros((9, 3)), np.ones((1, 3)), np.eye(3), np.eye(2).repeat(2, 0)]
)
def test_rows_without_a_choice_still_get_a_number(rows):
    k, _ = settled_k("silhouette", FaissKMeans(), rows.astype(np.float32), names(len(rows)), 0)
    assert 1 <= k <= len(rows)


def test_the_root_rule_by_hand():
    assert [default_k(count) for count in (1, 2, 200, 5_000, 20_000, 10**6)] == [
        1, 1, 10, 50, 100, 100
    ]  # fmt: skip
    assert list(ladder(12)) == [2, 3, 4, 6, 8, 12]


def test_what_is_drawn_depends_on_names_not_on_order():
    known = names(50)
    turned = known[::-1]
    first = {known[row] for row in drawn(known, 20, 3, "test")}
    assert {turned[row] for row in drawn(turned, 20, 3, "test")} == first
    assert len(first) == 20
    assert first != {known[row] for row in drawn(known, 20, 4, "test")}
    assert list(drawn(known, SAMPLED, 0, "test")) == list(range(50))


def test_clear_clusters_are_found_from_every_start_and_noise_is_not():
    clear, noise = blobs(3, 60, 0.02), blobs(1, 180, 3.0)
    found = {}
    for name, rows, k in (("clear", clear, 3), ("noise", noise, 9)):
        search = FaissKMeans(restarts=5)
        cluster, _, _ = grouped(search, rows, k, 0, 1)
        found[name] = stability(search, rows, cluster, k, 0, 2, 1)
    assert found["clear"] == 1
    assert found["noise"] < 0.4


def test_stability_is_the_mean_over_all_pairs_of_starts():
    from sklearn.metrics import adjusted_rand_score

    rows = blobs(4, 40, 0.6)
    a, b, c = (grouped(FaissKMeans(), rows, 8, 5 + start, 1)[0] for start in range(3))
    by_hand = sum(adjusted_rand_score(*two) for two in ((a, b), (a, c), (b, c))) / 3
    assert stability(FaissKMeans(), rows, a, 8, 5, 2, 1) == pytest.approx(by_hand)


def test_nothing_is_said_of_starts_where_none_is_drawn():
    rows = blobs(2, 10, 0.1)
    labels = np.zeros(20)
    assert stability(Agglomerative(), rows, labels, 2, 0, 3, 1) is None
    assert stability(FaissKMeans(), rows, labels, 2, 0, 0, 1) is None


def clustered(folder: Path, config: ClusterConfig, rows: np.ndarray) -> Draft:
    """The cluster stage on pairs whose rejected responses have no gradient."""
    count = len(rows)
    pairs = pa.table({
        "pair_id": names(count),
        "chosen_id": [f"{name}+" for name in names(count)],
        "rejected_id": [f"{name}-" for name in names(count)],
    })  # fmt: skip
    gradients = pa.table({
        "response_id": pa.concat_arrays([pairs["chosen_id"].combine_chunks(),
                                         pairs["rejected_id"].combine_chunks()]),
        "gradient": vectors(np.concatenate([rows, np.zeros_like(rows)])),
        "scale": np.ones(2 * count, dtype=np.float32),
        "tokens": np.ones(2 * count, dtype=np.int32),
        "log_prob": np.zeros(2 * count),
        "reference_log_prob": np.zeros(2 * count),
    })  # fmt: skip
    inputs = {"gradients": in_files(folder / "of", gradients, 2 * count)}
    draft = Draft(folder, "clusters", stage.schema(config), inputs, "cluster")
    stage.run(draft, config, Runtime(device="cpu"), pairs=pairs)
    return draft


def test_the_stage_reports_and_says_how_far_clusters_depend_on_the_start(tmp_path):
    noise = clustered(tmp_path, ClusterConfig(), blobs(1, 120, 3.0))
    assert noise.facts["starts_agree"] < 0.5
    assert "3 starts agree at an adjusted Rand index of 0." in noise.facts["notes"][0]
    clear = ClusterConfig(k=2, options={"restarts": 4})
    assert clustered(tmp_path, clear, blobs(2, 60, 0.02)).facts["starts_agree"] == 1
    assert (
        clustered(tmp_path, ClusterConfig(stability=0), noise_rows()).facts["starts_agree"] is None
    )


def noise_rows() -> np.ndarray:
    return blobs(1, 40, 3.0)


def test_further_starts_change_no_row(tmp_path):
    one, two = (
        clustered(tmp_path / str(count), ClusterConfig(stability=count), noise_rows()).read()
        for count in (0, 3)
        if (tmp_path / str(count)).mkdir() is None
    )
    assert one.equals(two)


def test_the_stage_chooses_a_number_and_says_when_there_is_no_structure(tmp_path):
    config = ClusterConfig(choose_k="silhouette", options={"restarts": 5})
    found = clustered(tmp_path, config, blobs(5, 50, 0.05))
    assert found.facts["clusters"] == 5 or found.facts["clusters"] in (4, 6)
    assert set(found.facts["silhouette"]) >= {"2", "3", "4", "6", "8"}
    noise = clustered(tmp_path, config, blobs(1, 250, 3.0))
    assert any("no substantial structure" in said for said in noise.facts["notes"])


def test_a_rule_without_a_say_is_refused():
    (problem,) = ClusterConfig(k=5, choose_k="silhouette").problems()
    assert problem.endswith("has no say with cluster.k=5: set cluster.k=0.")
    (problem,) = ClusterConfig(choose_k="elbow").problems()
    assert problem == "cluster.choose_k=elbow: choose root or silhouette."
    (problem,) = ClusterConfig(stability=-1).problems()
    assert "cluster.stability=-1" in problem

"""The measured stages' facts: likelihoods, gradients by part, clusters of degenerate pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import in_files
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin

from bpo_data import assigning
from bpo_data.artifacts import Artifact
from bpo_data.components.clusterers import FaissKMeans, grouped
from bpo_data.components.embedders import unit
from bpo_data.engines import engine_of
from bpo_data.gradients.engine import ResponseGradients
from bpo_data.likelihood import log_probs
from bpo_data.policy import encode
from bpo_data.runtime import Runtime
from bpo_data.scratch import Scratch, make_policy
from bpo_data.shelf import Shelf
from bpo_data.stages import cluster
from bpo_data.statistics import gini, mean_by_prompt, mean_of, share_by_prompt
from bpo_data.tables import vectors
from bpo_data.work import Work

TALKS = [
    ([{"role": "user", "content": f"question {n}"}], f"answer {n} " * (1 + n % 4)) for n in range(9)
]


@pytest.fixture(scope="module")
def policy():
    torch.set_num_threads(1)
    conversations = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in TALKS]
    return make_policy(conversations, Scratch(width=32, hidden=32, heads=2), 0)


def test_log_probs_equal_one_forward_pass_a_row(policy):
    ours = log_probs(policy, TALKS)
    for row, (prompt, text) in enumerate(TALKS):
        before, after = encode(policy.tokenizer, prompt, text)
        with torch.no_grad():
            logits = policy.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        alone = sum(logits[len(before) - 1 + n, token].item() for n, token in enumerate(after))
        assert ours[row] == pytest.approx(alone, rel=1e-5)


def test_the_gradient_stage_and_the_likelihood_agree_on_log_probs(policy):
    tokens = [encode(policy.tokenizer, prompt, text) for prompt, text in TALKS]
    engine = ResponseGradients(policy.model, rank=4, dim=32, seed=0)
    measured = engine.of([row[0] for row in tokens], [row[1] for row in tokens])
    np.testing.assert_allclose(measured.log_prob, log_probs(policy, TALKS), rtol=1e-4)


def clustered(folder, gradients: np.ndarray, engine: str = "local", **options) -> Artifact:
    """Pairs (2n, 2n+1) of the given response gradients through the cluster stage."""
    count = len(gradients) // 2
    ids = [f"p{n // 2:03d}/{n % 2:02d}" for n in range(2 * count)]
    table = pa.table(
        {
            "response_id": ids,
            "gradient": vectors(gradients.astype(np.float32)),
            "scale": pa.array(np.ones(2 * count, dtype=np.float32)),
            "log_prob": pa.array(np.zeros(2 * count, dtype=np.float32)),
            "reference_log_prob": pa.array(np.zeros(2 * count, dtype=np.float32)),
            "tokens": pa.array(np.full(2 * count, 5, dtype=np.int32)),
        }
    )
    pairs = pa.table(
        {
            "pair_id": [f"p{n:03d}/00>01" for n in range(count)],
            "prompt_id": [f"p{n:03d}" for n in range(count)],
            "chosen_id": ids[::2],
            "rejected_id": ids[1::2],
            "margin": pa.array(np.ones(count, dtype=np.float32)),
        }
    )
    config = cluster.ClusterConfig(**options)
    inputs = {"gradients": in_files(folder / "of", table, 2 * count // 3 + 1)}

    def run(draft) -> None:
        cluster.run(draft, config, Runtime(), pairs=pairs)

    work = Work("cluster", 1, options, {})
    runtime = Runtime(engine=engine, processes=2 if engine == "processes" else 0)
    schema = cluster.schema(config)
    return Shelf(folder).make(work, "clusters", schema, inputs, run, engine_of(runtime))


def test_usefulness_and_informativeness_are_as_defined(tmp_path):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(40, 8))
    rows = clustered(tmp_path, gradients, k=3).table().to_pylist()
    # DPO at its own reference: -beta * sigmoid(0) * (s_w - s_l), beta 0.1.
    pair = -0.05 * (gradients[::2] - gradients[1::2])
    directions = unit(pair)
    labels = np.array([row["cluster"] for row in rows])
    for number, row in enumerate(rows):
        centre = directions[labels == labels[number]].mean(0)
        cosine = directions[number] @ centre / np.linalg.norm(centre)
        assert row["informativeness"] == pytest.approx(np.linalg.norm(pair[number]), rel=1e-4)
        assert row["usefulness"] == pytest.approx(cosine, abs=1e-5)
        assert row["distance"] == pytest.approx(
            np.linalg.norm(directions[number] - centre), abs=1e-5
        )


def test_fitted_on_all_pairs_or_on_more_than_there_are_is_the_same(tmp_path):
    gradients = np.random.default_rng(2).normal(size=(60, 8))
    one = clustered(tmp_path / "a", gradients, k=4)
    other = clustered(tmp_path / "b", gradients, k=4, fit_on=30)
    assert one.table() == other.table()


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_pairs_outside_the_sample_go_to_the_nearest_centre(tmp_path, monkeypatch, engine):
    monkeypatch.setattr(cluster, "PART_ROWS", 7)
    monkeypatch.setattr(cluster, "BLOCK", 4)
    monkeypatch.setattr(assigning, "HELD", 1)
    gradients = np.random.default_rng(3).normal(size=(80, 8))
    sample = clustered(tmp_path / "a", gradients, k=3, fit_on=15, engine=engine).table()
    directions = unit(gradients[1::2] - gradients[::2])
    names = sample["pair_id"].to_pylist()
    chosen = assigning.drawn(pa.table({"pair_id": names}), 15, 0)["pair_id"].to_pylist()
    assert len(set(chosen)) == 15
    rows = [names.index(name) for name in chosen]
    centres = grouped(FaissKMeans(), directions[rows].astype(np.float32), 3, 0, 1)[2]
    by_hand = pairwise_distances_argmin(directions, centres)
    far = np.linalg.norm(directions - centres[by_hand], axis=1)
    assert sample["cluster"].to_pylist() == by_hand.tolist()
    np.testing.assert_allclose(sample["distance"].to_numpy(), far, atol=1e-5)
    axes = PCA(2, svd_solver="full").fit(directions[rows])
    spread = np.abs(axes.transform(directions))
    np.testing.assert_allclose(np.abs(sample["x"].to_numpy()), spread[:, 0], atol=1e-3)


def test_the_scale_of_all_gradients_changes_no_cluster_and_no_usefulness(tmp_path):
    gradients = np.random.default_rng(1).normal(size=(60, 8))
    one = clustered(tmp_path / "a", gradients, k=4).table()
    other = clustered(tmp_path / "b", 64 * gradients, k=4).table()
    for name in ("cluster", "distance", "usefulness"):
        np.testing.assert_array_equal(one[name].to_numpy(), other[name].to_numpy())


@pytest.mark.parametrize("kind", ["same", "zero", "two"])
def test_identical_and_zero_gradients_are_counted_and_crash_nothing(tmp_path, kind):
    one = np.arange(1.0, 9.0)
    chosen = {"same": [one] * 6, "zero": [0 * one] * 6, "two": [one, -one] * 3}[kind]
    gradients = np.stack([row for pair in zip(chosen, [0 * one] * 6, strict=True) for row in pair])
    artifact = clustered(tmp_path, gradients, k=5)
    assert artifact.facts["clusters"] == {"same": 1, "zero": 1, "two": 2}[kind]
    assert artifact.facts["zero_gradients"] == (6 if kind == "zero" else 0)
    assert np.isfinite(artifact.table()["x"].to_numpy()).all()


@settings(max_examples=30)
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_interval_is_students(values):
    from scipy import stats

    ours = mean_of(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    if np.std(values) > 1e-9:
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6)


def test_rows_of_a_prompt_count_as_one():
    many = mean_by_prompt([("p", 1.0)] * 50 + [("q", 0.0), ("r", 0.5)])
    assert (many.mean, many.count) == (0.5, 3)


def test_a_share_has_no_interval_beyond_0_and_1():
    few = share_by_prompt([("p", 1.0), ("q", 1.0), ("r", 0.5)])
    assert 0 < few.low < few.mean < few.high <= 1


def test_few_prompts_that_agree_are_not_certain():
    from scipy.stats import binomtest

    ours = share_by_prompt([("p", 1.0), ("q", 1.0)])
    theirs = binomtest(2, 2).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-4)
    tie = share_by_prompt([(f"p{n}", 0.5) for n in range(40)])
    assert tie.low < 0.5 < tie.high


def test_gini_by_hand():
    assert gini([2, 2, 2]) == 0
    assert gini([0, 0, 3]) == pytest.approx(2 / 3)
    assert gini([1, 2, 3]) == pytest.approx(2 / 9)

"""The allocate stage: what every rule is given to choose from, and what it may not depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bpo_data.artifacts import Draft
from bpo_data.components.allocators import KINDS
from bpo_data.components.clusterers import FaissKMeans, grouped
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError
from bpo_data.pipelines import config as settings
from bpo_data.runtime import Runtime
from bpo_data.stages import allocate, cluster
from bpo_data.stages.allocate import AllocateConfig
from bpo_data.stages.cluster import ClusterConfig, gradients_of
from bpo_data.tables import vectors
from bpo_data.work import settings_of

WORDS = ("sum", "of", "two", "three", "ducks", "geese", "is", "about", "seven", "maybe", "eight")


@dataclass
class Made:
    """An artifact that is a table in memory."""

    whole: pa.Table
    manifest: dict[str, Any] = field(default_factory=dict)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return self.whole.select(columns) if columns else self.whole


def measured(scale: float = 1.0, shuffle: int = 0) -> dict[str, Made]:
    """12 prompts of 4 responses and their pairs; rows in the order that ``shuffle`` draws.

    ``scale`` multiplies all gradients.
    """
    random = np.random.default_rng(7)
    prompts = [f"{number:016x}" for number in range(12)]
    responses = [f"{prompt}/{number:02d}" for prompt in prompts for number in range(4)]
    gradient = random.standard_normal((48, 8)).astype(np.float32)
    loss = random.uniform(1, 9, (3, 48)).astype(np.float32)
    gradients = pa.table(
        {
            "response_id": responses, "gradient": vectors(gradient),
            "scale": np.full(48, scale, np.float32), "log_prob": -loss[0],
            "reference_log_prob": -loss[1], "unprompted_log_prob": -loss[2],
            "tokens": random.integers(1, 9, 48).astype(np.int32),
        }
    )  # fmt: skip
    sides = [(prompt, a, b) for prompt in prompts for a, b in ((0, 1), (1, 2), (0, 2), (3, 1))]
    pairs = pa.table(
        {
            "pair_id": [f"{prompt}/{a:02d}>{b:02d}" for prompt, a, b in sides],
            "prompt_id": [prompt for prompt, _, _ in sides],
            "chosen_id": [f"{prompt}/{a:02d}" for prompt, a, _ in sides],
            "rejected_id": [f"{prompt}/{b:02d}" for prompt, _, b in sides],
            "margin": random.uniform(0.5, 3, 48).astype(np.float32),
        }
    ).sort_by("pair_id")
    how = ClusterConfig(k=4, beta=0.3)
    rows, _ = gradients_of(pairs, gradients, how)
    cluster, distance, _ = grouped(FaissKMeans(), unit(rows), 4, 0, 1)
    clusters = pa.table(
        {
            "pair_id": pairs["pair_id"], "cluster": cluster, "distance": distance,
            "usefulness": 1 - distance, "informativeness": np.linalg.norm(rows, axis=1),
        }
    )  # fmt: skip
    texts = [" ".join(random.choice(WORDS, 6)) for _ in responses]
    tables = {
        "pairs": pairs,
        "clusters": clusters,
        "gradients": gradients,
        "responses": pa.table({"response_id": responses, "text": texts}),
        "embeddings": pa.table(
            {"prompt_id": prompts, "embedding": vectors(unit(random.standard_normal((12, 3))))}
        ),
    }
    if shuffle:
        order = np.random.default_rng(shuffle)
        tables = {name: table.take(order.permutation(len(table))) for name, table in tables.items()}
    made = {name: Made(table) for name, table in tables.items()}
    made["clusters"].manifest["settings"] = settings_of(how)
    return made


def allocated(folder: Path, inputs: dict[str, Made], **options: Any) -> Draft:
    config = AllocateConfig(**options)
    assert list(config.problems()) == []
    folder.mkdir(exist_ok=True)
    draft = Draft(folder, "allocation", allocate.schema(config), inputs)
    tables = {name: inputs[name].table() for name in ("pairs", "clusters")}
    allocate.run(draft, config, Runtime(folder=str(folder)), **tables)
    return draft


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_and_the_scale_of_gradients_change_nothing(tmp_path, kind):
    first = allocated(tmp_path / "1", measured(), kind=kind)
    for name, inputs in {"2": measured(shuffle=1), "3": measured(scale=4.0)}.items():
        other = allocated(tmp_path / name, inputs, kind=kind)
        assert other.read().equals(first.read())
        assert other.facts == first.facts
    assert first.facts["budget"] == first.read()["kept"].to_numpy(zero_copy_only=False).sum()


def test_rules_get_the_gradients_that_were_clustered(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 7)  # of 48 pairs
    inputs = measured()
    pairs, clusters = inputs["pairs"].table(), inputs["clusters"].table()
    draft = Draft(tmp_path, "allocation", allocate.schema(AllocateConfig()), inputs)
    pool = allocate.pool_of(draft, Runtime(), pairs, clusters)
    rows, _ = gradients_of(pairs, inputs["gradients"].table(), ClusterConfig(k=4, beta=0.3))
    assert np.array_equal(pool.gradients(), unit(rows))
    centres = np.stack([unit(rows)[pool.cluster == number].mean(axis=0) for number in range(4)])
    apart = np.linalg.norm(pool.gradients() - centres[pool.cluster], axis=1)
    assert pool.distance == pytest.approx(apart, abs=1e-6)


def test_rules_get_what_pairs_say_as_the_mean_of_three_cosines(tmp_path):
    inputs = measured()
    pairs, clusters = inputs["pairs"].table(), inputs["clusters"].table()
    draft = Draft(tmp_path, "allocation", allocate.schema(AllocateConfig()), inputs)
    rows = allocate.pool_of(draft, Runtime(), pairs, clusters).embeddings()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    # The first two pairs by id are 00>01 and 00>02 of one prompt: prompt and chosen are the same.
    assert pairs["pair_id"].to_pylist()[0][17:] == "00>01"
    assert pairs["pair_id"].to_pylist()[1][17:] == "00>02"
    assert 2 / 3 - 1 / 3 <= float(rows[0] @ rows[1]) < 1


def test_perplexity_and_ifd_are_of_the_chosen_response(tmp_path):
    inputs = measured()
    pairs, clusters = inputs["pairs"].table(), inputs["clusters"].table()
    draft = Draft(tmp_path, "allocation", allocate.schema(AllocateConfig()), inputs)
    pool = allocate.pool_of(draft, Runtime(), pairs, clusters)
    measures = {row["response_id"]: row for row in inputs["gradients"].table().to_pylist()}
    chosen = measures[pairs["chosen_id"][5].as_py()]
    assert pool.perplexity()[5] == pytest.approx(np.exp(-chosen["log_prob"] / chosen["tokens"]))
    assert pool.ifd()[5] == pytest.approx(chosen["log_prob"] / chosen["unprompted_log_prob"])


def test_rules_that_need_no_gradients_do_not_read_them(tmp_path):
    inputs = measured()
    for name in ("gradients", "responses", "embeddings"):
        del inputs[name]
    for kind in ("center", "sample", "informative", "far", "uniform", "random", "margin", "norm"):
        allocated(tmp_path / kind, inputs, kind=kind)
    with pytest.raises(KeyError):
        allocated(tmp_path / "other", inputs, kind="d_optimal")


def test_facts_say_what_the_rule_did(tmp_path):
    facts = allocated(tmp_path, measured(), kind="center", budget=30, max_depth=3).facts
    assert facts["prompts_without_pairs"] == 0
    assert facts["reasons"]["floor"] == facts["prompts"] == 12
    assert facts["prompts_at_cap"] == facts["depths"].get("3", 0)
    assert facts["prompts_at_floor"] == facts["depths"].get("1", 0)
    spilled = facts["reasons"].get("spill", 0)
    assert sum(facts["quotas"]) == 18
    assert facts["reasons"]["quota"] + spilled == 18


def test_breadth_takes_one_pair_of_each_prompt_and_says_when_there_are_too_few(tmp_path):
    facts = allocated(tmp_path / "1", measured(), kind="breadth", budget=7).facts
    assert facts["depths"] == {"0": 5, "1": 7}
    with pytest.raises(UserError, match="holds 12 pairs of 12 prompts, at most 1 of each"):
        allocated(tmp_path / "2", measured(), kind="breadth", budget=13)


def test_settings_know_the_limits_that_a_rule_brings_along():
    small = ["select.keep=200", "allocate.budget=100"]
    assert settings.read([*small, "allocate.kind=breadth"])
    with pytest.raises(UserError, match=r"allocate\.budget=100 is below"):
        settings.read(small)
    with pytest.raises(UserError, match=r"set gradients\.unprompted=true"):
        settings.read(["allocate.kind=ifd"])
    assert settings.read(["allocate.kind=ifd", "gradients.unprompted=true"])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("clusters", {"quota": "square"}, "quota=square: choose proportional, sqrt"),
        ("clusters", {"uniform": 2.0}, "uniform=2.0: a share"),
        ("norm", {"which": "longest"}, "which=longest: choose large, medium, small"),
        ("sample", {"tau": -1.0}, "tau=-1.0"),
        ("marginal", {"others": 1.5}, "others=1.5"),
        ("d_optimal", {"ridge": 0.0}, "ridge=0.0"),
        ("k_center", {"tolerance": 1.0}, "tolerance=1.0"),
        ("facility_location", {"block": 1}, "block=1"),
        ("center", {"tau": 1.0}, "allocate.options.tau is not an option"),
    ],
)
def test_options_that_make_no_sense_are_found_when_settings_are_read(kind, options, words):
    (problem,) = AllocateConfig(kind=kind, options=options).problems()
    assert words in problem

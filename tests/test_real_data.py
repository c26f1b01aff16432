"""The shipped recipes on real data: all stages, small sizes, nothing replaced by a stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_data, run

from bpo_data.stages import STAGES

SMALL = (
    "sft.steps=6",
    "sft.batch=4",
    "sft.max_length=256",
    "train.steps=3",
    "train.batch=4",
    "train.max_length=256",
    "evaluate.prompts=4",
    "evaluate.max_tokens=8",
    "gradients.rank=4",
    "gradients.dim=64",
)


def ran(folder: Path, *arguments: str) -> dict[str, dict]:
    result = run("stage=all", f"runtime.folder={folder}", *SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    found = [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]
    return {manifest["stage"]: manifest for manifest in found}


def dataset(folder: Path) -> list[dict]:
    return [
        row for path in folder.glob("export-*/dataset/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]  # fmt: skip


@needs_data
def test_rated_responses_become_a_balanced_dataset(tmp_path):
    path = SHARED / "gpt4_ratings_1to5.parquet"
    manifests = ran(tmp_path, "recipe=gpt4_ratings", f"load.path={path}")
    assert set(manifests) == set(STAGES)
    ratings = {
        (row["response"], row["prompt"][-1]["content"]): row["score"]
        for row in pq.read_table(path).to_pylist()
    }
    rows = dataset(tmp_path)
    assert len(rows) == manifests["allocate"]["facts"]["budget"]
    for row in rows:
        question = row["prompt"][-1]["content"]
        for side in ("chosen", "rejected"):
            score = ratings[row[side][0]["content"], question]
            assert row[f"score_{side}"] == pytest.approx(score, abs=1e-5)
    assert manifests["evaluate"]["facts"]["win_rate"] is None
    assert manifests["evaluate"]["facts"]["pair_accuracy"]["count"] > 0


@needs_data
def test_many_saturated_scores_pair_by_logit(tmp_path):
    path = SHARED / "alpaca_eval_responses.parquet"
    manifests = ran(tmp_path, "recipe=alpaca_eval", f"load.path={path}", "load.limit=24")
    assert set(manifests) == set(STAGES)
    rows = dataset(tmp_path)
    assert rows
    assert all(0 <= row["score_rejected"] < row["score_chosen"] <= 1 for row in rows)
    assert all(row["margin"] > 0.5 for row in rows), "margins are on the scale of the logit"
    assert manifests["pair"]["facts"]["identical_responses_collapsed"] > 0


@needs_data
def test_pairs_get_depth_from_new_responses_beside_the_originals(tmp_path):
    path = SHARED / "hh_harmless_2k.parquet"
    manifests = ran(
        tmp_path, "recipe=hh_harmless", f"load.path={path}", "load.limit=60", "select.share=0.4",
        "augment.max_tokens=24", "gradients.layers=all",
    )  # fmt: skip
    assert set(manifests) == set(STAGES)
    facts = manifests["augment"]["facts"]
    assert facts["given"] >= 2 * facts["prompts"]
    assert facts["given"] + facts["new"] >= 5 * facts["prompts"]
    rows = dataset(tmp_path)
    assert any(len(row["prompt"]) > 1 for row in rows), "multi-turn conversations are kept"
    authors = {row[f"author_{side}"] for row in rows for side in ("chosen", "rejected")}
    assert authors & {"chosen", "rejected"}
    assert manifests["evaluate"]["facts"]["win_rate"]["count"] > 0

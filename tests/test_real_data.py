"""The shipped recipes on real data: all stages, small sizes, nothing replaced by a stand-in."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations
from math import fsum, log
from pathlib import Path
from statistics import mean, median

import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_data, run
from pairing import paired

from bpo_data.artifacts import Draft
from bpo_data.stages import STAGES
from bpo_data.stages.pair import PairConfig

SMALL = (
    "sft.scratch.width=64",
    "sft.scratch.hidden=64",
    "sft.scratch.layers=1",
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
    manifests = ran(tmp_path, "recipe=gpt4_ratings", f"load.path={path}", "load.limit=60")
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
    few = ("load.limit=12", "select.share=1")
    manifests = ran(tmp_path, "recipe=alpaca_eval", f"load.path={path}", *few)
    assert set(manifests) == set(STAGES)
    rows = dataset(tmp_path)
    assert rows
    assert all(0 <= row["score_rejected"] < row["score_chosen"] <= 1 for row in rows)
    assert all(row["margin"] > 0.5 for row in rows), "margins are on the scale of the logit"
    sizes = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert close(manifests["export"]["facts"]["lengths"]["kept"], lengths_of(sizes))
    assert all(max(map(len, pair)) <= 1.5 * min(map(len, pair)) for pair in sizes)
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


ALPACA = SHARED / "alpaca_eval_responses.parquet"
FIGURES = ("chosen_longer", "equally_long", "longer_share", "mean_chosen", "mean_rejected",
           "median_ratio")  # fmt: skip


@pytest.fixture(scope="module")
def judged() -> list[dict]:
    """The responses that a judge compared with the reference: 404 prompts, up to 23 of each.

    The others read the same as the reference and have its 0.5 by definition.
    """
    rows = pq.read_table(ALPACA, filters=[("judged", "=", True)]).to_pylist()
    rows = [row for row in rows if row["response"].strip()]
    return [
        {
            "prompt_id": row["prompt_id"], "response_id": f"{row['prompt_id']}/{row['model']}",
            "number": number, "text": row["response"], "score": row["score"],
        }
        for number, row in enumerate(rows)
    ]  # fmt: skip


def distinct(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Prompt -> the texts that differ after NFC, with the mean of their scores."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        text = unicodedata.normalize("NFC", row["text"]).strip()
        scores.setdefault(row["prompt_id"], {}).setdefault(text, []).append(row["score"])
    return {
        name: {text: fsum(given) / len(given) for text, given in texts.items()}
        for name, texts in scores.items()
    }


def drawn(folder: Path, rows: list[dict], **settings) -> Draft:
    return paired(folder, rows, PairConfig(**{"per_prompt": 8, **settings}))


def lengths_of(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """The figures of (chosen, rejected) texts, without numpy."""
    sizes = [(len(chosen), len(rejected)) for chosen, rejected in pairs]
    longer, tied = (sum(a > b for a, b in sizes), sum(a == b for a, b in sizes))
    share = (longer + tied / 2) / len(sizes)
    ratio = median(a / b for a, b in sizes)
    means = (mean(a for a, _ in sizes), mean(b for _, b in sizes))
    return dict(zip(FIGURES, (longer, tied, share, *means, ratio), strict=True))


def close(found: dict[str, float], wanted: dict[str, float]) -> bool:
    """Equal to the digits that facts are rounded to."""
    return all(found[name] == pytest.approx(wanted[name], abs=0.051) for name in FIGURES) and (
        abs(found["longer_share"] - wanted["longer_share"]) < 1e-4
    )


@needs_data
@pytest.mark.parametrize(
    ("scale", "floor", "without"),
    [("score", 0.01, 17), ("score", 0.5, 74), ("logit", 0.5, 0), ("logit", 4, 1)],
)
def test_prompts_short_of_pairs_are_those_of_the_raw_file(judged, tmp_path, scale, floor, without):
    facts = drawn(tmp_path, judged, scale=scale, min_margin=floor).facts

    def point(score: float) -> float:
        inside = min(max(score, 1e-6), 1 - 1e-6)
        return log(inside / (1 - inside)) if scale == "logit" else score

    counts = [
        sum(abs(point(a) - point(b)) > floor for a, b in combinations(texts.values(), 2))
        for texts in distinct(judged).values()
    ]
    assert facts["prompts"] == len(counts) == 404
    assert facts["prompts_without_pairs"] == counts.count(0) == without
    assert facts["prompts_short_of_pairs"] == sum(0 < count < 8 for count in counts)
    assert facts["pairs_possible"] == sum(counts)
    assert facts["lengths"]["candidates"]["pairs"] == sum(min(count, 8) for count in counts)
    notes = [f"{without} of 404 prompts give no pair"] if without else []
    assert [note.split(" (")[0] for note in facts.get("notes", []) if "no pair" in note] == notes


@needs_data
def test_identical_responses_collapse_as_often_as_the_raw_file_has_them(judged, tmp_path):
    draft = drawn(tmp_path, judged)
    texts = {row["response_id"]: row["text"].strip() for row in judged}
    extra = len(judged) - sum(map(len, distinct(judged).values()))
    assert draft.facts["identical_responses_collapsed"] == extra > 100
    assert all(
        texts[pair["chosen_id"]] != texts[pair["rejected_id"]] for pair in draft.read().to_pylist()
    )


@needs_data
def test_length_figures_equal_those_of_the_raw_file(judged, tmp_path):
    draft = drawn(tmp_path, judged, min_margin=0.01)
    first: dict[tuple[str, str], str] = {}  # lengths are of the text as it stands in the file
    for row in judged:
        plain = unicodedata.normalize("NFC", row["text"]).strip()
        first.setdefault((row["prompt_id"], plain), row["text"])
    possible = [
        (first[name, one], first[name, other]) if a > b else (first[name, other], first[name, one])
        for name, texts in distinct(judged).items()
        for (one, a), (other, b) in combinations(texts.items(), 2)
        if abs(a - b) > 0.01
    ]
    texts = {row["response_id"]: row["text"] for row in judged}
    pairs = [(texts[p["chosen_id"]], texts[p["rejected_id"]]) for p in draft.read().to_pylist()]
    found = draft.facts["lengths"]
    assert close(found["candidates"], lengths_of(pairs))
    assert close(found["possible"], lengths_of(possible))
    assert found["possible"]["longer_share"] > 0.75


@needs_data
def test_matching_leaves_length_nothing_to_say_on_real_responses(judged, tmp_path):
    matched = {"scale": "logit", "min_margin": 0.5, "match_length": True}
    even = drawn(tmp_path / "even", judged, **matched).facts
    near = drawn(tmp_path / "near", judged, **matched, max_length_ratio=1.5).facts
    for facts in (even, near):
        found = facts["lengths"]["candidates"]
        assert facts["lengths"]["possible"]["longer_share"] > 0.7
        assert abs(found["longer_share"] - 0.5) < 1 / found["pairs"]
        assert facts["prompts_without_pairs"] == 0
    means = [facts["lengths"]["candidates"] for facts in (even, near)]
    over = [found["mean_chosen"] / found["mean_rejected"] - 1 for found in means]
    assert over[0] > 0.1, "as often the longer one, but then by more"
    assert over[1] < 0.05
    assert means[1]["pairs"] > 0.97 * means[0]["pairs"]

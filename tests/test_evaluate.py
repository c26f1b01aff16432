"""Evaluation: a policy ties with itself, whatever judges it and however it is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import TINY, run
from judged import fields_of

from bpo_data.components.judging import Judgement, Opinion, Verdict
from bpo_data.components.wins import (
    REASONS,
    WORDY,
    reasons_by_side,
    topic_figures,
    win_figures,
)
from bpo_data.policy import save_policy
from bpo_data.report import evaluation
from bpo_data.scratch import Scratch, make_policy

STILL = ("train.learning_rate=1e-12", "train.steps=1")
"""Training that moves no weight by more than float32 can hold."""


def wins(folder: Path) -> tuple[dict, list[dict]]:
    (path,) = folder.glob("evaluate-*")
    facts = json.loads((path / "manifest.json").read_text())["facts"]
    return facts, pq.read_table(path / "wins.parquet").to_pylist()


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    """A runs folder in which the trained policy is the SFT policy, evaluated."""
    folder = tmp_path_factory.mktemp("still")
    result = run("stage=evaluate", f"runtime.folder={folder}", *TINY, *STILL)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_a_policy_ties_with_itself_under_the_verifier(still):
    facts, rows = wins(still)
    assert {row["winner"] for row in rows} == {"tie"}
    assert facts["win_rate"]["mean"] == 0.5
    assert facts["reasons"]
    assert all(counts["sft"] == counts["trained"] for counts in facts["reasons"].values())
    assert sum(counts["sft"] for counts in facts["reasons"].values()) == len(rows)
    assert facts["win_rate"]["low"] < 0.5 < facts["win_rate"]["high"], "20 ties prove no tie"
    assert facts["length_controlled"]["mean"] == 0.5
    assert facts["kl"]["per_token"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 20}
    assert facts["diversity"]["sft"] == facts["diversity"]["trained"]
    assert "greedy" not in facts


def test_a_run_is_compared_with_an_earlier_one_both_ways(still, tmp_path):
    shutil.copytree(still, tmp_path / "runs")
    _, before = wins(still)
    (earlier,) = still.glob("train-*")
    for old in (*(tmp_path / "runs").glob("evaluate-*"), *(tmp_path / "runs").glob("train-*")):
        shutil.rmtree(old)
    result = run(
        "stage=report", f"runtime.folder={tmp_path}/runs", *TINY, "train.learning_rate=1e-3",
        f"evaluate.against={earlier}", "evaluate.decoding=both",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts, rows = wins(tmp_path / "runs")
    assert [row["text_sft"] for row in rows] == [row["text_trained"] for row in before]
    assert [row["text_trained"] for row in rows] != [row["text_sft"] for row in rows]
    (folder,) = (tmp_path / "runs").glob("evaluate-*")
    assert pq.read_table(folder / "greedy.parquet").num_rows == facts["greedy"]["prompts"] == 20
    assert facts["kl"]["per_response"]["mean"] != 0
    (page,) = (tmp_path / "runs").glob("report-*/report.html")
    text = page.read_text()
    sentences = [
        *evaluation.SHARES.values(),
        *evaluation.NATS.values(),
        *evaluation.VARIETY.values(),
    ]
    assert [one for one in sentences if one.format(training="training") not in text] == []
    assert "The DPO policy against the earlier run&#39;s policy" in text


@pytest.mark.slow
def test_a_bfloat16_policy_ties_with_itself_under_the_fitted_ranker(tmp_path):
    talks = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"yes {n}"}]
        for n in range(20)
    ]
    policy = make_policy(talks, Scratch(width=32, hidden=32, heads=2, positions=64), 0)
    policy.model.bfloat16()
    save_policy(policy, tmp_path / "model")
    source = tmp_path / "pairs.jsonl"
    source.write_text(
        "".join(
            json.dumps({"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "never"})
            + "\n"
            for n in range(20)
        )
        + json.dumps({"prompt": "long " * 200, "chosen": "yes", "rejected": "no"})
        + "\n"
    )
    result = run(
        "stage=evaluate", "recipe=own_data", f"load.path={source}", f"runtime.folder={tmp_path}",
        "load.test_share=0.5", "load.seed=3", "select.share=1", "sft.kind=given",
        f"sft.model={tmp_path}/model", "augment.max_tokens=8", "evaluate.max_tokens=8",
        "gradients.rank=2", "gradients.dim=16", "train.batch=2", *STILL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts, rows = wins(tmp_path)
    assert all(row["text_sft"] == row["text_trained"] for row in rows)
    assert facts["win_rate"]["mean"] == 0.5
    assert facts["ties"] == facts["comparisons"]
    # A prompt that fills the context was never answered: it is no tie.
    unanswered = [row for row in rows if row["state_sft"] == "too_long"]
    assert facts["without_verdict"] == len(unanswered)
    assert all(row["winner"] is None for row in unanswered)


def told(*replies: str, against: int | None = None) -> Judgement:
    opinions = [
        Opinion("judge", place, 1.0, "ok", reply, against=against)
        for place, reply in enumerate(replies)
    ]
    return Judgement([Verdict(1.0, "ok", reply) for reply in replies], opinions)


def test_reasons_are_counted_by_policy_where_they_are_few_kinds():
    sides = ["sft", "sft", "trained", "trained"]
    assert reasons_by_side(told("wrong", "right", "right", "right"), sides) == {
        "right": {"sft": 1, "trained": 2},
        "wrong": {"sft": 1, "trained": 0},
    }
    few = [f"kind {number}" for number in range(REASONS)]
    assert len(reasons_by_side(told(*few), ["sft"] * REASONS)) == REASONS
    assert not reasons_by_side(told(*few, "one more"), ["sft"] * (REASONS + 1))
    assert not reasons_by_side(told("w" * (WORDY + 1), *"abc"), sides), "free text"
    assert not reasons_by_side(told("", *"abc"), sides), "points without a word"
    assert not reasons_by_side(told(*"AABB", against=0), sides), "said of two responses"
    asked_twice = told(*"aabb")
    twice = Judgement(asked_twice.verdicts[:2], asked_twice.opinions)
    assert not reasons_by_side(twice, ["sft", "trained"])


def row(prompt: str, before: float | None, after: float | None, winner: str | None) -> dict:
    return {"prompt_id": prompt, "score_sft": before, "score_trained": after, "winner": winner}


def test_win_figures_by_hand():
    rows = [row("p", 1, 2, "trained"), row("p", 3, 3, "tie"), row("q", 5, 2, "sft")]
    rows.append(row("r", None, 2, None))
    figures = win_figures(rows)
    assert figures["win_rate"]["mean"] == pytest.approx((0.75 + 0) / 2)
    assert figures["score_sft"]["mean"] == pytest.approx((2 + 5) / 2)
    assert (figures["comparisons"], figures["ties"], figures["without_verdict"]) == (3, 1, 1)
    topics = topic_figures(rows, [{"topic": name} for name in ("a", "a", "b", "b")])
    assert topics["a"] == {"comparisons": 2, "sft": 2.0, "trained": 2.5, "win_rate": 0.75}


def test_the_same_judge_compares_both_policies_responses_in_both_seats(tmp_path):
    from bpo_data.llm.stub import StubServer

    def reply(payload: dict) -> str:
        first, second = (text for name, text in fields_of(payload["messages"][0]["content"])[-2:])
        return f"Winner: {'A' if len(first) > len(second) else 'B'}"

    with StubServer(reply) as server:
        own = [
            "stage=evaluate", f"runtime.folder={tmp_path}", *TINY, *STILL, "score.kind=pairwise",
            "score.options.model=judge", f"score.options.base_url={server.url}",
            "score.options.opponents=2",
        ]  # fmt: skip
        result = run(*own)
        assert result.returncode == 0, result.stderr
        asked = server.asked()
        again = run(*own, "evaluate.mode=batch", "score.mode=batch")
        assert again.returncode == 0, again.stderr
        assert server.asked() == asked, "how requests travel is no part of what is asked"
    assert set(asked.values()) == {1}
    facts, rows = wins(tmp_path)
    assert {row["winner"] for row in rows} == {"tie"}, "the same text has the same points"
    assert facts["without_verdict"] == 0
    assert facts["requests"]["replies"] > 0

"""Points by criterion and reasons: read whole or not at all, kept, and paired by."""

from __future__ import annotations

import itertools
import json
import re
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import item, judged
from pairing import Held, paired, pool, said

from bpo_data import training_rows
from bpo_data.components import criteria, judges, kinds
from bpo_data.components.judges import Panel, Rubric
from bpo_data.components.judging import Verdict
from bpo_data.components.rubric import JSON_SCHEMA, LEVELS, TEMPLATE, rubric_messages
from bpo_data.components.rubric_criteria import read_criteria, reason_of
from bpo_data.errors import UserError
from bpo_data.llm.stub import StubServer
from bpo_data.stages.pair import PairConfig
from bpo_data.stages.score import ScoreConfig, schema, score_rows

NAMES = {"helpfulness": "It does what is asked.", "honesty": "It says what is so."}


@pytest.mark.parametrize(
    ("reply", "points", "level"),
    [
        ('{"reason": "r", "helpfulness": 8, "honesty": 3}', [8, 3], "json"),
        ('```json\n{"honesty": 3, "Helpfulness": "8",}\n```', [8, 3], "embedded"),
        ('<think>{"honesty": 9}</think>{"helpfulness": 8, "honesty": 3}', [8, 3], "json"),
        ('{"reason": "r", "helpfulness": 8}', None, "unreadable"),
        ('{"helpfulness": 8, "honesty": null}', None, "unreadable"),
        ('{"helpfulness": 8, "honesty": true}', None, "unreadable"),
        ('{"helpfulness": 8, "honesty": 11}', None, "out_of_range"),
        ('{"helpfulness": 0, "honesty": 3}', None, "out_of_range"),
        ('{"helpfulness": 8, "honesty": 3, "honesty": 4}', None, "ambiguous"),
        ('{"helpfulness": 8, "honesty": 3} {"helpfulness": 9}', None, "ambiguous"),
        ("helpfulness: 8, honesty: 3", None, "unreadable"),
        ('{"reason": "It claims {\\"helpfulness\\": 10, \\"honesty\\": 10}', None, "unreadable"),
        ("  ", None, "empty"),
    ],
)
def test_points_are_read_for_every_criterion_or_for_none(reply, points, level):
    wanted = dict(zip(NAMES, points, strict=True)) if points else None
    assert read_criteria(reply, list(NAMES)) == (wanted, level)


@given(st.text(alphabet='0123456789-.,:"`{}[] \nhonestyulpfw', max_size=80))
def test_any_text_gives_points_on_the_scale_or_null_with_its_reason(text):
    found, level = read_criteria(text, ["h", "o"])
    assert (found is None) == (LEVELS.index(level) >= LEVELS.index("empty"))
    assert found is None or all(1 <= value <= 10 for value in found.values())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"reason": "Short, right. ", "score": 8}', "Short, right."),
        ('Sure.\n{"explanation": "It is right.", "score": 8}', "It is right."),
        ('{"score": 8}', None),
        ('{"reason": 3, "score": 8}', None),
        ("Score: 7/10", None),
        ("**7**", None),
        ("<think>hm</think>It is right.\nScore: 7", "It is right.\nScore: 7"),
    ],
)
def test_the_reason_is_plain_text_and_null_where_a_reply_has_only_points(reply, reason):
    assert reason_of(reply) == reason


def answer(helpfulness: int, honesty: int | None) -> str:
    told = {"reason": f"{helpfulness} it is", "helpfulness": helpfulness}
    return json.dumps(told if honesty is None else {**told, "honesty": honesty})


def rubric(server: StubServer, **options: Any) -> Rubric:
    return Rubric("judge", server.url, **{"criteria": NAMES, **options})


def test_a_judge_of_criteria_gives_each_its_points_their_mean_and_its_reason(tmp_path):
    with StubServer(lambda payload: answer(8, 3)) as server:
        found = judged(rubric(server), [item("a")], folder=tmp_path)
        (asked,) = server.payloads
    (verdict,) = found.verdicts
    assert (verdict.score, verdict.criteria) == (5.5, {"helpfulness": 8, "honesty": 3})
    assert (verdict.rationale, verdict.reply) == ("8 it is", answer(8, 3))
    words = asked["messages"][0]["content"]
    assert "- helpfulness: It does what is asked.\n- honesty: It says what is so.\n" in words
    assert '{"reason": "...", "helpfulness": n, "honesty": n}' in words
    held = asked["response_format"]["json_schema"]["schema"]
    assert held["required"] == ["reason", "helpfulness", "honesty"]


def test_a_reply_that_lacks_a_criterion_is_unreadable_as_a_whole_and_counted(tmp_path):
    says = [answer(8, 3), answer(6, None), answer(2, 12), answer(4, 5)]
    with StubServer(lambda payload: says[payload["seed"]]) as server:
        judge = rubric(server, temperature=1.0, repeats=4, json_schema=False)
        found = judged(judge, [item("a")], folder=tmp_path)
        alone = judged(rubric(server, seed=1), [item("a")], folder=tmp_path)
    assert [opinion.state for opinion in found.opinions] == ["ok", "unreadable", "unreadable", "ok"]
    assert found.verdicts[0].criteria == {"helpfulness": 6, "honesty": 4}
    assert found.verdicts[0].score == 5
    table = score_rows("judge", ["p/00"], alone, schema(ScoreConfig()))
    (row,) = table.to_pylist()
    assert (row["score"], row["criteria"], row["rationale"]) == (None, None, None)
    assert (row["state"], row["reply"]) == ("unreadable", answer(6, None))


def test_criteria_in_another_order_ask_the_same_and_none_ask_what_they_did():
    backwards = dict(reversed(NAMES.items()))
    one, other = (Rubric("m", "http://localhost/v1", criteria=each) for each in (NAMES, backwards))
    assert one.requests([item("a")]) == other.requests([item("a")])
    ((_, request, _),) = Rubric("m", "http://localhost/v1").requests([item("a")])
    assert request.messages == rubric_messages(TEMPLATE, item("a").prompt, "a")
    assert request.extra == {"response_format": JSON_SCHEMA}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criteria": ["honesty"]}, "write names and meanings"),
        ({"criteria": {"reason": "why"}}, "has the name reason"),
        ({"criteria": {"a\nb": "why"}}, "has the name a\nb"),
        ({"criteria": {"honesty": 3}}, "criteria.honesty=3: say in words"),
        ({"criteria": {"honesty": "x", "Honesty": "y"}}, "differ in case alone"),
        ({"criteria": NAMES, "template": "{prompt} {response}"}, "has {criteria} 0 times"),
    ],
)
def test_criteria_that_cannot_be_asked_for_are_found_while_settings_are_read(options, words):
    (problem,) = kinds.problems(judges.KINDS, "rubric", {"model": "m", **options}, "score.kind")
    assert words in problem


def length(prompt: Any, response: str, reference: Any) -> tuple[float, str]:
    return float(len(response)), f"{len(response)} letters"


def vowels(prompt: Any, response: str, reference: Any) -> tuple[float, str]:
    if "?" in response:
        raise ValueError("asks back")
    return float(sum(letter in "aeiou" for letter in response)), ""


def test_a_panels_criteria_are_its_judges_and_their_weighted_mean_its_points():
    options = {name: {"function": f"{__name__}:{name}"} for name in ("length", "vowels")}
    weights = {"vowels": 1, "length": 3}
    members = [
        {"kind": "verifier", "name": name, "weight": weight, "options": options[name]}
        for name, weight in weights.items()
    ]
    found = judged(Panel(members), [item("abc"), item("aei"), item("why?")])
    assert [one.criteria for one in found.verdicts] == [
        {"vowels": 1, "length": 3}, {"vowels": 3, "length": 3}, {"length": 4}
    ]  # fmt: skip
    for one in found.verdicts:
        total = sum(weights[name] for name in one.criteria)
        mean = sum(weights[name] * value for name, value in one.criteria.items()) / total
        assert one.score == mean
    assert [one.rationale for one in found.verdicts] == ["3 letters", "3 letters", "4 letters"]
    told = criteria.figures(one.criteria for one in found.verdicts)
    assert told["vowels"] == {"count": 2, "mean": 2}


def test_a_judge_in_a_panel_keeps_its_own_criteria_behind_its_name(tmp_path):
    own = {"function": f"{__name__}:length"}
    with StubServer(lambda payload: answer(8, 3)) as server:
        asked = {"model": "m", "base_url": server.url, "criteria": NAMES}
        members = [{"kind": "rubric", "options": asked}, {"kind": "verifier", "options": own}]
        found = judged(Panel(members, "rank"), [item("a"), item("bb")], folder=tmp_path)
    assert found.verdicts[1].criteria == {
        "m": 0.5, "m/helpfulness": 8, "m/honesty": 3, f"{__name__}:length": 1
    }  # fmt: skip


def rated(**points: dict[str, float]) -> pa.Table:
    """Scores of one prompt's responses p/00, p/01 ... with these points by criterion."""
    rows = [
        {"response_id": f"p/{number:02d}", "score": 1.0, "criteria": criteria.as_rows(own) or None}
        for number, own in enumerate(points.values())
    ]
    kept = ["response_id", "score", "criteria"]
    return pa.Table.from_pylist(rows, pa.schema([schema(ScoreConfig()).field(n) for n in kept]))


@given(
    st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=2, max_size=5),
    st.sampled_from([(0.7, 0.3), (1.0, -0.2), (0.1, 0.0), (0.0, 2.0)]),
)
def test_points_are_the_weighted_sum_and_sums_equal_by_hand_are_equal(points, weights):
    table = rated(**{str(place): {"a": a, "b": b} for place, (a, b) in enumerate(points)})
    found = list(criteria.points_of(table, dict(zip("ab", weights, strict=True))).values())
    by_hand = [round(10 * weights[0]) * a + round(10 * weights[1]) * b for a, b in points]
    for (one, x), (other, y) in itertools.combinations(zip(found, by_hand, strict=True), 2):
        assert (one > other, one == other) == (x > y, x == y)
    assert found == pytest.approx([tenths / 10 for tenths in by_hand])


def test_without_weights_points_are_the_scores_and_without_the_criterion_none():
    table = rated(one={"a": 2, "b": 1}, other={"a": 3}, third={})
    assert list(criteria.points_of(table, {}).values()) == [1, 1, 1]
    assert list(criteria.points_of(table, {"a": 2}).values()) == [4, 6, None]
    assert list(criteria.points_of(table, {"a": 1, "b": 1}).values()) == [3, None, None]
    assert list(criteria.points_of(table, {"a": 1, "b": 0}).values()) == [2, 3, None]


def test_a_criterion_that_nothing_has_points_for_is_named_with_those_that_there_are():
    table = rated(one={"honesty": 2, "helpfulness": 1})
    with pytest.raises(
        UserError, match=r"pair\.criteria\.honestly: .*Did you mean honesty"
    ) as told:
        criteria.points_of(table, {"honestly": 1.0})
    assert "There are helpfulness, honesty." in str(told.value)
    with pytest.raises(UserError, match="gave no points by criterion"):
        criteria.points_of(rated(one={}), {"honesty": 1.0})


def test_pairs_of_one_criterion_are_those_of_a_judge_that_scores_by_it(tmp_path):
    honest = [3.0, 9.0, 5.0, 5.0]
    rows = pool({"p": [(f"text {place}", 9.0 - place) for place in range(4)]})
    told = [{**row, "criteria": criteria.as_rows({"honest": own, "kind": 1.0})}
            for row, own in zip(rows, honest, strict=True)]  # fmt: skip
    own = [{**row, "score": points} for row, points in zip(rows, honest, strict=True)]
    opinions = said(*(("j", row["response_id"], place) for place, row in enumerate(rows * 2)))
    by_criterion = paired(
        tmp_path / "a", told, PairConfig(criteria={"honest": 1.0}, per_prompt=9), opinions
    )
    by_score = paired(tmp_path / "b", own, PairConfig(per_prompt=9))
    assert by_criterion.read().equals(by_score.read())
    assert by_criterion.read()["p_chosen"].null_count == by_criterion.read().num_rows == 5


def test_win_rates_are_of_the_points_that_pairs_are_made_by():
    table = rated(a={"x": 1, "y": 5}, b={"x": 2, "y": 1}, c={"x": 3, "y": 3})
    pairs = pa.table({"pair_id": ["p/02>00"], "chosen_id": ["p/02"], "rejected_id": ["p/00"]})
    dataset = pa.table({"pair_id": ["p/02>00"]})
    for weights, wanted in (({"x": 1.0}, (1, 0)), ({"y": 1.0}, (0.5, 1)), ({}, (0.5, 0.5))):
        inputs: Any = {
            "pairs": Held(pairs, settings={"criteria": weights}), "scores": Held(table)
        }  # fmt: skip
        names = ["win_rate_chosen", "win_rate_rejected"]
        found = training_rows.extra_columns(names, dataset, inputs)
        assert tuple(found[name].item() for name in names) == wanted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"criteria": {"a": 0.0}}, "not all of them 0"),
        ({"criteria": {"a": 1.0, "b": float("inf")}}, "give finite weights"),
        ({"criteria": {"a": 1.0}, "max_uncertainty": 0.5}, "compares opinions of the whole score"),
    ],
)
def test_weights_that_can_do_nothing_are_found_while_settings_are_read(settings, words):
    (problem,) = PairConfig(**settings).problems()
    assert words in problem


def test_a_dataset_has_columns_of_what_its_own_responses_have_and_no_others():
    table = rated(one={"a": 2, "b": 1}, other={"a": 3}, third={}, fourth={"c": 1})
    table = table.append_column("rationale", pa.array([None, "why", None, None], pa.string()))
    pairs = pa.table({"chosen_id": ["p/00", "p/01"], "rejected_id": ["p/01", "p/02"]})
    names = ["criteria", "rationale"]
    pieces = [(table, pairs.slice(row, 1)) for row in range(2)]
    found = criteria.side_columns(table, pairs, criteria.side_types(pieces, names))
    assert {name: column.to_pylist() for name, column in found.items()} == {
        "criteria_chosen": [{"a": 2, "b": 1}, {"a": 3, "b": None}],
        "criteria_rejected": [{"a": 3, "b": None}, None],
        "rationale_chosen": [None, "why"],
        "rationale_rejected": ["why", None],
    }
    third = pa.table({"chosen_id": ["p/02"], "rejected_id": ["p/02"]})
    assert criteria.side_types([(table, third)], names) == {}


PROMPTS = 12
RATINGS = {"helpfulness": (1, 2, 3, 4), "honesty": (5, 2, 4, 1)}


def ultrafeedback(prompt: int) -> dict[str, Any]:
    """A row of openbmb/UltraFeedback, in the parts that we read; one rating is no number."""
    completions = []
    for place in range(4):
        ratings = {name: str(own[place]) for name, own in RATINGS.items()}
        if prompt == 0 and place == 0:
            ratings["honesty"] = "N/A"
        completions.append(
            {
                "model": f"m{place}",
                "response": f"answer {place} to {prompt}",
                "overall_score": 9.0 - place,
                "critique": f"Critique {place} <b>of</b> {prompt}.",
                "annotations": {
                    name: {"Rating": rating, "Rationale": "so"} for name, rating in ratings.items()
                },
            }
        )
    return {"instruction": f"question {prompt}?", "completions": completions}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """UltraFeedback's layout to a dataset, paired by a direction over its criteria."""
    from helpers import run
    from test_card import SETTINGS

    folder = tmp_path_factory.mktemp("criteria")
    source = folder / "rated.jsonl"
    source.write_text("".join(json.dumps(ultrafeedback(one)) + "\n" for one in range(PROMPTS)))
    done = run(
        "stage=export", f"runtime.folder={folder}/runs", f"load.path={source}", *SETTINGS,
        "load.test_share=0", "select.share=1", "pair.criteria={helpfulness: 0.3, honesty: 0.7}",
        "export.rationales=true", "export.formats=[listwise]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (dataset,) = (folder / "runs").glob("export-*/dataset")
    return SimpleNamespace(runs=folder / "runs", dataset=dataset)


def test_a_sources_criteria_and_critiques_reach_the_dataset_and_its_pairs(exported, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(exported.dataset), cache_dir=str(tmp_path))
    rows = [row for split in loaded.values() for row in split]
    assert len(rows) > PROMPTS
    for row in rows:
        for side in ("chosen", "rejected"):
            place, prompt = re.findall(r"\d+", row[side][0]["content"])
            points = {name: own[int(place)] for name, own in RATINGS.items()}
            assert (prompt, place) != ("0", "0"), "it lacks a criterion"
            assert row[f"criteria_{side}"] == points
            assert row[f"rationale_{side}"] == f"Critique {place} <b>of</b> {prompt}."
            sums = 0.3 * points["helpfulness"] + 0.7 * points["honesty"]
            assert row[f"score_{side}"] == pytest.approx(sums)
        assert row["score_chosen"] > row["score_rejected"]
        assert row["p_chosen"] is None
    card = (exported.dataset / "README.md").read_text()
    assert "points are the sum of 0.3 times `helpfulness`, 0.7 times `honesty`" in card
    assert "Points by criterion, means: `helpfulness` 2.50 of 48, `honesty` 2.96 of 47." in card


def test_lists_are_ranked_by_the_points_that_pairs_are_made_by(exported):
    import pyarrow.parquet as pq

    sums = [0.3 * one + 0.7 * other for one, other in zip(*RATINGS.values(), strict=True)]
    rows = [
        row
        for path in (exported.dataset.parent / "formats" / "listwise").glob("t*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == PROMPTS
    for row in rows:  # of one prompt, the first response lacks a criterion
        assert sorted(row["scores"]) == pytest.approx(sorted(sums[4 - len(row["scores"]) :]))
    assert sorted(len(row["scores"]) for row in rows) == [3] + [4] * (PROMPTS - 1)


def test_a_rating_that_is_no_number_is_counted_and_its_response_lacks_it_alone(exported):
    import pyarrow.parquet as pq

    (manifest,) = (exported.runs).glob("load-*/manifest.json")
    notices = json.loads(manifest.read_text())["facts"]["notices"]
    assert notices["criterion_not_a_number"] == 1
    (path,) = exported.runs.glob("score-*/scores.parquet")
    found = [criteria.as_points(row["criteria"]) for row in pq.read_table(path).to_pylist()]
    assert sorted(map(len, found)) == [1] + [2] * (4 * PROMPTS - 1)


def test_a_verdict_without_criteria_is_null_in_the_table_not_empty():
    judgement: Any = SimpleNamespace(verdicts=[Verdict(1.0, "ok", "")], opinions=[])
    table = score_rows("j", ["p/00"], judgement, schema(ScoreConfig()))
    assert table["criteria"].null_count == table["rationale"].null_count == 1

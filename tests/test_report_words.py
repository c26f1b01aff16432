"""What the page claims, against the figures it has: no more than they bear, and no key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import reporting
import yaml

from bpo_data.artifacts import Artifact
from bpo_data.cards.privacy import HIDDEN
from bpo_data.report import authors, judging, lengths, pair_map
from bpo_data.stages.report import ReportConfig

Change = Callable[[dict[str, Artifact]], None]
Page = Callable[[Change], Path]


@pytest.fixture
def page(tmp_path, monkeypatch) -> Page:
    """The folder of a report of artifacts, as a change leaves them."""

    def made(change: Change) -> Path:
        inputs = reporting.artifacts(tmp_path)
        change(inputs)
        monkeypatch.setattr(reporting, "artifacts", lambda folder, prompts: inputs)
        return reporting.write(tmp_path, ReportConfig())

    return made


def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def part(folder: Path, name: str) -> str:
    """One section of the page."""
    return text(folder).split(f'<section id="{name}">')[1].split("</section>")[0]


@pytest.mark.parametrize("floor", [True, False])
def test_a_pair_of_every_prompt_is_claimed_only_with_a_floor(page, floor):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["allocation"].manifest["settings"] |= {"kind": "margin", "floor": floor}

    lead = text(page(change)).split('<p class="lead">')[1].split("</p>")[0]
    assert "the pairs with the largest judge margins" in lead
    assert ("at least one of every prompt" in lead) == floor


SECRETS = ("sk-proj-Zq9vK3mWx7TtR2yLbN4c", "letmein", "abc.def.ghi")


def test_keys_typed_into_settings_are_in_nothing_that_the_report_writes(page):
    def change(inputs: dict[str, Artifact]) -> None:
        extra = {"api_key": SECRETS[0], "password": SECRETS[1], "min_p": 0.1}
        extra["note"] = f"Bearer {SECRETS[2]}"
        inputs["responses"].manifest["settings"]["extra"] = extra

    folder = page(change)
    said = "looked like keys; they have to be filled in."
    for name in ("report.html", "recipe.yaml"):
        written = (folder / name).read_text(encoding="utf-8")
        assert not [secret for secret in SECRETS if secret in written], name
        assert said in written
    recipe = (folder / "recipe.yaml").read_text()
    assert recipe.startswith("# Values shown as [hidden]")
    extra = yaml.safe_load(recipe)["augment"]["extra"]
    assert extra == {"api_key": HIDDEN, "password": HIDDEN, "min_p": 0.1, "note": HIDDEN}


def test_nothing_is_said_of_keys_where_there_are_none(page):
    folder = page(lambda inputs: None)
    assert "looked like keys" not in text(folder)
    assert HIDDEN not in (folder / "recipe.yaml").read_text()


def kept(longer: int, shorter: int, tied: int = 0) -> pa.Table:
    """Pairs of as many prompts, by which response is the longer one."""
    sides = [("ab", "a")] * longer + [("a", "ab")] * shorter + [("a", "b")] * tied
    chosen, rejected = zip(*sides, strict=True)
    prompts = [str(place) for place in range(len(sides))]
    return pa.table({"prompt_id": prompts, "chosen": chosen, "rejected": rejected})


def test_length_tells_only_where_the_interval_is_beyond_the_bound():
    """Wilson's for 8 of 8 is [0.68, 1], for 9 of 9 [0.70, 1]; Student's for 0.75 of 400 0.04."""
    assert [lengths.tells(kept(count, 0)) for count in (1, 2, 8, 9, 40)] == [
        *(False, False, False), *(True, True),
    ]  # fmt: skip
    assert lengths.tells(kept(0, 40))
    assert lengths.tells(kept(300, 100))
    assert not lengths.tells(kept(30, 10))
    assert not lengths.tells(kept(290, 110))
    assert not lengths.tells(kept(20, 0, 20)), "a tie is half a pair"


def test_pairs_of_one_prompt_are_one_case_of_length():
    rows = pa.concat_tables([kept(40, 0)])
    one = rows.set_column(0, "prompt_id", [["p"] * 40])
    assert lengths.tells(rows)
    assert not lengths.tells(one)


def test_one_kept_pair_says_nothing_of_what_a_policy_learns(tmp_path, monkeypatch):
    inputs = reporting.artifacts(tmp_path)
    facts: dict[str, Any] = inputs["dataset"].manifest["facts"]
    facts |= dict.fromkeys(("pairs", "prompts", "pool"), 1)
    facts["lengths"]["kept"] = reporting.LENGTHS | {"pairs": 1, "longer_share": 1.0}
    monkeypatch.setattr(reporting, "artifacts", lambda folder: inputs)
    table = pair_map.pair_table(inputs)
    one = table.filter(table["kept"]).slice(0, 1)
    html = reporting.page_of(tmp_path, one, ReportConfig()).read_text(encoding="utf-8")
    assert "<b>100.0 %</b> of the kept pairs" in html
    assert "may learn just that" not in html
    assert "<h1>1 preference pair for 1 prompt</h1>" in html
    assert "1 of 1 candidate pair kept" in html
    assert "This run has 1 cluster of 1 candidate pair." in html
    assert "1 pairs" not in html
    assert "1 clusters" not in html


def test_kept_prompts_of_a_topic_are_called_that(page):
    out = part(page(lambda inputs: None), "out")
    heads = [cell.split("<")[0] for cell in out.split("<th")[-6:] for cell in [cell.split(">")[1]]]
    assert heads[-3:] == ["share selected", "prompts with kept pairs", "kept pairs"]


NOTHING = "no prompt is held out; raise load.test_share"


def unmeasured(inputs: dict[str, Artifact]) -> None:
    names = ("win_rate", "score_sft", "score_trained", "pair_accuracy")
    inputs["wins"].manifest["facts"] |= dict.fromkeys(names)
    inputs["wins"].manifest["facts"] |= {"why_no_win_rate": NOTHING, "comparisons": 0}


def test_where_nothing_was_measured_one_sentence_says_so(page):
    helped = part(page(unmeasured), "helped").split("<h3>")[0]
    assert helped.count("<p") == 1
    assert f"<b>Nothing was measured:</b> {NOTHING}." in helped
    assert "interval" not in helped
    assert "No win rate" not in helped


def test_a_ranking_alone_is_told_without_a_word_on_how_wins_were_counted(page):
    def change(inputs: dict[str, Artifact]) -> None:
        unmeasured(inputs)
        inputs["wins"].manifest["facts"]["pair_accuracy"] = reporting.ESTIMATE

    helped = " ".join(part(page(change), "helped").split("<h3>")[0].split())
    assert "95 % intervals" in helped
    assert "The win rate is on" not in helped
    assert f"<b>No win rate:</b> {NOTHING}." in helped
    assert "Nothing was measured" not in helped


def test_the_page_tells_what_the_judge_said_of_each_policy(page):
    def change(inputs: dict[str, Artifact]) -> None:
        reasons = {"right": {"sft": 1, "trained": 3}, EVIL: {"sft": 3, "trained": 1}}
        inputs["wins"].manifest["facts"]["reasons"] = reasons

    table = part(page(change), "helped").split("What the judge said, by policy</h3>")[1]
    rows = [cells(row) for row in table.split("</table>")[0].split("<tbody>")[1:]]
    assert rows == [
        ["right", "1", "25.0 %", "3", "75.0 %"],
        ["&lt;b&gt;", "3", "75.0 %", "1", "25.0 %"],
    ]


EVIL = "<b>"


def cells(row: str) -> list[str]:
    return [cell.split("</")[0].split(">")[-1] for cell in row.split("<td")[1:]]


def test_without_reasons_there_is_no_table_of_them(page):
    assert "What the judge said" not in part(page(lambda inputs: None), "helped")


@pytest.mark.parametrize(
    ("evaluate", "same", "stands_in"),
    [
        ({}, True, True),
        ({"kind": "verifier"}, True, True),
        ({"kind": "preference"}, False, True),
        ({"kind": "given"}, False, False),
    ],
)
def test_the_page_says_whether_the_judge_that_chose_also_evaluated(page, evaluate, same, stands_in):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["wins"].manifest["settings"] |= evaluate

    helped = part(page(change), "helped")
    assert ("The judge that chose the pairs also gave these points" in helped) == same
    assert ("by another judge than the one that chose the pairs" in helped) != same
    assert ("stands in for a judge one would rely on" in helped) == stands_in


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_program_is_told_by_what_it_marks_and_by_its_noise(page, noise):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["scores"].manifest["settings"]["options"] = {"noise": noise}

    said = part(page(change), "judge").split("<h3>")[0]
    assert "Points from 1 to 10 for the right answer in the style its question wants" in said
    assert ("No noise is added to its points" in said) == (noise == 0)


def test_the_worst_five_of_a_measure_are_shown_in_their_order():
    rows = [
        {"measure": "null_rate", "value": number / 100, "flag": number == 3} for number in range(9)
    ]
    assert [row["value"] for row in judging.worst(rows)] == [0.03, 0.05, 0.06, 0.07, 0.08]
    unbounded = [{**row, "measure": "same_text_lead", "flag": False} for row in rows]
    assert judging.worst(unbounded) == unbounded[: judging.WORST]
    sided = [{**row, "measure": "longer_wins", "flag": False} for row in rows]
    assert judging.worst([*sided, {**sided[0], "value": 0.5}]) == sided[: judging.WORST]
    assert judging.worst([*rows, *unbounded])[5:] == unbounded[: judging.WORST]


@pytest.mark.parametrize(
    ("allocate", "has"),
    [
        ({"kind": "margin"}, False),
        ({"kind": "center"}, True),
        ({"kind": "clusters", "options": {"quota": "proportional"}}, True),
        ({"kind": "clusters", "options": {"quota": "sqrt"}}, False),
    ],
)
def test_quotas_stand_where_the_rule_fills_them(page, allocate, has):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["allocation"].manifest["settings"] |= allocate

    found = part(page(change), "clusters")
    assert (">quota<" in found) == has
    heads = found.split("<thead>")[1].split("</thead>")[0].count("<th ")
    row = found.split("<tbody")[1].split("</tr>")[0]
    assert row.count("<td") == heads + 1 == 8 + has
    assert f'colspan="{8 + has}"' in found


@pytest.mark.parametrize(("agree", "folded"), [(None, False), (0.6, False), (0.2, True)])
def test_the_table_of_clusters_that_chance_cut_is_folded(page, agree, folded):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["clusters"].manifest["facts"]["starts_agree"] = agree

    before = part(page(change), "clusters").split('id="cluster-table"')[0]
    assert ("<details>" in before) == folded
    assert ("read nothing into single clusters" in before) == folded


def test_the_two_sides_of_the_source_are_not_called_like_the_columns():
    kept = pa.table({"author_chosen": ["chosen", "policy"], "author_rejected": ["rejected", "b"]})
    assert set(authors.authors([kept])["names"]) == {
        "the source's chosen", "the source's rejected", "policy", "b",
    }  # fmt: skip


def test_the_cost_of_a_stage_stands_beside_what_it_says_it_made(page):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["policy"].manifest["facts"]["result"] = "1,500 updates"

    rows = part(page(change), "cost").split("<h3>Stages</h3>")[1].split("<tr>")
    (sft,) = [cells(row) for row in rows if "<td>sft</td>" in row]
    assert sft[1] == "1,500 updates"
    assert 'href="../sft-0123456789ab/"' in "".join(rows)


@pytest.mark.parametrize(("kind", "told"), [("margin", True), ("uniform", False)])
def test_unequal_depth_is_explained_where_it_is_meant(page, kind, told):
    def change(inputs: dict[str, Artifact]) -> None:
        inputs["allocation"].manifest["settings"]["kind"] = kind

    assert ("Balance here is not equal depth" in part(page(change), "out")) == told

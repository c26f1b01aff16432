"""What the report gathers: neighbours, clusters, words, authors, losses, ablation, figures."""

from __future__ import annotations

import importlib.util
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reporting
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data import disk
from bpo_data.artifacts import Artifact
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError
from bpo_data.pipelines import ablation_page
from bpo_data.pipelines import config as asking
from bpo_data.pipelines.ablation import Ablation, Outcome
from bpo_data.report import (
    ablation,
    authors,
    clusters,
    costs,
    neighbours,
    pair_map,
    training,
    words,
)
from bpo_data.report.plain import data, short
from bpo_data.stages import report
from bpo_data.stages.report import ReportConfig
from bpo_data.words import size


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return reporting.write(tmp_path_factory.mktemp("report"), ReportConfig(figures=True))


@pytest.fixture(scope="module")
def rows(folder) -> list[dict]:
    return pq.read_table(folder / "map.parquet").to_pylist()


@given(
    count=st.integers(1, 30),
    zeros=st.integers(0, 3),
    near=st.integers(1, 12),
    cells=st.integers(1, 99),
)
@settings(max_examples=30, deadline=None)
def test_neighbours_are_those_of_a_plain_loop_whatever_the_blocks(count, zeros, near, cells):
    found = np.random.default_rng(count).standard_normal((count, 5)).astype(np.float32)
    found[:zeros] = 0
    directions = unit(found)
    kept = neighbours.BLOCK_CELLS
    neighbours.BLOCK_CELLS = cells
    try:
        table = neighbours.nearest(directions, near).to_pylist()
    finally:
        neighbours.BLOCK_CELLS = kept
    for row, got in enumerate(table):
        others = [other for other in range(count) if other != row and directions[other].any()]
        far = {other: 1 - float(directions[row] @ directions[other]) for other in others}
        wanted = sorted(others, key=far.__getitem__)[:near] if directions[row].any() else []
        assert got["distances"] == pytest.approx([far[other] for other in wanted], abs=1e-6)
        assert [far[other] for other in got["ids"]] == pytest.approx(got["distances"], abs=1e-6)
        assert len(set(got["ids"])) == len(wanted)


def test_the_map_table_is_what_embedding_atlas_reads(folder, rows):
    """Its documentation: zero-based row numbers ``ids`` and ``distances`` in one column."""
    kind = pq.read_schema(folder / "map.parquet").field("neighbours").type
    assert [field.name for field in kind] == ["ids", "distances"]
    assert pa.types.is_integer(kind.field("ids").type.value_type)
    assert pa.types.is_floating(kind.field("distances").type.value_type)
    assert [row["pair_id"] for row in rows] == sorted(row["pair_id"] for row in rows)
    for place, row in enumerate(rows):
        assert len(row["neighbours"]["ids"]) == neighbours.NEAREST
        assert place not in row["neighbours"]["ids"]
        assert all(0 <= other < len(rows) for other in row["neighbours"]["ids"])
    assert {reporting.EVIL[0] in row["text"] for row in rows} == {True, False}
    assert "\x00" in next(row["text"] for row in rows if "controls" in row["text"]), "as it came"


def test_too_many_pairs_have_no_neighbours_and_the_reason_is_said():
    assert neighbours.too_many(20_000, 1024) == ""
    assert "100,000 pairs" in neighbours.too_many(100_000, 1024)


def test_cluster_figures_equal_plain_sums(folder, rows):
    table = {row["cluster"]: row for row in pq.read_table(folder / "clusters.parquet").to_pylist()}
    assert table.keys() == {row["cluster"] for row in rows}
    budget = sum(row["kept"] for row in rows)
    for number, found in table.items():
        own = [row for row in rows if row["cluster"] == number]
        assert found["pairs"] == len(own)
        assert found["kept"] == sum(row["kept"] for row in own)
        assert found["prompts"] == len({row["prompt_id"] for row in own})
        assert found["mean_margin"] == pytest.approx(sum(row["margin"] for row in own) / len(own))
        sides = [(len(row["chosen"]), len(row["rejected"])) for row in own]
        longer = sum((a > b) + (a == b) / 2 for a, b in sides) / len(sides)
        assert found["chosen_longer"] == pytest.approx(longer, abs=1e-4)
    assert sum(found["quota"] for found in table.values()) == pytest.approx(budget)


def test_examples_are_the_nearest_and_the_farthest_of_their_cluster(tmp_path):
    table = pair_map.pair_table(reporting.artifacts(tmp_path))
    for found in clusters.cluster_table(table).to_pylist():
        own = [row for row in table.to_pylist() if row["cluster"] == found["cluster"]]
        own.sort(key=lambda row: row["distance"])
        assert (found["typical"], found["odd"]) == (own[0]["pair_id"], own[-1]["pair_id"])


def test_log_odds_by_hand():
    """Two words, 3 and 1 times here, 1 and 3 times there, a prior of 1 each: odds 4/2 and 2/4."""
    counts, others, prior = (np.array(values, float) for values in ([3, 1], [1, 3], [1, 1]))
    ratio = math.log(2) - math.log(1 / 2)
    spread = math.sqrt(1 / 4 + 1 / 2)
    assert words.log_odds(counts, others, prior) == pytest.approx([ratio / spread, -ratio / spread])


def test_a_word_of_one_cluster_is_told_and_one_of_all_is_not():
    texts = [f"the {name} thing {number}" for name in ("river", "engine") for number in range(40)]
    found = words.telling(texts, [range(40), range(40, 80)], 8)
    assert found == [["river"], ["engine"]]


@pytest.mark.parametrize("texts", [[], ["", "12 34"], ["one"], ["a", "b"], ["\ud7ff\u0e33"]])
def test_too_few_words_tell_nothing(texts):
    assert words.telling(texts, [range(len(texts)), range(len(texts))], 8) == [[], []]


def test_words_of_scripts_without_spaces_are_pairs_of_characters():
    said = list(
        words.words(
            "\u6570\u636e\u96c6 data\u6570\u636e Don\u2019t \u0939\u093f\u0928\u094d\u0926\u0940"
        )
    )
    assert said[:2] == ["\u6570\u636e", "\u636e\u96c6"]
    assert said[2:4] == ["data", "\u6570\u636e"]
    assert said[4:] == ["don\u2019t", "\u0939\u093f\u0928\u094d\u0926\u0940"], (
        "marks stay with their letters"
    )


@given(st.text(max_size=60))
def test_any_text_has_words_and_a_page_form_that_ends_no_element(text):
    assert all(1 < len(word) <= words.LONGEST for word in words.words(text))
    written = data({"text": short(text, 40)})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written)["text"] == short(text, 40)
    assert len(short(text, 40)) <= 40
    assert not set(map(chr, (*range(9), *range(11, 32), *range(0x7F, 0xA0)))) & set(written)


def test_texts_on_the_map_are_cut_to_what_fits_and_no_further():
    texts = [f"{number} " + "\u6570<\n" * 400 for number in range(50)]
    limit = pair_map.longest_within(texts, 60_000)
    size = pair_map.bytes_at(texts, limit)
    assert 0.9 * 60_000 < size <= 60_000
    assert pair_map.longest_within(texts, 10**9) == pair_map.LONGEST
    assert pair_map.longest_within(texts, 1) == pair_map.SHORTEST


def test_the_sample_is_drawn_by_lot_and_does_not_hang_on_the_order(tmp_path):
    table = pair_map.pair_table(reporting.artifacts(tmp_path))
    ids = set(pair_map.sample(table, 20)["pair_id"].to_pylist())
    turned = table.take(pa.array(range(table.num_rows - 1, -1, -1)))
    assert set(pair_map.sample(turned, 20)["pair_id"].to_pylist()) == ids
    assert len({name.split("/")[0] for name in ids}) > 10, "not the first twenty"


def test_authors_beyond_the_largest_are_one_row_and_nothing_is_lost():
    sides = [[f"author{(place * step) % 15:02d}" for place in range(200)] for step in (1, 7)]
    table = pa.table({"author_chosen": sides[0], "author_rejected": sides[1]})
    found = authors.authors([table])
    assert found["count"] == 15
    assert len(found["rows"]) == authors.SHOWN + 1
    assert found["rows"][-1]["author"] is None
    both = Counter(sides[0]) + Counter(sides[1])
    assert found["rows"][0]["chosen"] + found["rows"][0]["rejected"] == max(both.values())
    assert sum(sum(row["against"]) for row in found["rows"]) == 200
    assert sum(row["chosen"] for row in found["rows"]) == 200


def outcome(arm: str, seed: int, points: float) -> Outcome:
    return Outcome("w", arm, seed, points, 0.6, 1.0, 1.0, 10, 5, 9, 3, 0.5)


def test_the_ablation_says_what_the_ablations_own_page_says(tmp_path):
    drawn = np.random.default_rng(1)
    rows = [
        outcome(arm, seed, float(shift + drawn.normal()))
        for arm, shift in (("uniform", 4.0), ("margin", 9.0), ("far", 4.1))
        for seed in range(5)
    ]
    asked = Ablation(arms={"uniform": {}, "margin": {}, "far": {}}, against="far")
    pq.write_table(ablation_page.table_of(asked, rows), tmp_path / ablation.NAME)
    (world,) = ablation.worlds(*ablation.outcomes(str(tmp_path)))
    wanted = ablation_page.compared(asked, rows)
    assert (world.against, world.seeds) == ("far", 5)
    assert [(row.arm, row.points, row.minus, row.p) for row in world.arms] == [
        (row.arm, row.points, row.minus, row.p) for row in wanted
    ]


def test_the_ablation_stands_on_the_page(tmp_path):
    rows = [outcome(arm, seed, 4.0 + seed) for arm in ("uniform", "<b>far</b>") for seed in (0, 1)]
    table = ablation_page.table_of(Ablation(against="uniform"), rows)
    pq.write_table(table, tmp_path / ablation.NAME)
    config = ReportConfig(ablation=str(tmp_path))
    html = (reporting.write(tmp_path, config) / "report.html").read_text()
    assert "minus uniform" in html
    assert "&lt;b&gt;far&lt;/b&gt;" in html
    assert report.outside(config).keys() == {"ablation/outcomes.parquet"}


def test_a_folder_without_an_ablation_is_refused_while_settings_are_read(tmp_path):
    with pytest.raises(UserError, match=r"report\.ablation=.*holds no outcomes\.parquet"):
        asking.read([f"report.ablation={tmp_path}"])
    (tmp_path / ablation.NAME).write_bytes(b"no table")
    with pytest.raises(UserError, match=r"is no Parquet file"):
        asking.read([f"report.ablation={tmp_path}"])
    pq.write_table(pa.table({"arm": ["a"]}), tmp_path / ablation.NAME)
    with pytest.raises(UserError, match=r"has no world, seed"):
        asking.read([f"report.ablation={tmp_path}"])
    table = ablation_page.table_of(Ablation(), [outcome("uniform", 0, 1.0)])
    pq.write_table(table.replace_schema_metadata({}), tmp_path / ablation.NAME)
    with pytest.raises(UserError, match=r"has no arm to compare with"):
        asking.read([f"report.ablation={tmp_path}"])


def test_money_is_unknown_as_soon_as_one_stage_has_no_price():
    row = {"replies": 1, "attempts": 1, "tokens_in": 2, "tokens_out": 3}
    known = costs.total([{**row, "usd": 0.5}, {**row, "usd": 0.25}])
    assert known == {"usd": 0.75, "replies": 2, "attempts": 2, "tokens_in": 4, "tokens_out": 6}
    assert costs.total([{**row, "usd": 0.5}, {**row, "usd": None}])["usd"] is None


def test_the_page_says_sizes_and_times_as_the_terminal_does(tmp_path):
    stages = costs.stage_rows(reporting.artifacts(tmp_path / "figures"))
    seconds, room = (sum(row[name] for row in stages) for name in ("seconds", "bytes"))
    assert seconds == 19.5
    html = (reporting.write(tmp_path, ReportConfig()) / "report.html").read_text()
    assert f"<p>20 s of work and {size(room)} on disk" in html
    assert f">{size(stages[0]['bytes'])}</td>" in html


def test_every_loss_names_a_file_that_is_there(tmp_path):
    inputs = reporting.artifacts(tmp_path)
    found = report.losses.losses(inputs)
    assert {(row.stage, row.count, row.what) for row in found if row.count} == {
        ("load", 5, "rows set aside: empty response"),
        ("augment", 2, "responses not usable: truncated"),
    }
    folders = {str(used.folder) for used in inputs.values()}
    assert {row.file.rpartition("/")[0] for row in found} <= folders


def test_each_online_round_has_its_own_losses(tmp_path):
    inputs = reporting.artifacts(tmp_path)
    first = Artifact(tmp_path / "augment-1", inputs["responses"].manifest
                     | {"facts": {"states": {"ok": 1, "empty": 3}}})  # fmt: skip
    rounds = Artifact(tmp_path / "rounds-1", {"stage": "rounds", "settings": {"count": 2}})
    both = {"rounds": rounds, "responses 1": first, **inputs}
    found = [row for row in report.losses.losses(both) if row.stage.startswith("augment")]
    assert [(row.stage, row.count, row.what) for row in found] == [
        ("augment 1", 3, "responses not usable: empty"),
        ("augment 2", 2, "responses not usable: truncated"),
    ]
    assert found[0].file.startswith(str(first.folder))


def test_curves_of_the_training_are_drawn_at_their_place():
    rounds = [[(2, 8.0), (4, 4.0)], [(2, 6.0), (4, 0.0)]]
    curve = training.curve_of("loss", rounds)
    assert curve.lines == ["75.0,0.0 150.0,50.0", "225.0,25.0 300.0,100.0"]
    assert (curve.first, curve.last, curve.low, curve.high) == (8, 0, 0, 8)
    assert curve.ends == [150.0]
    assert training.curve_of("flat", [[(1, 2.0), (2, 2.0)]]).lines == ["150.0,0.0 300.0,0.0"]
    assert training.curve_of("one", [[(1, 2.0)]]) is None
    log = pa.table({"step": [1, 2, 3], "loss": [1.0, None, float("inf")]})
    assert training.points_of(log, "loss") == [(1, 1.0)]


def test_the_page_draws_the_log_of_the_training(tmp_path):
    log = {name: [1.0, 0.25] for name in training.CURVES}
    inputs = reporting.artifacts(tmp_path)
    disk.write_parquet(pa.table({"step": [1, 64], **log}), tmp_path / "log.parquet")
    inputs["trained"].table = lambda: pq.read_table(tmp_path / "log.parquet")
    found = training.curves(inputs)
    assert [curve.what for curve in found] == list(training.CURVES.values())
    assert {curve.last for curve in found} == {0.25}


def test_the_page_says_what_the_trainers_cut_leaves(tmp_path, monkeypatch):
    inputs = reporting.artifacts(tmp_path)
    formats = {
        "trl": {"max_length": 512, "pairs": 50, "cut": 3, "dropped": 10, "refused": 0,
                "prompts": 30, "depths": {"1": 12, "2": 19}, "mean_depth": 1.67, "gini": 0.21,
                "rule": "cut from the end"},
        "kto": {"pairs": 60},
    }  # fmt: skip
    inputs["dataset"].manifest["facts"]["formats"] = formats
    monkeypatch.setattr(reporting, "artifacts", lambda folder: inputs)
    table = pair_map.pair_table(inputs)
    html = reporting.page_of(tmp_path, table, ReportConfig()).read_text()
    part = html.split("After the trainer's cut")[1].split("</table>")[0]
    for said in ("trl", "512", "1.67", "0.21", "1: 12", "2: 19", "cut from the end", "kto"):
        assert f">{said}<" in part, said


def test_figures_are_drawn_as_svg_and_png_and_equal_data_give_equal_files(folder, tmp_path):
    names = {"depths", "margins", "map_clusters", "map_usefulness", "evaluation"}
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    again = reporting.write(tmp_path, ReportConfig(figures=True))
    for name in sorted(drawn):
        content = (folder / "figures" / name).read_bytes()
        assert content == (again / "figures" / name).read_bytes(), name
        if name.endswith("svg"):
            ElementTree.fromstring(content)
        else:
            assert content.startswith(b"\x89PNG")


def test_figures_without_matplotlib_are_refused_while_settings_are_read(monkeypatch):
    monkeypatch.setattr(report.figures, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report\.figures=true needs matplotlib.*\[figures\]"):
        asking.read(["report.figures=true"])
    assert importlib.util.find_spec("matplotlib"), "the extra dev brings it"


def test_without_points_the_page_has_tables_and_no_map(tmp_path):
    made = reporting.write(tmp_path, ReportConfig(points=0, clusters=0))
    html = (made / "report.html").read_text()
    assert "<canvas" not in html
    assert "Depth before and after" in html
    assert pq.read_metadata(made / "map.parquet").num_rows == 120

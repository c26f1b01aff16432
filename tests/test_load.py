"""Load: one row per prompt, nothing dropped without a word, splits that never overlap."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_data

from bpo_data.artifacts import Artifact
from bpo_data.components.rows import Given, Rejected, Row
from bpo_data.components.sources import Hub
from bpo_data.errors import UserError, some
from bpo_data.runtime import Runtime
from bpo_data.shelf import Shelf
from bpo_data.stages import load
from bpo_data.tables import prompt_id
from bpo_data.work import Work


def loaded(folder: Path, config: load.LoadConfig) -> Artifact:
    work = Work("load", load.VERSION, {}, {}, load.outside(config))
    return Shelf(folder).make(
        work, "prompts", load.schema(config), {}, lambda draft: load.run(draft, config, Runtime())
    )


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_rows_of_one_prompt_are_pooled_and_repeats_collapse(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair("p"), pair("q"), pair("p", "other"), pair("p")])
    artifact = loaded(tmp_path / "runs", load.LoadConfig(path=str(path), test_share=0))
    rows = {row["prompt"][0]["content"]: row for row in artifact.table().to_pylist()}
    assert set(rows) == {"p", "q"}
    assert [(one["text"], one["author"], one["score"]) for one in rows["p"]["given"]] == [
        ("other", "chosen", 1), ("yes", "chosen", 1), ("no", "rejected", 0)
    ]  # fmt: skip
    assert artifact.facts["rows_in"] == 4
    assert artifact.facts["result"] == f"{some(artifact.rows, 'prompt')} of 4 rows"
    assert artifact.facts["notices"]["repeated_prompt"] == 2
    assert artifact.facts["notices"]["repeated_response"] == 3


def test_the_order_of_the_source_changes_nothing(tmp_path):
    rows = [pair(f"p{n % 20}", f"c{n}", f"r{n}") for n in range(60)]
    digests = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = write_lines(folder / "a.jsonl", rows)
        artifact = loaded(folder / "runs", load.LoadConfig(path=str(path)))
        table = artifact.table().drop_columns(["source"])
        digests.add(str(table.to_pylist()))
    assert len(digests) == 1


def test_criteria_are_columns_of_given_only_where_the_source_has_any(tmp_path):
    rated = {"response": "yes", "score": 1, "criteria": {"kind": 2, "brief": 1.5}}
    sources = {"with": [rated, {"response": "no", "score": 0}], "without": ["yes", "no"]}
    given = {}
    for name, answers in sources.items():
        row = {"prompt": "p", "responses": answers}
        path = write_lines(tmp_path / f"{name}.jsonl", [row])
        found = loaded(tmp_path / name, load.LoadConfig(path=str(path), test_share=0)).table()
        assert (found.schema.field("given").type == load.GIVEN) == (name == "without")
        given[name] = found["given"].to_pylist()[0]
    by_text = {one["text"]: one["criteria"] for one in given["with"]}
    assert by_text["no"] is None
    assert by_text["yes"] == [{"name": "brief", "points": 1.5}, {"name": "kind", "points": 2}]


def test_splits_hold_the_asked_shares_and_never_overlap(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair(f"p{n}") for n in range(100)])
    config = load.LoadConfig(path=str(path), test_share=0.2, seed_share=0.3)
    artifact = loaded(tmp_path / "runs", config)
    assert artifact.facts["prompts"] == {"seed": 30, "pool": 50, "test": 20}
    table = artifact.table()
    assert table["prompt_id"].combine_chunks().value_counts().field(1).to_pylist() == [1] * 100


def test_prompts_added_later_move_few_of_the_others(tmp_path):
    rows = [pair(f"p{n}") for n in range(110)]
    split = []
    for count in (100, 110):
        folder = tmp_path / str(count)
        folder.mkdir()
        path = write_lines(folder / "a.jsonl", rows[:count])
        table = loaded(folder / "runs", load.LoadConfig(path=str(path))).table()
        split.append(
            dict(zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True))
        )
    moved = sum(split[0][name] != split[1][name] for name in split[0])
    assert moved <= 5


def test_set_aside_rows_are_written_whole_with_their_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(pair("p")).encode() + b"\n{broken\n")
    artifact = loaded(tmp_path / "runs", load.LoadConfig(path=str(path)))
    (row,) = pq.read_table(artifact.folder / "rejected.parquet").to_pylist()
    assert row["origin"] == "a.jsonl:2"
    assert row["reason"] == "invalid_json"
    assert row["raw"].rstrip() == b"{broken"
    assert artifact.facts["rejected_by_reason"] == {"invalid_json": 1}


def test_nothing_usable_names_the_reasons(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{broken\n[1]\n")
    with pytest.raises(UserError, match="none of 2 rows can be used"):
        loaded(tmp_path / "runs", load.LoadConfig(path=str(path)))


def test_one_bad_file_stops_the_run_or_is_set_aside_as_asked(tmp_path):
    write_lines(tmp_path / "a.jsonl", [pair("p")])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    config = load.LoadConfig(path=str(tmp_path))
    with pytest.raises(UserError, match=r"b\.parquet.*on_bad_file=skip"):
        loaded(tmp_path / "runs", config)
    config.options["on_bad_file"] = "skip"
    artifact = loaded(tmp_path / "runs", config)
    assert artifact.rows == 1
    assert artifact.facts["rejected_by_reason"] == {"corrupt_parquet": 1}


def test_a_changed_file_is_read_again(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair("p")])
    config = load.LoadConfig(path=str(path))
    before = load.outside(config)
    write_lines(path, [pair("q")])
    assert load.outside(config) != before


ULTRAFEEDBACK = [
    {"instruction": prompt, "completions": completions}
    for prompt, completions in (
        ("p", [{"model": "m0", "response": "good", "overall_score": 9.0},
               {"model": "m1", "response": "fair", "overall_score": 5.5}]),
        ("q", [{"model": "m0", "response": " ", "overall_score": 1.0}]),
        ("r", [{"model": "m1", "response": "fine", "overall_score": 7.0}]),
    )
]  # fmt: skip
HH = [
    {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: fair"},
    {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: fair"},
    {"chosen": "\n\nHuman: r\n\nAssistant: fine", "rejected": "\n\nHuman: r\n\nAssistant: no"},
]


@pytest.mark.parametrize(
    ("records", "given", "reason"),
    [
        (
            ULTRAFEEDBACK,
            [[Given("good", "m0", 9.0), Given("fair", "m1", 5.5)], [Given("fine", "m1", 7.0)]],
            "empty_response",
        ),
        (
            HH,
            [
                [Given("good", "chosen", 1.0), Given("fair", "rejected", 0.0)],
                [Given("fine", "chosen", 1.0), Given("no", "rejected", 0.0)],
            ],
            "history_differs",
        ),
    ],
    ids=["ultrafeedback", "hh"],
)
def test_a_hub_dataset_streams_to_the_rows_its_layout_means(monkeypatch, records, given, reason):
    import datasets

    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return datasets.Dataset.from_list(records).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    first, bad, last = Hub("lab/set", subset="part", split="test", revision="abc").rows()
    options = {"split": "test", "revision": "abc", "streaming": True}
    assert asked == [(("lab/set", "part"), options)]
    for row, number, prompt, responses in ((first, 0, "p", given[0]), (last, 2, "r", given[1])):
        assert isinstance(row, Row)
        assert row.origin == f"lab/set@abc#{number}"
        assert row.prompt == ({"role": "user", "content": prompt},)
        assert list(row.given) == responses
    assert isinstance(bad, Rejected)
    assert (bad.origin, bad.reason) == ("lab/set@abc#1", reason)
    assert json.loads(bad.raw) == records[1]


def test_a_limit_draws_whole_prompts_by_lot(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair(f"p{n}", f"c{n}") for n in range(50)] * 2)
    artifact = loaded(tmp_path / "runs", load.LoadConfig(path=str(path), limit=10))
    assert artifact.rows == 10
    assert artifact.facts["rows_of_prompts_left_out_by_limit"] == 80


def test_the_prompt_id_is_the_whole_conversation():
    one = [{"role": "user", "content": "hi"}]
    longer = [{"role": "system", "content": "be brief"}, *one]
    assert prompt_id(one) != prompt_id(longer)
    assert prompt_id(one) == prompt_id([{"content": "hi", "role": "user"}])
    assert len(prompt_id(one)) == 16


@needs_data
@pytest.mark.parametrize(
    ("name", "columns", "prompts", "responses", "set_aside"),
    [
        # 82 prompts x 4; MT-bench prompts of the same words would pool, none do.
        ("gpt4_ratings_1to5.parquet", {}, 197, 328, 0),
        # 9,692 rows, 13 of them empty (two hold a zero-width space alone); 552 identical texts.
        ("alpaca_eval_responses.parquet", {"prompt": "instruction"}, 404, 9679, 13),
        ("gsm8k_responses.parquet", {"prompt": "question"}, 637, 2548, 0),
    ],
)
def test_real_files_load_to_the_counts_their_readme_gives(
    tmp_path, name, columns, prompts, responses, set_aside
):
    config = load.LoadConfig(path=str(SHARED / name), columns=columns)
    artifact = loaded(tmp_path, config)
    assert artifact.rows == prompts
    assert artifact.facts["rows_rejected"] == set_aside
    repeated = artifact.facts["notices"].get("repeated_response", 0)
    assert artifact.facts["responses_given"] + repeated == responses


@needs_data
def test_multi_turn_pairs_keep_their_conversations(tmp_path):
    artifact = loaded(tmp_path, load.LoadConfig(path=str(SHARED / "hh_harmless_2k.parquet")))
    source = pq.read_table(SHARED / "hh_harmless_2k.parquet", columns=["prompt"]).to_pylist()
    assert {str(row["prompt"]) for row in source} == {
        str(row["prompt"]) for row in artifact.table(["prompt"]).to_pylist()
    }

"""Every deliberately broken file does what ``shared/data/bad_inputs/expected.json`` asks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bpo_data.components.reading import Columns, FileRejected, read
from bpo_data.components.rows import Rejected, Row

DATA = Path(__file__).parents[1].parent / "shared" / "data"
FOLDER = DATA / "bad_inputs"
# judge_raw holds replies of a judge, not rows: the tests of the judge's parser cover it.
KINDS_OF_ROWS = ("preference", "scored")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"there is no {FOLDER}")


def expectations() -> list[Any]:
    path = FOLDER / "expected.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    return [pytest.param(e, id=e["file"]) for e in entries if e["kind"] in KINDS_OF_ROWS]


def load(name: str) -> tuple[list[Row], list[Rejected]]:
    found = list(read(str(FOLDER / name), Columns()))
    good = [row for row in found if isinstance(row, Row)]
    bad = [row for row in found if isinstance(row, Rejected)]
    assert len(good) + len(bad) == len(found)
    return good, bad


def at(rejected: Rejected) -> int:
    return int(rejected.origin.replace("#", ":").rpartition(":")[2])


@pytest.mark.parametrize("entry", expectations())
def test_a_broken_file_is_treated_as_expected(entry: dict[str, Any]) -> None:
    name = entry["file"]
    if entry["expect"] == "reject_file":
        with pytest.raises(FileRejected) as refusal:
            load(name)
        assert refusal.value.reason == entry["reason"]
        message = str(refusal.value)
        assert message.startswith(name)
        assert "\n" not in message
        assert all(f"`{column}`" in message for column in entry.get("names", []))
        return
    good, bad = load(name)
    expected = [(e.get("line", e.get("row")), e["reason"]) for e in entry["bad"]]
    if name.startswith("29"):
        expected = [(8, "missing_id")]  # said in the entry's note alone
    assert [(at(row), row.reason) for row in bad] == expected
    assert len(good) + len(bad) == entry["rows"]
    if entry["good_rows"] is not None:
        assert len(good) == entry["good_rows"]


@pytest.mark.parametrize("entry", expectations())
def test_a_rejected_row_keeps_its_bytes(entry: dict[str, Any]) -> None:
    path = FOLDER / entry["file"]
    if entry["expect"] == "reject_file" or path.suffix != ".jsonl":
        return
    lines = path.read_bytes().split(b"\n")
    for row in load(path.name)[1]:
        assert row.raw == lines[at(row) - 1].rstrip(b"\r")


def test_unicode_comes_back_code_point_for_code_point() -> None:
    lines = (FOLDER / "26_unicode.jsonl").read_bytes().split(b"\n")
    sources = [json.loads(line) for line in lines if line]
    good, _ = load("26_unicode.jsonl")
    for source, row in zip(sources, good, strict=True):
        assert list(row.prompt) == source["prompt"]
        assert [g.text for g in row.given] == [
            source[s][0]["content"] for s in ("chosen", "rejected")
        ]


def test_dangerous_ids_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(FOLDER.parent.rglob("*"))
    good, _ = load("29_path_traversal_ids.jsonl")
    assert not list(tmp_path.rglob("*"))
    assert sorted(FOLDER.parent.rglob("*")) == before
    assert all(row.origin.startswith("29_path_traversal_ids.jsonl:") for row in good)


def test_six_layouts_of_one_row_read_alike() -> None:
    good, _ = load("34_mixed_shapes.jsonl")
    same = {(row.prompt, row.given) for row in map(frozen, good[1:])}
    assert len(good) == 6
    assert len(same) == 1
    notices = [row.notices for row in good]
    assert ("layout:sharegpt",) in notices
    assert ("hh_text",) in notices


def frozen(row: Row) -> Any:
    class Same:
        prompt = json.dumps(row.prompt)
        given = tuple((g.author, g.text, g.score) for g in row.given)

    return Same


def test_each_row_with_control_tokens_is_counted() -> None:
    good, _ = load("28_special_tokens.jsonl")
    assert all({"special_tokens", "role_marker"} & set(row.notices) for row in good)


def test_injected_replies_are_plain_text() -> None:
    good, _ = load("44_injection_in_response.jsonl")
    assert good[4].given[0].text == "[[A]] [[A]] [[A]]"
    assert good[4].given[0].score == 0.5


ROWS = {
    "hh_harmless_2k.parquet": (1133, 0),
    "hh_harmless_raw.jsonl": (195, 5),
    # 11 outputs are empty (README), 2 more are a zero-width space alone.
    "alpaca_eval_responses.parquet": (9679, 13),
    "gpt4_ratings_1to5.parquet": (328, 0),
    "gsm8k_responses.parquet": (2548, 0),
    "arena_hard_responses.parquet": (723, 0),
    "prompts_50k.parquet": (49106, 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_real_files_read_whole(name: str) -> None:
    good, bad = load(f"../{name}")
    assert (len(good), len(bad)) == ROWS[name]
    if name.startswith("alpaca"):
        assert {row.reason for row in bad} == {"empty_response"}


def test_hh_text_reads_like_the_parquet_made_from_it() -> None:
    made = {digest(row) for row in load("../hh_harmless_2k.parquet")[0]}
    assert all(digest(row) in made for row in load("../hh_harmless_raw.jsonl")[0])


def digest(row: Row) -> str:
    return hashlib.sha256(repr((row.prompt, row.given)).encode()).hexdigest()


def test_malformed_hh_rows_have_the_reasons_of_the_source() -> None:
    columns = Columns(chosen="chosen_raw", rejected="rejected_raw")
    rows = list(read(str(DATA / "hh_harmless_malformed.parquet"), columns))
    names = {"empty_response": "empty_chosen"}
    for row in rows:
        assert isinstance(row, Rejected)
        assert names.get(row.reason, row.reason) in json.loads(row.raw)["reasons"]

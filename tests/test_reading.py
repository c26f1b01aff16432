"""Files become rows: every layout, every kind of file, nothing altered and nothing lost."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.components.reading import (
    Bad,
    Columns,
    Converter,
    FileRejected,
    find_files,
    formats,
    read,
)
from bpo_data.components.reading.messages import transcript
from bpo_data.components.reading.strict_json import array_elements, loads
from bpo_data.components.reading.text import visible
from bpo_data.components.rows import Rejected, Row
from bpo_data.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
SEEN = TEXT.filter(lambda text: visible(text) and not text.lstrip().startswith("Human:"))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "score"]), inner
        )
    ),
    max_leaves=8,
)
COLUMNS = ["prompt", "instruction", "input", "conversations", "messages", "chosen", "rejected"]
COLUMNS += ["response", "responses", "completions", "score", "scores", "id", "system", "model"]


def only(records: list[dict[str, Any]], columns: Columns | None = None, **options: Any) -> Any:
    """What the records, written as JSON lines, are read as: the single row, or all of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        rows = list(read(str(path), columns or Columns(), **options))
    return rows[0] if len(rows) == 1 else rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def texts(row: Row) -> list[str]:
    return [row.prompt[-1]["content"], *(one.text for one in row.given)]


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """The same rows, prompt and response, in the kind of file that the name asks for."""
    records = [{"prompt": prompt, "response": response} for prompt, response in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            dialect = "excel" if path.suffix == ".csv" else "excel-tab"
            out = csv.DictWriter(file, ["prompt", "response"], dialect=dialect)
            out.writeheader()
            out.writerows(records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        packed = gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode()
        path.write_bytes(packed)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_text_comes_back_code_point_for_code_point(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(SEEN, SEEN), min_size=1, max_size=4))
    def check(rows: list[tuple[str, str]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows.{kind}"
            write(path, rows)
            found = list(read(str(path), Columns()))
        assert [texts(row) for row in found if isinstance(row, Row)] == [list(row) for row in rows]

    check()


@settings(max_examples=100, deadline=None)
@given(st.lists(SEEN.map(str.strip).filter(visible), min_size=2, max_size=8))
def test_hh_text_parses_to_the_turns_it_was_written_from(turns: list[str]) -> None:
    turns = [turn.replace("\n\n", "\n") for turn in turns[: len(turns) // 2 * 2]]
    names = ("Human", "Assistant")
    text = "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))
    assert [message["content"] for message in transcript(text)] == turns


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON | TEXT), st.booleans())
def test_any_record_is_a_row_or_has_a_named_fault(record: dict[str, Any], textual: bool) -> None:
    try:
        row = Converter(list(record), Columns(), {}, textual).row(record, "x:1")
    except Bad as bad:
        bad.detail.encode()
        return
    assert row.prompt[-1]["role"] in ("user", "tool")
    assert all(visible(one.text) for one in row.given)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | TEXT.map(str.encode))
def test_any_bytes_are_json_or_have_a_named_fault(raw: bytes) -> None:
    list(array_elements(raw))
    reason = ""
    try:
        loads(raw)
    except Bad as bad:
        reason = bad.reason
    assert reason in ("", "invalid_json", "not_utf8", "duplicate_key", "too_deep")


@settings(max_examples=100, deadline=None)
@given(st.lists(JSON.filter(lambda value: value == value), max_size=5), st.sampled_from([None, 1]))
def test_array_elements_are_the_array(values: list[Any], indent: int | None) -> None:
    data = json.dumps(values, indent=indent).encode()
    found = list(array_elements(data))
    assert all(ended for *_, ended in found)
    assert repr([loads(raw) for _, raw, _ in found]) == repr(values)


def test_hh_prompt_ends_before_the_last_answer() -> None:
    shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = only([{"chosen": shared + " yes", "rejected": shared + " no"}])
    assert row.prompt == (user("a"), assistant("b"), user("c"))
    assert [(g.text, g.author, g.score) for g in row.given] == [
        ("yes", "chosen", 1.0),
        ("no", "rejected", 0.0),
    ]
    split = only([{"prompt": shared, "chosen": "yes", "rejected": "no"}])
    assert (split.prompt, split.given) == (row.prompt, row.given)


def test_a_pair_may_carry_its_prompt_and_scores() -> None:
    whole = [user("q"), assistant("good")], [user("q"), assistant("bad")]
    record = {"prompt": "q", "chosen": whole[0], "rejected": whole[1], "messages": whole[0]}
    row = only([record | {"score_chosen": 8, "score_rejected": 2.5}])
    assert row.prompt == (user("q"),)
    assert [g.score for g in row.given] == [8.0, 2.5]
    assert only([record | {"prompt": "other"}]).reason == "history_differs"


def test_ultrafeedback_gives_all_four_responses() -> None:
    completions = [
        {"model": f"m{i}", "response": f"r{i}", "overall_score": i, "fine-grained_score": i / 2}
        for i in range(4)
    ]
    row = only([{"instruction": "q", "completions": completions, "models": ["m0"]}])
    assert [(g.text, g.author, g.score) for g in row.given] == [
        (f"r{i}", f"m{i}", float(i)) for i in range(4)
    ]
    assert row.notices == ("layout:ultrafeedback",)


def test_parallel_scores_go_with_their_responses() -> None:
    row = only([{"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}])
    assert [(g.text, g.score) for g in row.given] == [("a", 1.0), ("b", 2.0)]
    short = only([{"prompt": "q", "responses": ["a", "b"], "scores": [1]}])
    assert short.reason == "wrong_field_count"


def test_ultrafeedback_brings_points_by_criterion_and_its_critique() -> None:
    told = {"honesty": {"Rating": "4", "Rationale": "so"}, "help": {"Rating": "N/A"}, "x": None}
    completion = {"response": "r", "overall_score": 7, "annotations": told, "critique": "Good."}
    row = only([{"instruction": "q", "completions": [completion]}])
    assert row.given[0].criteria == (("honesty", 4.0),)
    assert row.given[0].rationale == "Good."
    assert row.notices == ("layout:ultrafeedback", "criterion_not_a_number")


def test_columns_named_as_criteria_go_with_the_response_of_their_row() -> None:
    record = {"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 1, "coherence": None}
    columns = Columns(criteria="verbosity, helpfulness,coherence", score="helpfulness")
    row = only([record], columns)
    assert row.given[0].criteria == (("helpfulness", 3.0), ("verbosity", 1.0))
    assert row.given[0].score == 3
    assert only([record]).given[0].criteria == (), "they are never guessed"
    assert only([{**record, "verbosity": "low"}], columns).reason == "score_not_a_number"
    with pytest.raises(FileRejected, match=r"no column `verbose`.*Did you mean verbosity"):
        only([record], Columns(criteria="helpfulness,verbose"))
    several = {"prompt": "q", "responses": ["a", "b"], "helpfulness": 3}
    assert only([several], Columns(criteria="helpfulness")).reason == "unknown_layout"


def test_alpaca_input_is_part_of_the_prompt() -> None:
    row = only([{"instruction": "Sum.", "input": "1 2", "output": "3"}])
    assert texts(row) == ["Sum.\n\n1 2", "3"]


def test_a_chat_gives_its_last_answer() -> None:
    row = only([{"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}])
    assert texts(row) == ["c", "d"]
    assert row.given[0].score is None


def test_a_system_column_comes_first() -> None:
    row = only([{"system": "Be terse.", "prompt": "q", "response": "a"}])
    assert row.prompt[0] == {"role": "system", "content": "Be terse."}


def test_roles_are_renamed_only_on_request() -> None:
    record = {"prompt": [{"role": "human", "content": "q"}], "response": "a"}
    assert only([record]).reason == "unknown_role"
    assert only([record], roles={"human": "user"}).prompt == (user("q"),)


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, "bare", None])
def test_content_that_is_not_text_is_unsupported(part: Any) -> None:
    content = [{"type": "text", "text": "see"}, part]
    row = only([{"prompt": [{"role": "user", "content": content}], "response": "a"}])
    assert row.reason == "unsupported_content"


def test_a_pair_beside_a_response_is_ambiguous_until_mapped() -> None:
    record = {"prompt": "q", "chosen": "a", "rejected": "b", "response": "c"}
    assert only([record]).reason == "unknown_layout"
    assert texts(only([record], Columns(response="response"))) == ["q", "c"]
    assert texts(only([record], Columns(response="-"))) == ["q", "a", "b"]
    assert texts(only([record], Columns(chosen="-"))) == ["q", "c"]


def test_an_explicit_column_wins_over_the_standard_name() -> None:
    record = {"prompt": "no", "task": "yes", "reply": "r", "points": 3, "gold": 7, "split": "test"}
    columns = Columns(prompt="task", response="reply", score="points", reference="gold")
    row = only([record], columns)
    assert texts(row) == ["yes", "r"]
    assert (row.given[0].score, row.reference, row.split) == (3.0, "7", "test")


def test_a_mapped_column_that_is_absent_names_the_nearest() -> None:
    with pytest.raises(FileRejected, match=r"no column `promt`.*Did you mean prompt") as refusal:
        only([{"prompt": "q"}], Columns(prompt="promt"))
    assert refusal.value.reason == "missing_column"


def test_responses_of_one_prompt_may_share_its_id() -> None:
    rows = [{"id": "p1", "prompt": "q", "response": text, "score": 1} for text in ("a", "b", "a")]
    rows.append({"id": "p1", "prompt": "other", "response": "c", "score": 1})
    first, second, repeat, clash = only(rows)
    assert texts(first) == ["q", "a"]
    assert texts(second) == ["q", "b"]
    assert repeat.reason == clash.reason == "duplicate_id"


def test_scores_in_csv_are_numbers_as_text(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(
        "prompt,response,score\nq,a,1e1\nq,b,\nq,c,8/10\nq,d,nan\n", encoding="utf-8"
    )
    rows = list(read(str(tmp_path / "s.csv"), Columns()))
    assert isinstance(rows[0], Row)
    assert rows[0].given[0].score == 10.0
    assert [(r.reason, r.origin) for r in rows[1:] if isinstance(r, Rejected)] == [
        ("null_score", "s.csv:3"),
        ("score_not_a_number", "s.csv:4"),
        ("score_not_finite", "s.csv:5"),
    ]


def test_a_csv_row_is_placed_at_the_line_it_begins_on(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text('prompt,response\n"a\nb",c\n\nq,d,e\n', encoding="utf-8")
    row, bad = read(str(tmp_path / "s.csv"), Columns())
    assert row.origin == "s.csv:2"
    assert bad.origin == "s.csv:5"
    assert isinstance(bad, Rejected)
    assert bad.raw == b"q,d,e"


def test_an_array_that_ends_too_early_loses_nothing_silently(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"prompt": "a"},\n{"prompt": "b"}\n')
    good, bad = read(str(path), Columns())
    assert good.origin == "rows.json:2"
    assert isinstance(bad, Rejected)
    assert (bad.origin, bad.reason, bad.raw) == ("rows.json:3", "invalid_json", b'{"prompt": "b"}')


def test_a_line_too_long_is_set_aside_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 100)
    monkeypatch.setattr(formats, "KEPT", 10)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "' + "b" * 1000 + '"}\n{"prompt": "c"}\n')
    first, long, last = read(str(path), Columns())
    assert isinstance(long, Rejected)
    assert (long.reason, long.raw) == ("too_long", b'{"prompt":')
    assert (first.origin, last.origin) == ("rows.jsonl:1", "rows.jsonl:3")


def test_a_parquet_row_rejected_keeps_all_its_columns(tmp_path: Path) -> None:
    record = {"prompt": "q", "response": "", "note": ["kept", None], "bytes": b"\xff"}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    (row,) = read(str(tmp_path / "rows.parquet"), Columns())
    assert isinstance(row, Rejected)
    assert row.origin == "rows.parquet#0"
    assert json.loads(row.raw)["note"] == ["kept", None]


def test_all_files_of_a_folder_are_looked_through_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "b.csv").write_text("prompt\nb\n")
    (tmp_path / "README.md").write_text("no data")
    assert [row.origin for row in read(str(tmp_path), Columns())] == ["a.jsonl:1", "b.csv:2"]
    assert [f.name for f in find_files(str(tmp_path / "*.csv"))] == ["b.csv"]
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(FileRejected, match=r"^c\.jsonl: "):
        read(str(tmp_path), Columns())


def test_a_path_with_nothing_there_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"load\.path=.*Did you mean prompts\.jsonl"):
        find_files(str(tmp_path / "promts.jsonl"))
    with pytest.raises(UserError, match="no folder"):
        find_files(str(tmp_path / "no" / "x.jsonl"))
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(UserError, match=r"\.parquet, \.jsonl"):
        find_files(str(tmp_path / "table.xlsx"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for count in (500, 5000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text((json.dumps({"prompt": "x" * 1000}) + "\n") * count)
        tracemalloc.start()
        assert sum(1 for _ in read(str(path), Columns())) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000"])
def test_a_criterion_whose_name_no_table_can_carry_is_set_aside(tmp_path: Path, name: str) -> None:
    item = f'{{"response": "x", "annotations": {{"{name}": 2}}}}'
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "a", "completions": [{item}]}}\n')
    (row,) = read(str(tmp_path / "rows.jsonl"), Columns())
    assert isinstance(row, Rejected)
    assert row.reason in ("lone_surrogate", "control_character")


def test_memory_does_not_grow_with_the_row_groups_of_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpo_data.components.reading.parquet.AT_LEAST", 500)
    peaks = []
    for groups in (4, 16):
        path = tmp_path / f"{groups}.parquet"
        table = pa.table({"prompt": [f"{n} " * 300 for n in range(500)]})
        with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as file:
            for _ in range(groups):
                file.write_table(table)
        before, most = pa.total_allocated_bytes(), 0
        for number, _ in enumerate(read(str(path), Columns())):
            if number % 100 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
        assert number == groups * 500 - 1
        peaks.append(most)
    assert peaks[1] < 1.5 * peaks[0], peaks

"""Artifacts: keyed by content, whole or not there, checked when read."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from bpo_data.artifacts import Artifact, Draft, Pulse
from bpo_data.engines import at
from bpo_data.errors import UserError
from bpo_data.shelf import Shelf
from bpo_data.tables import ID, columns
from bpo_data.work import Work, difference

SCHEMA = columns(name=ID, value=pa.int32())
WORK = Work("pair", 1, {"k": 100, "options": {"a": 1}}, {"scores": "0" * 64})


def rows(start: int, count: int) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {"name": [f"{number:03d}" for number in numbers], "value": list(numbers)}, schema=SCHEMA
    )


def made(shelf: Shelf, work: Work = WORK, count: int = 10) -> Artifact:
    return shelf.make(work, "pairs", SCHEMA, {}, lambda draft: draft.write(rows(0, count)))


def test_equal_work_has_one_place_and_any_difference_another():
    same = Work("pair", 1, {"options": {"a": 1}, "k": 100}, {"scores": "0" * 64})
    assert same.name == WORK.name
    others = [
        Work("pair", 2, WORK.settings, WORK.inputs),
        Work("pair", 1, {**WORK.settings, "k": 101}, WORK.inputs),
        Work("pair", 1, WORK.settings, {"scores": "1" * 64}),
        Work("pair", 1, WORK.settings, WORK.inputs, {"file": "ff"}),
    ]
    assert len({WORK.name, *(work.name for work in others)}) == 5


def test_what_is_written_comes_back_and_is_found_again(tmp_path):
    artifact = made(Shelf(tmp_path))
    found = Shelf(tmp_path).find(WORK)
    assert found is not None
    assert found.table() == rows(0, 10)
    assert found.digest == artifact.digest
    assert found.rows == 10


def test_digest_depends_on_content_alone(tmp_path):
    one = made(Shelf(tmp_path / "a"))
    other = made(Shelf(tmp_path / "b"))
    longer = made(Shelf(tmp_path / "c"), count=11)
    assert one.digest == other.digest != longer.digest


def test_a_view_does_not_touch_the_digest(tmp_path):
    def run_with(text: str):
        def run(draft: Draft) -> None:
            draft.write(rows(0, 3))
            draft.view("page.html").write_text(text)

        return run

    one = Shelf(tmp_path / "a").make(WORK, "pairs", SCHEMA, {}, run_with("12 s"))
    other = Shelf(tmp_path / "b").make(WORK, "pairs", SCHEMA, {}, run_with("13 s"))
    assert one.digest == other.digest


def as_it_is(part: pa.Table) -> pa.Table:
    return part


def test_unfinished_work_is_not_found_and_its_parts_survive(tmp_path):
    shelf, calls = Shelf(tmp_path), []

    def run(draft: Draft, stop_after: int) -> None:
        def make(part: pa.Table) -> pa.Table:
            if len(calls) == stop_after:
                raise RuntimeError("crash")
            calls.append(part.num_rows)
            return part

        draft.map_parts(rows(0, 10), at(make), 4)

    with pytest.raises(RuntimeError):
        shelf.make(WORK, "pairs", SCHEMA, {}, lambda draft: run(draft, 2))
    assert shelf.find(WORK) is None
    (tmp_path / f"{WORK.name}.partial" / "half-a-model.bin").write_bytes(b"x")
    assert shelf.why(WORK) == "going on after an interruption"
    artifact = shelf.make(WORK, "pairs", SCHEMA, {}, lambda draft: run(draft, 99))
    assert calls == [4, 4, 2], "a finished part was made again, or one was skipped"
    assert artifact.table() == rows(0, 10)
    unbroken = Shelf(tmp_path / "other").make(
        WORK,
        "pairs",
        SCHEMA,
        {},
        lambda draft: draft.map_parts(rows(0, 10), at(lambda part: part), 4),
    )
    assert artifact.digest == unbroken.digest


def test_no_rows_still_make_a_table(tmp_path):
    artifact = Shelf(tmp_path).make(
        WORK,
        "pairs",
        SCHEMA,
        {},
        lambda draft: draft.map_parts(rows(0, 0), at(lambda part: part), 4),
    )
    assert artifact.table().schema == SCHEMA
    assert artifact.rows == 0


def test_a_null_where_none_belongs_is_refused(tmp_path):
    broken = pa.table({"name": ["a", None], "value": [1, 2]})
    with pytest.raises((AssertionError, pa.ArrowInvalid, ValueError)):
        Shelf(tmp_path).make(WORK, "pairs", SCHEMA, {}, lambda draft: draft.write(broken))


def test_a_flipped_byte_is_named_with_the_way_out(tmp_path):
    artifact = made(Shelf(tmp_path))
    path = artifact.folder / "pairs.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs\.parquet.*sha256.*Remove the folder"):
        artifact.table()


def test_a_cut_or_missing_file_is_found_without_reading(tmp_path):
    artifact = made(Shelf(tmp_path))
    (artifact.folder / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cut short"):
        Shelf(tmp_path).find(WORK)


def test_a_manifest_of_a_newer_format_is_refused(tmp_path):
    artifact = made(Shelf(tmp_path))
    path = artifact.folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="newer bpo_data"):
        Shelf(tmp_path).find(WORK)


def test_the_reason_names_what_changed(tmp_path):
    shelf = Shelf(tmp_path)
    assert shelf.why(WORK) == "first time"
    made(shelf)
    wider = Work("pair", 1, {"k": 200, "options": {"a": 1}}, WORK.inputs)
    assert shelf.why(wider) == "k 100 -> 200"
    nested = Work("pair", 1, {"k": 100, "options": {"a": 2}}, WORK.inputs)
    assert shelf.why(nested) == "options.a 1 -> 2"
    assert shelf.why(Work("pair", 1, WORK.settings, {"scores": "1"})) == "scores changed"
    assert shelf.why(Work("pair", 2, WORK.settings, WORK.inputs)) == "stage version 1 -> 2"


def test_many_changes_are_cut_to_three(tmp_path):
    made(Shelf(tmp_path), Work("pair", 1, {}, {}))
    many = Work("pair", 1, dict.fromkeys("abcde", 1), {})
    assert Shelf(tmp_path).why(many) == "a unset -> 1, b unset -> 1, c unset -> 1 and 2 more"


def test_the_reason_compares_with_the_likest_work_not_the_last(tmp_path):
    made(Shelf(tmp_path))
    made(Shelf(tmp_path), Work("pair", 1, {"k": 7, "options": {"a": 9}}, {"scores": "f" * 64}))
    wider = Work("pair", 1, {"k": 200, "options": {"a": 1}}, WORK.inputs)
    assert Shelf(tmp_path).why(wider) == "k 100 -> 200"


def hold(folder: str, seconds: float, held) -> None:
    with Shelf(folder).held(WORK, waiting=lambda who: None):
        held.set()
        time.sleep(seconds)


def test_a_second_run_waits_and_is_told_who_holds_the_work(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), 0.5, held))
    process.start()
    assert held.wait(60)
    told: list[str] = []
    with Shelf(tmp_path).held(WORK, waiting=told.append):
        process.join(10)
        assert not process.is_alive(), "the lock was taken while another process held it"
    assert told == [told[0]]
    assert f"process {process.pid} on " in told[0]


def test_a_killed_holder_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), 60, held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    told: list[str] = []
    with Shelf(tmp_path).held(WORK, waiting=told.append):
        pass
    assert told == []


def test_no_file_is_left_half_written_under_its_name(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def fails(table, path, **options):
        Path(path).write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(OSError, match="No space"):
        made(Shelf(tmp_path))
    assert not list(tmp_path.rglob("*.parquet"))


def test_facts_that_change_alone_make_again_what_shows_them():
    """A report is keyed by what it shows; a stage that reads rows alone is not."""
    work = Work("report", 1, {}, {"pairs": "a"}, shown={"facts of pairs": "1"})
    manifest = {"version": 1, "settings": {}, "inputs": {"pairs": "a"}, "outside": {}}
    other = replace(work, shown={"facts of pairs": "2"})
    assert work.name != other.name
    assert difference({**manifest, "shown": work.shown}, other) == ["facts of pairs changed"]
    both = replace(other, inputs={"pairs": "b"})
    assert difference({**manifest, "shown": work.shown}, both) == ["pairs changed"]
    assert Work("train", 1, {}, {"pairs": "a"}).name == replace(work, stage="train", shown={}).name


def test_a_log_hears_of_progress_once_a_minute(monkeypatch, caplog):
    clock = iter([0.0, 10.0, 61.0, 62.0, 200.0])
    monkeypatch.setattr("bpo_data.artifacts.time.monotonic", lambda: next(clock))
    caplog.set_level("INFO", logger="bpo_data")
    with Pulse("gradients", 4_357, "rows") as bar:
        for count in (100, 500, 500, 1_000):
            bar.update(count)
    assert [one.getMessage().strip() for one in caplog.records] == [
        "gradients  600 of 4,357 rows, 61 s so far",
        "gradients  2,100 of 4,357 rows, 3 min so far",
    ]

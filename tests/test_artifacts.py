"""Artifacts: keyed by content, whole or not there, checked when read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import TINY

from bpo_data import disk
from bpo_data.artifacts import Artifact, Draft
from bpo_data.engines import Job, at
from bpo_data.errors import UserError
from bpo_data.pipelines.run import main
from bpo_data.pulse import Pulse
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


def broken_after(shelf: Shelf, count: int, error: type[BaseException] = RuntimeError) -> list[Path]:
    """The parts that a try left which ended after so many."""
    calls: list[int] = []

    def make(part: pa.Table) -> pa.Table:
        if len(calls) == count:
            raise error("the end")
        calls.append(part.num_rows)
        return part

    with pytest.raises(error):
        shelf.make(
            WORK, "pairs", SCHEMA, {}, lambda draft: draft.map_parts(rows(0, 10), lambda _: make, 4)
        )
    return sorted(shelf.folder.glob("*.partial/*.parquet"))


def finished(shelf: Shelf) -> tuple[Artifact, list[str]]:
    """The artifact that the next try ends with, and the first names of the parts that it made."""
    made_now: list[str] = []

    def make(part: pa.Table) -> pa.Table:
        made_now.append(part["name"][0].as_py())
        return part

    whole = shelf.make(
        WORK, "pairs", SCHEMA, {}, lambda draft: draft.map_parts(rows(0, 10), lambda _: make, 4)
    )
    return whole, made_now


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_a_disk_that_fills_up_at_the_manifest_costs_no_part(tmp_path, monkeypatch):
    write = disk.write_bytes

    def full(content, path):
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            finished(Shelf(tmp_path))
    assert finished(Shelf(tmp_path))[1] == []


def test_parts_of_what_is_not_yet_the_table_outlast_an_error_that_the_user_mends(tmp_path, caplog):
    shelf, calls = Shelf(tmp_path), []

    def run(draft: Draft, stop_after: int) -> None:
        def make(part: pa.Table) -> pa.Table:
            if len(calls) == stop_after:
                raise UserError("a worker process was killed")
            calls.append(part["name"][0].as_py())
            return part

        draft.resumable("trainer")
        job = Job("points", rows(0, 10), lambda _: make, SCHEMA, 4)
        found = draft.in_parts(job, lambda count: None)
        draft.write(found)

    with pytest.raises(UserError):
        shelf.make(WORK, "pairs", SCHEMA, {}, lambda draft: run(draft, 2))
    (first, _) = sorted(tmp_path.rglob("points-*.parquet"))
    assert not list(tmp_path.rglob("trainer")), "a training that ended so is not gone on with"
    flip(first)
    made = shelf.make(WORK, "pairs", SCHEMA, {}, lambda draft: run(draft, 99))
    assert calls == ["000", "004", "000", "008"]
    assert f"{first} is not what was written" in caplog.text
    assert made.table() == rows(0, 10)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_short, flip])
def test_a_part_that_changed_since_it_was_written_is_named_and_made_again(tmp_path, caplog, harm):
    shelf = Shelf(tmp_path / "broken")
    first, _ = broken_after(shelf, 2)
    harm(first)
    artifact, made_now = finished(shelf)
    assert made_now == ["000", "008"], "the harmed part and the missing one, not the sound one"
    assert f"{first} is not what was written (its sha256 differs): it is made again" in caplog.text
    assert artifact.digest == finished(Shelf(tmp_path / "whole"))[0].digest


@pytest.mark.parametrize("error", [UserError, RuntimeError, KeyboardInterrupt])
def test_however_a_stage_ends_its_finished_parts_are_not_made_again(tmp_path, error):
    broken_after(Shelf(tmp_path), 2, error)
    assert finished(Shelf(tmp_path))[1] == ["008"]


def test_a_kill_while_the_parts_are_hashed_costs_none_of_them(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bpo_data.disk.sync_folder", lambda folder: None)
        patch.setattr("os.rename", refuse_folders(os.rename))
        with pytest.raises(SystemExit):
            finished(Shelf(tmp_path))
    artifact, made_now = finished(Shelf(tmp_path))
    assert made_now == []
    assert not (artifact.folder / ".seals").exists()


def refuse_folders(rename):
    def refusing(source, target):
        if Path(source).is_dir():
            raise SystemExit
        rename(source, target)

    return refusing


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


def test_a_newer_or_broken_manifest_beside_stops_no_other_work(tmp_path):
    shelf = Shelf(tmp_path)
    for number, content in enumerate(('{"format": 99, "all": "new"}', '{"format": 1, "sta', "[]")):
        folder = tmp_path / f"pair-{number:012x}"
        folder.mkdir()
        (folder / "manifest.json").write_text(content)
    assert shelf.why(WORK) == "first time"
    made(shelf)
    assert shelf.why(replace(WORK, version=2)) == "stage version 1 -> 2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": 1, "sta', "cannot be read"),
        ("", "cannot be read"),
        ("[1, 2]", "it names no format"),
        ('{"format": 1, "stage": "pair"}', "it lacks digest, facts, files"),
    ],
)
def test_a_manifest_that_is_none_is_named_with_the_way_out(tmp_path, content, words):
    folder = made(Shelf(tmp_path)).folder
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=f"manifest.json.*{words}.*Remove the folder {folder}"):
        Shelf(tmp_path).find(WORK)


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, capsys):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuses)
    assert main(["stage=load", f"runtime.folder={tmp_path}/runs", *TINY]) == 2
    assert "No locks available" in capsys.readouterr().err


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


def test_a_lock_file_of_a_dead_process_elsewhere_holds_nobody_up(tmp_path):
    shelf, told = Shelf(tmp_path), []
    shelf.locks.mkdir(parents=True)
    (shelf.locks / WORK.name).write_text("process 4711 on a-host-that-is-gone")
    assert shelf.holder(WORK) == ""
    with shelf.held(WORK, waiting=told.append):
        assert told == []
    assert not shelf.in_use(tmp_path / WORK.name)


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
    monkeypatch.setattr("bpo_data.pulse.time.monotonic", lambda: next(clock))
    caplog.set_level("INFO", logger="bpo_data")
    with Pulse("gradients", 4_357, "rows") as bar:
        for count in (100, 500, 500, 1_000):
            bar.update(count)
    assert [one.getMessage().strip() for one in caplog.records] == [
        "gradients  600 of 4,357 rows, 61 s so far",
        "gradients  2,100 of 4,357 rows, 3 min so far",
    ]

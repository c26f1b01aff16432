"""Engines: where parts are made changes nothing of what comes out."""

from __future__ import annotations

import errno
import pickle
import re
import socket
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import TINY, run
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from bpo_data import __version__, disk
from bpo_data.artifacts import Draft, Into, cut, seal_of
from bpo_data.engines import Job, Place, alone, at, connecting, directly, engine_of, worker
from bpo_data.engines.cluster import Crew
from bpo_data.engines.connecting import shares
from bpo_data.engines.local import Local
from bpo_data.engines.worker import Told
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.shelf import Shelf
from bpo_data.tables import columns
from bpo_data.work import Work

SCHEMA = columns(row_id=pa.string(), square=pa.int64())


def numbers(count: int) -> pa.Table:
    return pa.table({"row_id": [f"r{n:03d}" for n in range(count)], "n": range(count)})


def squares(part: pa.Table) -> pa.Table:
    return pa.table({"row_id": part["row_id"], "square": [n.as_py() ** 2 for n in part["n"]]})


def draft_in(folder: Path) -> Draft:
    folder.mkdir(exist_ok=True)
    return Draft(folder, "squares", SCHEMA, {})


@settings(deadline=None)  # Arrow is loaded in the first of them
@given(rows=st.integers(0, 40), part_rows=st.integers(1, 50))
def test_parts_hold_every_row_once_in_order(rows, part_rows):
    parts = cut(numbers(rows), "part", part_rows)
    assert pa.concat_tables(part for _, part in parts) == numbers(rows)
    assert len({name for name, _ in parts}) == len(parts) == max(1, -(-rows // part_rows))
    assert sorted(name for name, _ in parts) == [name for name, _ in parts]


def test_rows_made_in_parts_come_back_in_order_and_finished_parts_are_not_made_again(tmp_path):
    told: list[int] = []
    made: list[int] = []

    def make(part: pa.Table) -> pa.Table:
        if len(made) == 2:
            raise RuntimeError("crash")
        made.append(part.num_rows)
        return squares(part)

    def in_parts() -> pa.Table:
        draft = draft_in(tmp_path / "draft")
        return draft.in_parts(Job("found", numbers(10), at(make), SCHEMA, 4), told.append)

    with pytest.raises(RuntimeError) as caught:
        in_parts()
    assert caught.value.__notes__ == [
        "It was making found-00002.parquet: 2 rows, row_id r008 to r009."
    ]
    made.clear()
    told.clear()
    found = in_parts()
    assert (made, sum(told)) == ([2], 10)
    assert found.equals(directly(Job("found", numbers(10), at(squares), SCHEMA, 3), told.append))


@pytest.mark.parametrize(
    ("engine", "processes"),
    [
        ("local", 0),
        pytest.param("processes", 2, marks=pytest.mark.slow),
    ],
)
def test_parts_are_taken_as_there_is_somebody_to_make_them(tmp_path, engine, processes):
    """Of parts that come one after the other no more are held than are made at once, and as many
    that wait; those that are there already are passed by."""
    taken = done = 0

    def parts() -> Any:
        nonlocal taken
        for number in range(12):
            taken += 1
            yield numbers(number + 1)

    def tell(rows: int) -> None:
        nonlocal done
        done += 1
        assert taken <= done + 2 * max(processes, 1)

    draft = draft_in(tmp_path / "draft")
    draft.engine = engine_of(Runtime(engine=engine, processes=processes))
    found = draft.made_of(parts(), "found", set_up_squares, SCHEMA, tell)
    assert [table.num_rows for table in found] == list(range(1, 13))
    for name in ("found-00003.parquet", "found-00011.parquet"):
        (draft.folder / ".resume" / "found" / name).unlink()
    taken = done = 0
    found = draft.made_of(parts(), "found", set_up_squares, SCHEMA, tell)
    whole = pa.concat_tables(squares(numbers(n + 1)) for n in range(12))
    assert pa.concat_tables(found) == whole.cast(SCHEMA)


def set_up_squares(place: Place) -> Any:
    return squares


def test_what_has_nothing_missing_sets_nothing_up(tmp_path):
    def never(place: Place) -> Any:
        raise AssertionError("nothing is to be made")

    draft = draft_in(tmp_path / "draft")
    draft.map_parts(numbers(6), at(squares), 4)
    again = draft_in(tmp_path / "draft")
    again.map_parts(numbers(6), never, 4)
    assert again.read() == draft.read()


def threads_of(part: pa.Table) -> pa.Table:
    """Threads that the libraries of this process compute on, at most."""
    threads = max(pool["num_threads"] for pool in threadpool_info())
    return pa.table({"row_id": part["row_id"], "square": [threads] * part.num_rows})


def counting(place: Place) -> Any:
    assert threads_of(numbers(1))["square"].to_pylist() == [1], "where it sets up"
    return threads_of


def test_workers_compute_on_as_many_threads_as_the_run_is_given(tmp_path, monkeypatch):
    """On two a product of matrices has other last bits than on one."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    draft = draft_in(tmp_path / "draft")
    draft.engine = engine_of(Runtime(engine="processes", processes=1, threads=1))
    draft.map_parts(numbers(2), counting, 4)
    assert draft.read()["square"].to_pylist() == [1, 1]


@pytest.mark.parametrize(
    ("resources", "runtime", "count", "options"),
    [
        ({"CPU": 8.0}, Runtime(threads=2), 4, {"num_cpus": 2.0}),
        ({"CPU": 8.0}, Runtime(processes=3), 3, {"num_cpus": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, Runtime(), 2, {"num_cpus": 1.0, "num_gpus": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, Runtime(processes=4), 4, {"num_cpus": 1.0, "num_gpus": 0.5}),
        ({"CPU": 8.0, "GPU": 2.0}, Runtime(processes=3), 3, {"num_cpus": 1.0, "num_gpus": 0.5}),
        ({"CPU": 8.0}, Runtime(device="cuda"), 1, {"num_cpus": 1.0, "num_gpus": 1.0}),
        ({"CPU": 8.0, "GPU": 2.0}, Runtime(device="cpu"), 8, {"num_cpus": 1.0}),
    ],
)
def test_workers_of_a_cluster_have_a_gpu_each_as_far_as_they_go_round(
    resources, runtime, count, options
):
    assert shares(resources, runtime) == (count, options)


def test_settings_of_engines_that_cannot_work_are_named():
    assert isinstance(engine_of(Runtime()), Local)
    problems = {
        "runtime.engine=spark: choose local, processes, ray.": {"engine": "spark"},
        "runtime.processes=4 wants runtime.engine=processes or ray": {"processes": 4},
        "runtime.address=auto is of a Ray cluster": {"address": "auto"},
        "runtime.address=ray://head:10001: start the command on a machine of the cluster": {
            "engine": "ray", "address": "ray://head:10001",
        },
        "runtime.lease=0: use seconds above 0.": {"lease": 0.0},
        "runtime.mirror has a key in its address": {"mirror": "s3://key:word@bucket/runs"},
        "runtime.device=spread has one model on all GPUs": {
            "device": "spread", "engine": "processes",
        },
    }  # fmt: skip
    for words, given_settings in problems.items():
        (line,) = Runtime(**given_settings).problems()
        assert line.startswith(words)


def test_a_cluster_that_is_named_is_asked_for_before_any_work(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        ended = run(
            *("stage=load", f"runtime.folder={tmp_path}", *TINY),
            *("runtime.engine=ray", f"runtime.address={address}"),
        )
    assert ended.returncode == 2
    assert f"runtime.address={address} is no Ray cluster that answers" in ended.stderr
    assert not list(tmp_path.glob("load-*"))


def test_finished_parts_survive_a_fault_that_the_user_mends(tmp_path):
    """They may have cost hours; a checkpoint of a training that failed for good has no more use."""
    made: list[int] = []

    def run(draft: Draft, room: int) -> None:
        (draft.resumable("trainer") / "state").write_text("x")

        def make(part: pa.Table) -> pa.Table:
            if len(made) == room:
                raise UserError("a worker was killed")
            made.append(part.num_rows)
            return squares(part)

        draft.write(draft.in_parts(Job("found", numbers(10), at(make), SCHEMA, 4), made_more))

    def made_more(count: int) -> None:
        return

    shelf, work = Shelf(tmp_path), Work("load", 1, {}, {})
    with pytest.raises(UserError):
        shelf.make(work, "squares", SCHEMA, {}, partial(run, room=2))
    left = {path.name for path in (tmp_path / f"{work.name}.partial" / ".resume").iterdir()}
    assert left == {"found"}
    artifact = shelf.make(work, "squares", SCHEMA, {}, partial(run, room=9))
    assert (made, artifact.rows) == ([4, 4, 2], 10)
    assert not list(artifact.folder.rglob("found-*")), "they are in the table now"


def test_a_part_that_comes_with_two_answers_is_one_part(tmp_path):
    crew = object.__new__(Crew)  # without the Ray that it would hire on
    crew.write = write = Into(tmp_path, SCHEMA, "squares")
    part = ("squares-00000.parquet", numbers(4))
    told = Told("far", "cpu", made=squares(numbers(4)))
    with write.open():
        for _ in range(2):
            crew.take(part, told)
            assert disk.sealed(tmp_path / part[0], seal_of(tmp_path / part[0]))
        with pytest.raises(ValueError, match=r"row_id.* with null values") as caught:
            crew.take(part, Told("far", "cpu", made=pa.table({"row_id": [None], "square": [1]})))
    assert caught.value.__notes__ == [
        "It was making squares-00000.parquet: 4 rows, row_id r000 to r003."
    ]
    assert disk.read_parquet(tmp_path / part[0]).to_pylist() == squares(numbers(4)).to_pylist()


def test_two_writers_of_a_part_never_mix_their_bytes(tmp_path):
    whole = [numbers(1 + 20_000 * size) for size in (1, 2)]
    path = tmp_path / "part-00000.parquet"
    with disk.open_to_writers(tmp_path), ThreadPoolExecutor(4) as pool:
        writers = [
            pool.submit(disk.write_parquet, whole[turn % 2], path, None, True) for turn in range(40)
        ]
        for writer in as_completed(writers):
            writer.result()
            assert disk.read_parquet(path).num_rows in {table.num_rows for table in whole}
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_given_up_adds_nothing_to_what_is_finished(tmp_path, monkeypatch):
    folder = tmp_path / "squares.partial"
    draft = draft_in(folder)
    draft.map_parts(numbers(8), at(squares), 4)
    late = Into(folder, SCHEMA, "squares")
    monkeypatch.setattr(disk, "sync_file", lambda path: finish())

    def finish() -> None:
        """The artifact is finished while the late one stands between writing and renaming."""
        scope.close()
        folder.rename(tmp_path / "squares")

    with ExitStack() as scope:
        scope.enter_context(late.open())
        with pytest.raises(FileNotFoundError):
            late("squares-00000.parquet", squares(numbers(4)))
    with pytest.raises(FileNotFoundError):  # and one that only begins to write
        late("squares-00000.parquet", squares(numbers(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["squares"]
    names = {path.name for path in (tmp_path / "squares").iterdir()}
    assert names == {*draft.table_files, ".seals"}


def test_a_part_goes_to_another_process_without_the_rest_of_its_table():
    whole = numbers(100_000)
    name, rows = alone(("part", whole.slice(500, 8)))
    assert rows == whole.slice(500, 8)
    assert len(pickle.dumps((name, rows))) < 4_000 < len(pickle.dumps(whole.slice(500, 8)))


def test_a_machine_with_another_version_says_so_in_one_line():
    worker.check_version(__version__)
    with pytest.raises(UserError, match="has bpo_data " + re.escape(__version__)) as caught:
        worker.check_version("0.0.1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mirror", ["", "s3://bucket/runs", "memory://runs"])
def test_a_machine_that_does_not_see_the_folder_needs_a_mirror_that_it_reaches(
    tmp_path, monkeypatch, mirror
):
    monkeypatch.setattr(worker, "SHOWN_WITHIN", 0.2)
    monkeypatch.chdir(tmp_path)  # and back
    draft = tmp_path / "runs" / "gradients.partial"
    draft.mkdir(parents=True)
    with disk.open_to_writers(draft):
        token = disk.token_in(draft)
        assert worker.sees(str(tmp_path), draft.parent, token, mirror)
        for lacks, start, seen in (
            ("/nowhere, where the command was started", "/nowhere", token),
            (f"{draft}, where finished parts go", str(tmp_path), token.with_name("token-other")),
        ):
            if mirror.startswith("s3"):
                assert not worker.sees(start, draft.parent, seen, mirror)
                continue
            with pytest.raises(UserError, match=re.escape(f"does not see {lacks}")) as caught:
                worker.sees(start, draft.parent, seen, mirror)
            way_out = "name in runtime.mirror a URL that all" if not mirror else "of one process"
            assert way_out in str(caught.value)
            assert "\n" not in str(caught.value)


def test_an_address_where_nobody_answers_is_told_at_once():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OSError, match="refused"):
            connecting.check_answers(f"127.0.0.1:{nobody.getsockname()[1]}")
        nobody.listen()
        connecting.check_answers(f"127.0.0.1:{nobody.getsockname()[1]}")


def test_folders_of_killed_processes_go_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, lock = connecting.own_folder()
    second, other = connecting.own_folder()
    assert {first, second} == set(tmp_path.iterdir())
    lock.close()  # as when its process ends, however that was
    third, last = connecting.own_folder()
    assert {second, third} == set(tmp_path.iterdir())
    (tmp_path / f"{connecting.PREFIX}rest").mkdir()  # its lock went, and it did not
    monkeypatch.setattr(connecting, "UNLOCKED", 0.0)
    fourth, more = connecting.own_folder()
    assert {second, third, fourth} == set(tmp_path.iterdir())
    more.close()
    other.close()
    last.close()


def test_a_worker_writes_again_where_the_fault_may_pass(monkeypatch):
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    tries: list[str] = []

    def write(name: str, table: pa.Table) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise OSError(errno.EROFS, "Read-only file system")

    worker.put(write, "part", numbers(1))
    assert tries == ["part"] * 3
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        worker.put(lambda name, table: (_ for _ in ()).throw(full), "part", numbers(1))

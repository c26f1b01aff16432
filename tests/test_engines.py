"""Engines: where parts are made changes nothing of what comes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from bpo_data.artifacts import Draft, cut
from bpo_data.engines import Job, Place, at, directly, engine_of
from bpo_data.engines.cluster import shares
from bpo_data.engines.local import Local
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
        "runtime.lease=0: use seconds above 0.": {"lease": 0.0},
        "runtime.mirror has a key in its address": {"mirror": "s3://key:word@bucket/runs"},
        "runtime.device=spread has one model on all GPUs": {
            "device": "spread", "engine": "processes",
        },
    }  # fmt: skip
    for words, given_settings in problems.items():
        (line,) = Runtime(**given_settings).problems()
        assert line.startswith(words)


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

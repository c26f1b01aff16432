"""The engine ``ray`` on a cluster that breaks: the unbroken run's bytes, within a stated time.

Marked slow, for every cluster takes seconds to begin. The makers are in ``making`` and load no
torch. The times here are bounds for two busy cores; what was measured is in the guide.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from clusters import Making, Nodes, driver, made_by, processes_of, started, wait_for
from making import PART_ROWS, ROWS, Squares, make

from bpo_data.engines import cluster, engine_of, losses
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]

PARTS = ROWS // PART_ROWS


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with started() as nodes:
        yield nodes


@pytest.fixture
def nodes(head) -> Iterator[Nodes]:
    """Two nodes of one worker each."""
    head.add()
    head.add()
    yield head
    head.remove_all()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """The digest of what this process makes alone."""
    folder = tmp_path_factory.mktemp("unbroken")
    return make(folder, None, Squares(folder / "notes")).digest


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    spent = time.monotonic() - begun
    print(f"TOOK {spent:.1f} s, bound {seconds:g}")
    assert spent < seconds


def made_twice(notes: Path) -> set[str]:
    return {path.name for path in notes.glob("made-*") if path.stat().st_size > 1}


def workers(notes: Path) -> int:
    return len(list(notes.glob("worker-*")))


def begun(notes: Path, parts: int = 2) -> bool:
    return len(list(notes.glob("made-*"))) >= parts


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_workers_makes_the_same_bytes(nodes, tmp_path, unbroken, count):
    nodes.add()
    runtime = Runtime(device="cpu", engine="ray", processes=count, address="given")
    squares = Squares(tmp_path / "notes", seconds=0.1, crowd=count)
    with within(40):
        made = made_by(tmp_path / "runs", squares, runtime)
    assert made.digest == unbroken
    assert workers(tmp_path / "notes") == count
    assert made_twice(tmp_path / "notes") == set()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [made.folder.name]
    assert {path.suffix for path in made.folder.iterdir()} == {".parquet", ".json"}


def test_processes_make_the_same_bytes(tmp_path, unbroken):
    runtime = Runtime(device="cpu", engine="processes", processes=2)
    made = make(tmp_path / "runs", engine_of(runtime), Squares(tmp_path / "notes"))
    assert made.digest == unbroken


def test_a_killed_worker_costs_its_part_and_no_other(nodes, tmp_path, unbroken, caplog):
    squares = Squares(tmp_path / "notes", fault="die")
    with within(40):
        made = made_by(tmp_path / "runs", squares)
    assert made.digest == unbroken
    assert made_twice(squares.notes) == set()
    assert made.facts["workers_lost"] == 1
    assert "squares-00005.parquet is made anew: worker" in caplog.text


def test_a_part_that_ends_every_worker_is_named_when_all_others_are_done(nodes, tmp_path):
    squares = Squares(tmp_path / "notes", fault="die", always=True)
    with within(60), pytest.raises(UserError, match=r"5 workers in turn .* squares-00005.parquet"):
        made_by(tmp_path / "runs", squares)
    done = {path.name for path in (tmp_path / "runs").rglob("*.parquet")}
    assert done == {f"squares-{n:05d}.parquet" for n in range(PARTS) if n != 5}


def test_errors_of_makers_come_as_they_are_with_the_rows_they_were_about(nodes, tmp_path):
    note = "It was making squares-00005.parquet: 4 rows, row_id r020 to r023."
    for fault, kind, words in (
        ("user", UserError, "squares.size=7: choose 8."),
        ("full", OSError, "[Errno 28] No space left on device: '/somewhere'"),
        ("odd", RuntimeError, "Odd: something odd at 7"),
    ):
        squares = Squares(tmp_path / fault, fault=fault)
        with pytest.raises(kind) as caught:
            made_by(tmp_path / "runs" / fault, squares)
        assert (type(caught.value), str(caught.value)) == (kind, words)
        assert caught.value.__notes__ == [note]
        assert re.search(r"making.py.*in " + fault, str(caught.value.__cause__)), "where it was"


def test_a_node_that_is_killed_is_replaced(nodes, tmp_path, unbroken):
    squares = Squares(tmp_path / "notes", seconds=0.5, crowd=4)
    lost = nodes.add(num_cpus=2)
    runtime = Runtime(device="cpu", engine="ray", processes=4, address="given")
    with Making(tmp_path / "runs", squares, runtime) as making:
        wait_for(lambda: begun(squares.notes))
        nodes.kill(lost)
        nodes.add(num_cpus=2)
        made = making.ended(60)
    assert made.digest == unbroken
    assert made.facts["workers_lost"] >= 2


def test_a_node_that_is_killed_for_good_is_done_without(nodes, tmp_path, unbroken):
    squares = Squares(tmp_path / "notes", seconds=0.5, crowd=2)
    with Making(tmp_path / "runs", squares) as making:
        wait_for(lambda: begun(squares.notes))
        nodes.kill(next(iter(nodes.cluster.worker_nodes)))
        made = making.ended(60)
    assert made.digest == unbroken
    assert made.facts["workers_lost"] >= 1


def test_a_killed_driver_goes_on_where_it_was(nodes, tmp_path, unbroken):
    arguments = (tmp_path / "runs", tmp_path / "notes", nodes.cluster.address, 0.3, 2)
    first = driver(*arguments)
    wait_for(lambda: begun(tmp_path / "notes", 4) or first.poll() is not None)
    os.kill(first.pid, signal.SIGKILL)
    assert first.communicate() == ("", "")
    done = {path.name: path.stat().st_mtime_ns for path in parts_in(tmp_path)}
    assert 2 <= len(done) < PARTS
    with within(60):
        output, errors = driver(*arguments).communicate(timeout=100)
    assert output.strip() == unbroken, errors
    assert all(
        path.stat().st_mtime_ns == done.get(path.name, path.stat().st_mtime_ns)
        for path in parts_in(tmp_path)
    ), "parts that were done are kept"
    assert errors == ""


def parts_in(folder: Path) -> list[Path]:
    return [*(folder / "runs").glob("squares-*/*.parquet")]


def test_a_slow_node_keeps_what_it_can_do_within_its_lease(nodes, tmp_path, unbroken, monkeypatch):
    monkeypatch.setattr(cluster, "LEAST_LEASE", 3.0)
    nodes.add(env_vars={"SLOW": "1"})
    squares = Squares(tmp_path / "notes", seconds=0.2, slow=60.0, crowd=3)
    runtime = Runtime(device="cpu", engine="ray", processes=3, address="given")
    with within(60):
        made = made_by(tmp_path / "runs", squares, runtime)
    assert made.digest == unbroken
    assert list(squares.notes.glob("slow-*"))
    assert made.facts["workers_lost"] >= 1


def test_a_part_that_is_slow_by_nature_has_more_time_with_every_try(
    nodes, tmp_path, unbroken, monkeypatch
):
    monkeypatch.setattr(cluster, "LEAST_LEASE", 1.0)
    squares = Squares(tmp_path / "notes", fault="tarry", always=True)
    with within(60):
        made = made_by(tmp_path / "runs", squares)
    assert made.digest == unbroken
    assert 1 <= made.facts["workers_lost"] < losses.TRIES


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a disk of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("this machine lets nobody mount: " + done.stderr.decode())
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_room_is_enough_to_go_on(nodes, tmp_path, small_disk, unbroken):
    squares = Squares(tmp_path / "notes")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40_000))
    with within(40), pytest.raises(OSError, match="No space left on device") as caught:
        made_by(small_disk / "runs", squares)
    assert caught.value.errno == 28
    assert not list(small_disk.rglob(".writing*")), "it takes no room"
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    with within(40):
        assert made_by(small_disk / "runs", squares).digest == unbroken


def test_a_folder_that_is_read_only_for_a_while_costs_that_while(
    nodes, tmp_path, small_disk, unbroken, caplog
):
    squares = Squares(tmp_path / "notes", seconds=0.3)
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)

    def refused(mode: str) -> bool:
        return bool(
            subprocess.run(
                ["mount", "-o", f"remount,{mode}", str(small_disk)], capture_output=True
            ).returncode
        )

    with Making(small_disk / "runs", squares) as making:
        wait_for(lambda: begun(squares.notes))
        wait_for(lambda: not refused("ro"))
        time.sleep(8)
        wait_for(lambda: not refused("rw"))
        made = making.ended(60)
    assert made.digest == unbroken
    assert made_twice(squares.notes) == set(), "only writing was tried again"
    assert "is made anew" not in caplog.text


def test_a_link_cut_for_a_minute_costs_a_lease(nodes, tmp_path, unbroken, monkeypatch):
    """The node's processes stand still, so that it neither answers nor ends; when they go on, the
    run has long been over and what they still write comes to nothing."""
    monkeypatch.setattr(cluster, "LEAST_LEASE", 5.0)
    squares = Squares(tmp_path / "notes", seconds=0.5, crowd=2)
    with Making(tmp_path / "runs", squares) as making:
        wait_for(lambda: begun(squares.notes))
        frozen = processes_of(next(iter(nodes.cluster.worker_nodes)))
        for process in frozen:
            process.suspend()
        cut_at = time.monotonic()
        made = making.ended(60)
    assert made.digest == unbroken
    time.sleep(max(0.0, 60 - (time.monotonic() - cut_at)))
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    for process in frozen:
        with contextlib.suppress(Exception):  # some of them Ray has ended
            process.resume()
    time.sleep(5)
    assert {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [made.folder.name]

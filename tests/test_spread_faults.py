"""Runs with workers beside others of their kind, through a mirror, and in a folder that becomes
read-only: the same bytes, made once, nothing left behind."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from counting import Server
from marking import Marked, marked
from spreading import Spread, numbered_parts, with_servers
from warm import Ended, Forks
from whole import Unbroken, one_line, unbroken

from bpo_data.llm.stub.answers import digest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ours() -> Iterator[Marked]:
    with marked() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(longest=0.1) as made:
        yield made


@pytest.fixture(scope="module")
def plain(
    server: Server, ours: Marked, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spread, Unbroken]:
    """A run that asks nobody, and what one process makes of it."""
    home = tmp_path_factory.mktemp("plain")
    made = Spread(server, Forks(home), home / "unbroken")
    return made, unbroken(made)


@pytest.fixture(scope="module")
def asking(
    server: Server, ours: Marked, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spread, Unbroken]:
    """One that pays for responses and scores."""
    home = tmp_path_factory.mktemp("asking")
    made = Spread(server, Forks(home), home / "unbroken", with_servers(server, "live"))
    return made, unbroken(made)


def all_right(ended: list[Ended]) -> Counter[str]:
    """How often each stage was made."""
    assert [one.status for one in ended] == [0] * len(ended), [one.err for one in ended]
    lines = [line.split()[:2] for one in ended for line in one.out.splitlines()]
    return Counter(stage for stage, verb in lines if verb == "made")


def test_two_runs_at_once_make_each_stage_once_and_pay_once(
    asking: tuple[Spread, Unbroken], ours: Marked, server: Server, tmp_path: Path
) -> None:
    alone, whole = asking
    runs = alone.at(tmp_path / "runs").over("processes")
    before = len(server.payloads)
    started = [runs.start(), runs.start()]
    made = all_right([one.wait() for one in started])
    assert made == Counter(whole.stages)
    assert runs.digests() == whole.digests
    assert Counter(map(digest, server.payloads[before:])) == Counter(whole.bodies)
    ours.wait()
    assert not [*runs.folder.glob("*.partial"), *runs.folder.rglob("*.writing*")]


def test_runs_at_once_that_share_a_mirror_fill_it_and_agree(
    plain: tuple[Spread, Unbroken], ours: Marked, tmp_path: Path
) -> None:
    """Two in one folder and one in another; then one that only has to fetch."""
    alone, whole = plain
    mirror = f"runtime.mirror=file://{tmp_path}/mirror"
    folders = [tmp_path / name for name in ("one", "one", "other", "third")]
    runs = [alone.with_more(mirror).at(folder).over("processes") for folder in folders]
    started = [one.start() for one in runs[:3]]
    made = all_right([one.wait() for one in started])
    assert set(made) == set(whole.stages)
    assert set(made.values()) <= {1, 2}, "no stage is made twice in a folder"
    assert not all_right([runs[3].start().wait()]), "all is there to be fetched"
    for one in runs:
        assert one.digests() == whole.digests
    ours.wait()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What opens a file below from now on finds a file system that takes none; what is open stays
    as it was, such as the lock by which the run holds its work."""
    command = ["mount", "--bind", "-o", "ro", str(folder), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_becomes_read_only_ends_the_run_in_one_line_and_costs_no_part(
    plain: tuple[Spread, Unbroken], ours: Marked, tmp_path: Path
) -> None:
    alone, whole = plain
    runs = alone.at(tmp_path / "runs").over("processes")
    started = runs.start()
    while not list(runs.folder.glob("gradients-*.partial/gradients-*.parquet")):
        assert not started.gone(), started.wait().err
        time.sleep(0.005)
    with read_only(runs.folder):
        begun = time.monotonic()
        told = one_line(started.wait())
        took = time.monotonic() - begun
        print(f"TOOK {took:.1f} s to end")
        assert took < whole.longest
        assert "Read-only file system" in told
        ours.wait()
        kept = numbered_parts(runs.folder)
        assert "Read-only file system" in one_line(runs.start().wait()), "and so does the next"
    ended = runs.finish()
    print(f"TOOK {ended.seconds:.1f} s to go on")
    assert ended.seconds < whole.longest
    assert kept.items() <= numbered_parts(runs.folder).items(), "parts that were done are kept"
    assert runs.digests() == whole.digests
    assert not [*runs.folder.glob("*.partial"), *runs.folder.rglob("*.writing*")]
    ours.wait()

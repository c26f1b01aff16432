"""Memory that the kernel refuses by killing: what was made stays, and more memory is enough."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import group_of
from helpers import TINY
from marking import Marked, marked
from spreading import ENGINES, numbered_parts
from warm import Ended, Forks
from whole import digests_in, one_line

pytestmark = pytest.mark.slow

EATEN, LITTLE, ENOUGH = 1_500, 1_200 * 2**20, 3_000 * 2**20
"""Megabytes that a part needs, and bytes of the group."""
HERE = f"sys.path.append({str(Path(__file__).parent)!r})\n"


@pytest.fixture
def ours() -> Iterator[Marked]:
    with marked() as made:
        yield made


@pytest.mark.parametrize("engine", ["processes", "local"])
def test_a_process_that_the_kernel_kills_for_memory_costs_its_part_alone(
    ours: Marked, tmp_path: Path, engine: str
) -> None:
    forks = Forks(tmp_path)

    def run(folder: Path, first: str = "", *more: str) -> Ended:
        kind = ("embed.kind=hungry:Hungry", f"embed.options.megabytes={EATEN}")
        words = ("stage=embed", f"runtime.folder={folder}", "runtime.device=cpu", *TINY, *kind)
        return forks.run(*words, *more, first=HERE + first)

    alone, runs = tmp_path / "alone", tmp_path / "runs"
    unbroken = run(alone)
    assert unbroken.status == 0
    longest = 60 + 3 * unbroken.seconds
    with group_of(LITTLE) as group:
        ended = run(runs, group.enter, *ENGINES[engine])
        print(f"TOOK {ended.seconds:.1f} s until the kernel had killed, bound {longest:.0f}")
        assert group.kills() == 1, ended.err
        assert ended.seconds < longest
        if engine == "local":
            assert ended.status == -signal.SIGKILL
        else:
            told = one_line(ended)
            assert "a worker process was killed, most often for want of memory" in told
            assert "run the same command again: parts that are done are kept" in told
        ours.wait()
        kept = numbered_parts(runs)
        assert kept, "parts that were done are there"
        group.limit(ENOUGH)
        ended = run(runs, group.enter, *ENGINES[engine])
        print(f"TOOK {ended.seconds:.1f} s to go on")
        assert ended.status == 0, ended.err
        assert ended.seconds < longest
        assert group.kills() == 1
    assert digests_in(runs) == digests_in(alone)
    ours.wait()

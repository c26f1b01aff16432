"""Every stage on a full disk, with little memory, stopped by a scheduler, beside another run or
with a clock that jumps: one clear line where it ends, the same bytes and one payment after."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from whole import Scene, one_line, scene_at

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene_at(tmp_path_factory.mktemp("scarcity")) as made:
        yield made


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """A file system for the test; call what is yielded to mount it anew with another option."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount here: {done.stderr.strip()}")
    try:
        yield (
            lambda option: (
                subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
                and None
            )
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_full_in_every_stage_is_one_line_and_costs_nothing(
    scene: Scene, tmp_path: Path
) -> None:
    """The room left is a random share of what the stage writes; checkpoints are written too."""
    chance = random.Random(0)
    before = len(scene.pipeline.server.payloads)
    met: Counter[str] = Counter()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "none") as again:
        disk = tmp_path / "disk"
        small = scene.at(disk / "runs")
        # A full disk is waited for while answers are under way; here for a moment.
        first = "import bpo_data.llm.till as till\ntill.STORE_PATIENCE = 0.5"
        more = ("sft.save_steps=9", "train.save_steps=1")
        for place, stage in enumerate(scene.whole.stages):
            asked = (*small.arguments(), f"stage={stage}", *more)
            needed = sum(
                path.stat().st_size
                for path in (scene.home / "unbroken").glob(f"{stage}-*/**/*")
                if path.is_file()
            )
            for _ in range(3):
                room = int(needed * chance.uniform(0, 0.9))
                again(f"size={shutil.disk_usage(disk).used + room}")
                ended = scene.pipeline.forks.run(*asked, first=first)
                if ended.status:
                    met[stage] += 1
                    told = one_line(ended)
                    assert "No space left on device" in told or "is full" in told or "full" in told
                    assert "Traceback" not in ended.err
            again("size=64m")
            ended = scene.pipeline.forks.run(*asked)
            assert ended.status == 0, ended.err
            assert len(small.manifests()) == place + 1
        assert small.digests() == scene.whole.digests
        assert scene.sent(before) == Counter(scene.whole.bodies), "each is asked and paid once"
        assert set(met) == set(scene.whole.stages), met


def test_a_read_only_folder_of_finished_work_serves_and_more_work_is_one_line(
    scene: Scene, tmp_path: Path
) -> None:
    shutil.copytree(scene.home / "unbroken", tmp_path / "runs")
    runs, forks = tmp_path / "runs", scene.pipeline.forks
    with mounted(runs, "--bind", str(runs)) as again:
        again("ro,bind")
        asked = scene.at(runs).arguments()
        whole = forks.run(*asked)
        assert whole.status == 0, whole.err
        verbs = [line.split()[1] for line in whole.out.splitlines()[:-1]]
        assert verbs == ["kept"] * len(scene.whole.stages)
        for word in ("stage=status", "plan=true", "stage=clean"):
            ended = forks.run(*asked, word)
            assert ended.status == 0, ended.err
        assert f"{len(scene.whole.bodies)} requests so far" in forks.run(*asked, "stage=status").out
        assert "Read-only file system" in one_line(forks.run(*asked, "allocate.kind=uniform"))
        # A store that cannot be written serves what it holds, to a run elsewhere.
        store = f"runtime.store={runs}/requests.sqlite"
        elsewhere = scene.at(tmp_path / "other")
        assert forks.run(*elsewhere.arguments(), store).status == 0
        assert elsewhere.digests() == scene.whole.digests
        told = one_line(forks.run(*elsewhere.arguments(), store, "augment.responses=6"))
        assert "is on a read-only file system and lacks answers" in told


LITTLE_MEMORY = """
import resource
import bpo_data.shelf as shelf
make = shelf.Shelf.make

def limited(self, work, *rest):
    if work.stage == {stage!r}:
        size = resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (size + {more}, -1))
    return make(self, work, *rest)

shelf.Shelf.make = limited
"""


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("embed", 0),
        ("sft", 10_000_000),  # with 20 MB a thread of a library meets the limit, and aborts
        ("augment", 300_000),
        ("gradients", 0),
        ("train", 10_000_000),
    ],
)
def test_little_memory_is_one_line_with_the_way_out(
    scene: Scene, tmp_path: Path, stage: str, more: int
) -> None:
    place = scene.whole.stages.index(stage)
    poor = scene.at(tmp_path / "runs")
    for name in scene.whole.digests:
        if scene.whole.stages.index(name.partition("-")[0]) < place:
            shutil.copytree(scene.home / "unbroken" / name, poor.folder / name)
    kept = poor.digests()
    told = one_line(poor.start(LITTLE_MEMORY.format(stage=stage, more=more)).wait())
    assert f"{stage}: this machine's memory was not enough (" in told
    assert "and run it again; what is finished is kept" in told
    assert poor.digests() == kept, "what was finished stays"
    poor.finish()
    assert poor.digests() == scene.whole.digests

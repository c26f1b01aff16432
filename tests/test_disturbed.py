"""Every stage stopped by a scheduler, beside other runs, with a clock that jumps, and finished work
that changes on disk: the same bytes and one payment, or a line that names the file."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole import RUNNING, Scene, one_line, scene_at

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene_at(tmp_path_factory.mktemp("disturbed")) as made:
        yield made


def test_sigterm_in_every_stage_is_a_clean_stop(scene: Scene, tmp_path: Path) -> None:
    chance = random.Random(0)
    stopped, server = scene.at(tmp_path / "runs"), scene.pipeline.server
    before = len(server.payloads)
    stops = 0
    for place, seconds in enumerate(scene.whole.seconds):
        begun = len(stopped.manifests())
        if begun > place:
            continue
        started = stopped.start()
        assert started.saw(RUNNING, place - begun + 1)
        time.sleep(chance.uniform(0, seconds))
        if not started.gone():
            started.send(signal.SIGTERM)
        ended = started.wait()
        if "\ndataset " in ended.out:  # the signal came when all was done and said
            break
        assert ended.status == 130, ended.err
        assert "Traceback" not in ended.err
        stops += 1
        assert "the same command goes on from here" in ended.err
    stopped.finish()
    assert stops >= len(scene.whole.stages) // 2, "it ended by itself too often"
    assert stopped.digests() == scene.whole.digests
    assert scene.sent(before) == Counter(scene.whole.bodies), "each is asked and paid once"


def test_two_runs_at_once_share_stages_and_answers(scene: Scene, tmp_path: Path) -> None:
    """The same command twice, and beside them one that needs some of its stages."""
    runs = scene.at(tmp_path / "runs")
    before = len(scene.pipeline.server.payloads)
    started = [
        runs.start(),
        runs.start(),
        runs.forks.start(*runs.arguments(), "stage=score", "allocate.kind=uniform"),
    ]
    ended = [one.wait() for one in started]
    assert [one.status for one in ended] == [0, 0, 0], [one.err for one in ended]
    verbs = Counter(tuple(line.split()[:2]) for one in ended for line in one.out.splitlines())
    assert all(verbs[stage, "made"] == 1 for stage in scene.whole.stages), verbs
    assert any(" waiting: process " in one.err for one in ended)
    assert runs.digests() == scene.whole.digests
    assert scene.sent(before) == Counter(scene.whole.bodies), "each is asked and paid once"


WILD_CLOCK = """
import random, time
true, chance = time.time, random.Random(0)
time.time = lambda: true() + chance.choice((-40, -1, 0, 1, 40)) * 86_400
"""


def test_a_clock_that_jumps_by_days_changes_and_delays_nothing(
    scene: Scene, tmp_path: Path
) -> None:
    jumping = scene.at(tmp_path / "runs")
    before = len(scene.pipeline.server.payloads)
    limited = (f"budget.requests={len(scene.whole.bodies)}", "runtime.requests_per_minute=60000")
    ended = scene.pipeline.forks.run(*jumping.arguments(), *limited, first=WILD_CLOCK)
    assert ended.status == 0, ended.err
    assert jumping.digests() == scene.whole.digests
    assert scene.sent(before) == Counter(scene.whole.bodies)
    assert ended.seconds < scene.whole.longest


def test_a_flipped_byte_anywhere_in_finished_work_is_named_or_harmless(
    scene: Scene, tmp_path: Path
) -> None:
    """Each file of each artifact in turn, with the stages that read it to be made anew."""
    chance = random.Random(0)
    silent = []
    for source in sorted((scene.home / "unbroken").glob("*-*/manifest.json")):
        stage = source.parent.name.partition("-")[0]
        later = scene.whole.stages[scene.whole.stages.index(stage) + 1 :]
        for name in json.loads(source.read_text())["files"]:
            runs = tmp_path / "runs"
            for made in scene.whole.digests:
                if made.partition("-")[0] not in later:
                    shutil.copytree(scene.home / "unbroken" / made, runs / made)
            shutil.copy(scene.home / "unbroken" / "requests.sqlite", runs)
            path = runs / source.parent.name / name
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            ended = scene.at(runs).start().wait()
            if ended.status:
                told = one_line(ended)
                assert str(path) in told, told
                assert "is not what was written" in told, told
                assert "Remove the folder" in told, told
            else:  # nobody reads it: it is for people, or for other programs
                silent.append(f"{stage}/{name}")
                made_now = scene.at(runs).digests()
                assert made_now == scene.whole.digests
            shutil.rmtree(runs)
    print("\n".join(silent))
    assert not [name for name in silent if "/model/" in name], "a model is read"

"""A run of every stage killed at 200 random moments: the same bytes in the end, paid once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting import Server
from killing import Killer, Toll
from warm import Forks
from whole import Pipeline, Unbroken, unbroken

pytestmark = pytest.mark.slow

KILLS = 200
WAYS = ("clock", "event", "torn")
ROUNDS = ("rounds=2", "augment.client=local", "augment.model=")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Forks]]:
    with Server() as server:
        yield server, Forks(tmp_path_factory.mktemp("words"))


def kill_throughout(
    scene: tuple[Server, Forks], folder: Path, whole: Unbroken, seed: int, *more: str
) -> Toll:
    """Kill a run in each of its steps three times, in as many ways, then let it end."""
    killer = Killer(Pipeline(*scene, folder, more), whole, seed)
    for place in range(len(whole.stages)):
        for way in killer.chance.sample(WAYS, len(WAYS)):
            killer.strike(place, way)
    return killer.end()


def told(tolls: list[Toll], bodies: int) -> str:
    """A table of stage and way, and what the server counted."""
    kills = sum((toll.kills for toll in tolls), Counter[tuple[str, str]]())
    lines = [f"{'stage':<10}" + "".join(f"{way:>8}" for way in WAYS)]
    for stage in dict.fromkeys(stage for stage, _ in kills):
        lines.append(f"{stage:<10}" + "".join(f"{kills[stage, way]:>8}" for way in WAYS))
    lost = [age for toll in tolls for age in toll.lost]
    lines.append(
        f"{kills.total()} kills of {len(tolls)} runs with {bodies} requests each; "
        f"{sum(toll.sent for toll in tolls):,} sent, {sum(toll.under_way for toll in tolls)} under "
        f"way at a kill; {len(lost)} answers not kept, the oldest came "
        f"{1000 * max(lost, default=0):.0f} ms before"
    )
    return "\n".join(lines)


def test_a_run_killed_at_200_moments_ends_like_an_unbroken_one(
    scene: tuple[Server, Forks], tmp_path: Path
) -> None:
    whole = unbroken(Pipeline(*scene, tmp_path / "unbroken"))
    tolls: list[Toll] = []
    while sum(toll.kills.total() for toll in tolls) < KILLS:
        number = len(tolls)
        # Checkpoints change no row: every other run is killed among them too.
        more = ("sft.save_steps=9", "train.save_steps=1") if number % 2 else ()
        tolls.append(kill_throughout(scene, tmp_path / str(number), whole, number, *more))
        print(told(tolls, len(whole.bodies)), file=sys.stderr, flush=True)


def test_online_rounds_killed_in_every_step_end_like_unbroken_ones(
    scene: tuple[Server, Forks], tmp_path: Path
) -> None:
    whole = unbroken(Pipeline(*scene, tmp_path / "unbroken", ROUNDS))
    toll = kill_throughout(scene, tmp_path / "killed", whole, 0, *ROUNDS)
    print(told([toll], len(whole.bodies)), file=sys.stderr, flush=True)

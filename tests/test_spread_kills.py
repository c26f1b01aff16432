"""The command killed while its workers work, on every engine and with batches under way: the same
bytes in the end, nothing paid twice, no process and no folder left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle

import pytest
from counting import Server
from spreading import Marked, Spread, Spreading, marked, with_models, with_servers
from warm import Forks
from whole import Unbroken, unbroken

from bpo_data.llm.stub import BatchPlan

pytestmark = pytest.mark.slow

WAYS = ("clock", "group", "event")
SPREAD = ("embed", "augment", "score", "gradients", "cluster")
"""Stages that work in parts."""
RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(longest=0.1) as made:
        made.batches.plan = BatchPlan(seconds=0.5)
        yield made


@pytest.fixture(scope="module")
def ours() -> Iterator[Marked]:
    with marked() as made:
        yield made


@pytest.fixture(scope="module")
def worlds(
    server: Server, ours: Marked, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Spread, Unbroken]]:
    """Each with what one process makes of it."""
    home = tmp_path_factory.mktemp("spread")
    settings = {
        "models": with_models(home),
        "servers": with_servers(server, "live"),
        "batches": with_servers(server, "batch"),
    }
    made = {name: Spread(server, Forks(home), home / name, more) for name, more in settings.items()}
    return {name: (one, unbroken(one)) for name, one in made.items()}


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.mark.parametrize("engine", ["processes", RAY])
def test_a_command_killed_while_its_workers_work_ends_like_an_unbroken_one(
    worlds: dict[str, tuple[Spread, Unbroken]], ours: Marked, engine: str, kills: int
) -> None:
    whole: dict[str, Unbroken] = {}
    killed = seen = 0
    for number, (world, (local, alone)) in enumerate(cycle(worlds.items())):
        if killed >= kills:
            break
        spread = local.over(engine)
        if world not in whole:
            whole[world] = unbroken(spread)
            assert whole[world].digests == alone.digests, "the engine changes bytes"
        folder = spread.folder.with_name(f"{spread.folder.name}-{number}")
        killer = Spreading(spread.at(folder), whole[world], number, ours)
        killer.asked_again = world != "batches"
        for place in [alone.stages.index(stage) for stage in SPREAD]:
            for way in killer.chance.sample(WAYS, len(WAYS)):
                killer.strike(place, way)
        killed += killer.end().kills.total()
        seen += killer.workers
        print(told(killer), file=sys.stderr, flush=True)
    assert seen, "no worker was ever there to be left behind"


def told(killer: Spreading) -> str:
    """What was killed and what was left, in a line."""
    toll = killer.toll
    kills = ", ".join(f"{stage} {way} {count}" for (stage, way), count in toll.kills.items())
    return (
        f"{killer.pipeline.folder.name}: {kills}; {len(killer.whole.bodies)} requests, "
        f"{toll.sent} sent, {toll.under_way} under way at a kill; at most {killer.workers} "
        f"processes beside the command, gone after at most "
        f"{max(killer.gone):.1f} s, the last run took {killer.last:.1f} s"
    )

"""The command killed while its workers work, on every engine and with batches under way: the same
bytes in the end, nothing paid twice, no process and no folder left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle, product
from operator import itemgetter

import pytest
from counting import Server
from marking import Marked, marked
from spreading import Spread, Spreading, with_models, with_servers
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


@dataclass
class World:
    """A pipeline, and what unbroken runs of it leave."""

    spread: Spread
    unbroken: dict[str, Unbroken] = field(default_factory=dict)
    """By engine."""

    def whole(self, engine: str) -> Unbroken:
        """What the engine makes of it, which is what one process makes."""
        for name in ("local", engine):
            if name not in self.unbroken:
                self.unbroken[name] = unbroken(self.spread.over(name))
        assert self.unbroken[engine].digests == self.unbroken["local"].digests
        return self.unbroken[engine]


@pytest.fixture(scope="module")
def worlds(
    server: Server, ours: Marked, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, World]:
    home = tmp_path_factory.mktemp("spread")
    settings = {
        "servers": with_servers(server, "live"),
        "models": with_models(home),
        "batches": with_servers(server, "batch"),
    }
    return {
        name: World(Spread(server, Forks(home), home / name, more))
        for name, more in settings.items()
    }


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.mark.parametrize("engine", ["processes", RAY])
def test_a_command_killed_while_its_workers_work_ends_like_an_unbroken_one(
    worlds: dict[str, World], ours: Marked, engine: str, kills: int
) -> None:
    killed = seen = 0
    for number, (name, world) in enumerate(cycle(worlds.items())):
        whole = world.whole(engine)
        spread = world.spread.over(f"{engine}-{number}")
        killer = Spreading(spread, whole, number, ours)
        killer.asked_again = name != "batches"
        strikes = list(product([whole.stages.index(stage) for stage in SPREAD], WAYS))
        killer.chance.shuffle(strikes)
        for place, way in sorted(strikes[: kills - killed], key=itemgetter(0)):
            killer.strike(place, way)
        killed += killer.end().kills.total()
        seen += killer.workers
        print(told(killer), file=sys.stderr, flush=True)
        if killed >= kills:
            break
    assert seen, "no worker was ever there to be left behind"


def told(killer: Spreading) -> str:
    """What was killed and what was left, in a line."""
    toll = killer.toll
    kills = ", ".join(f"{stage} {way} {count}" for (stage, way), count in toll.kills.items())
    return (
        f"{killer.pipeline.folder.name}: {kills}; {len(killer.whole.bodies)} requests, "
        f"{toll.sent} sent, {toll.under_way} under way at a kill; at most {killer.workers} "
        f"processes beside the command, gone after at most "
        f"{max(killer.gone, default=0):.1f} s, the last run took {killer.last:.1f} s, all gone "
        f"{killer.agents:.1f} s after it"
    )

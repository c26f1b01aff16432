"""Pipelines whose stages spread over workers, killed while they do, and what must be gone after."""

from __future__ import annotations

import fcntl
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from counting import Server
from helpers import TINY
from killing import AT_EVENT, Killer, Toll
from marking import Marked
from tiny_models import save_reward_model
from warm import Started
from whole import RUNNING, Pipeline, Unbroken

from bpo_data.artifacts import RESUMED
from bpo_data.policy import save_policy
from bpo_data.scratch import Scratch, make_policy
from bpo_data.shelf import PARTIAL

QUICK = """
import tempfile
from functools import partial
from bpo_data.llm import desk, senders
from bpo_data.llm.batch_wire import Pace
tempfile.tempdir = None
pace = Pace(first_wait=0.05, longest_wait=0.2, settling=0.3)
desk.complete_batch = partial(desk.complete_batch, pace=pace)
senders.WORTH = 1
"""
"""Batches that are looked at more often than once in seconds, workers that send however few
requests there are, and a folder for temporary files."""
SEMAPHORES = Path("/dev/shm")
ENGINES: dict[str, tuple[str, ...]] = {
    "local": (),
    "processes": ("runtime.engine=processes", "runtime.processes=2"),
    "ray": ("runtime.engine=ray", "runtime.processes=2"),
}


@dataclass
class Spread(Pipeline):
    """The pipeline up to the clusters, with workers; what it does is in ``more``."""

    def arguments(self) -> list[str]:
        where = f"runtime.folder={self.folder}", "runtime.device=cpu"
        return ["stage=cluster", *where, *TINY, "cluster.fit_on=60", *self.more]

    def start(self, first: str = "") -> Started:
        return self.forks.start(*self.arguments(), first=QUICK + first, session=True)

    def at(self, folder: Path) -> Spread:
        return replace(self, folder=folder)

    def with_more(self, *more: str) -> Spread:
        return replace(self, more=(*self.more, *more))

    def over(self, name: str) -> Spread:
        """The same with another engine, with which ``name`` begins, in another folder."""
        folder = self.folder.with_name(f"{self.folder.name}-{name}")
        return replace(self, folder=folder, more=(*self.more, *ENGINES[name.partition("-")[0]]))


def with_models(home: Path) -> tuple[str, ...]:
    """Settings with which five stages have a model, or centres, in each worker."""
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer 17"}]
    policy = make_policy([talk], Scratch(width=16, layers=1, heads=2, hidden=16), 0)
    save_policy(policy, home / "encoder")
    judge = save_reward_model(home / "judge")
    return (
        *("embed.kind=encoder", f"embed.options.model={home / 'encoder'}", "embed.options.batch=1"),
        *("score.kind=reward_model", f"score.options.model={judge}", "score.options.batch=1"),
    )


def with_servers(server: Server, mode: str) -> tuple[str, ...]:
    """Settings with which responses and their scores are paid for."""
    return (
        *("augment.client=openai", "augment.model=writer", f"augment.base_url={server.url}"),
        *("score.kind=rubric", "score.options.model=judge"),
        *(f"score.options.base_url={server.url}", f"augment.mode={mode}", f"score.mode={mode}"),
    )


class Spreading(Killer):
    """Kills the command alone or with its group, while its workers work."""

    def __init__(self, pipeline: Spread, whole: Unbroken, seed: int, marked: Marked) -> None:
        super().__init__(pipeline, whole, seed)
        self.marked = marked
        self.parts: dict[str, int] = {}
        """Finished ones, and when they were written."""
        self.workers = 0
        """Processes that a command had started when it was killed, at most."""
        self.gone: list[float] = []
        """Seconds from a kill until none of them was left, but for Ray's agents."""
        self.agents = 0.0
        """Seconds from the end of the last run until these were gone too."""

    def strike(self, place: int, way: str) -> None:
        begun = len(self.pipeline.manifests())
        if begun > place:
            return
        stage, server = self.whole.stages[place], self.server
        arrived, answers = len(server.payloads), len(server.heard.answers)
        note = self.pipeline.forks.folder / "events"
        note.write_text("")
        number = self.chance.randint(1, self.events.get(stage, 12)) if way == "event" else 0
        started = self.pipeline.start(AT_EVENT.format(number=number, stage=stage, note=str(note)))
        if way == "event":
            started.saw(RUNNING, place - begun + 2)
        elif started.saw(RUNNING, place - begun + 1):
            wait = self.chance.uniform(0, self.whole.seconds[place] + 0.02)
            started.saw(RUNNING, place - begun + 2, wait)  # not far into the next one
        self.workers = max(self.workers, len(self.marked.processes()))
        alive = not started.gone()
        if alive and way == "group":
            started.end_group()
        elif alive:
            started.send(signal.SIGKILL)
        moment = time.monotonic()
        ended = started.wait()
        self.events[stage] = max(1, self.events.get(stage, 0), note.read_text().count("\n"))
        assert ended.status in (0, -signal.SIGKILL), ended.err
        if ended.status:
            found = [line.split()[0] for line in ended.err.splitlines() if RUNNING in line]
            self.toll.kills[found[-1] if found else "before", way] += 1
        # What workers of a killed command ask for counts as its own. Where they ask for nothing,
        # the next command may well begin beside them.
        quiet = bool(self.whole.bodies) or self.chance.random() < 0.5
        if quiet:
            self.gone.append(self.marked.wait(agents=False))
            self.clear(started.process.pid, whole_group=way == "group")
        self.look(moment, arrived, answers)
        self.keep(quiet)

    def clear(self, pid: int, *, whole_group: bool) -> None:
        """Remove the semaphores of Python's pool of processes. A process that is there for that,
        ``multiprocessing.resource_tracker``, does so unless it was killed with the group."""
        left = list(SEMAPHORES.glob(f"sem.*-{pid}-*"))
        assert whole_group or not left, left
        for path in left:
            path.unlink()

    def keep(self, quiet: bool) -> None:
        """Parts that were done stay as they are."""
        now = numbered_parts(self.pipeline.folder)
        lost = {
            name: when
            for name, when in self.parts.items()
            if now.get(name) != when and not self.finished(name)
        }
        assert not lost, "parts that were done are gone, or made again"
        if quiet:
            self.parts = now

    def finished(self, name: str) -> bool:
        """Whether a part waited for a table that is finished now."""
        artifact = name.partition("/")[0]
        return RESUMED in name and (self.pipeline.folder / artifact).exists()

    def end(self) -> Toll:
        toll = super().end()
        self.keep(quiet=True)
        assert self.last < self.whole.longest
        self.agents = self.marked.wait()
        left = self.marked.files()
        assert not left, left
        for path in (self.pipeline.folder / ".locks").iterdir():
            with open(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
        return toll


def numbered_parts(folder: Path) -> dict[str, int]:
    """Parts of tables, finished or in the making, and when each was written."""
    return {
        path.relative_to(folder).as_posix().replace(PARTIAL, ""): when
        for path in folder.glob("*-*/**/*-[0-9][0-9][0-9][0-9][0-9].parquet")
        if (when := written(path))
    }


def written(path: Path) -> int:
    """When, in nanoseconds; 0 for what is gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0

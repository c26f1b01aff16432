"""A pipeline of every stage with paid requests in it, and what an unbroken run of it leaves."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from counting import Server
from helpers import TINY
from warm import Ended, Forks, Started

from bpo_data.llm.stub.answers import digest

RUNNING = " running: "
"""Stands in the line with which a stage begins."""


@dataclass
class Pipeline:
    """A pipeline of every stage with paid requests in it, in a folder of its own."""

    server: Server
    forks: Forks
    folder: Path
    more: tuple[str, ...] = ()
    """Arguments beside the common ones."""

    def arguments(self) -> list[str]:
        url = self.server.url
        writer = (
            *("augment.client=openai", "augment.model=writer", f"augment.base_url={url}"),
            *("score.kind=rubric", "score.options.model=judge", f"score.options.base_url={url}"),
        )
        return ["stage=all", f"runtime.folder={self.folder}", *TINY, *writer, *self.more]

    def start(self, first: str = "") -> Started:
        return self.forks.start(*self.arguments(), first=first)

    def finish(self) -> Ended:
        """A run that nobody ends."""
        done = self.start().wait()
        assert done.status == 0, done.err
        return done

    def manifests(self) -> dict[str, dict[str, object]]:
        return manifests_in(self.folder)

    def digests(self) -> dict[str, object]:
        return digests_in(self.folder)

    def stored(self) -> set[str]:
        """Digests of the bodies whose answers are in the store, read from a copy: a run that comes
        after a kill has to recover the file by itself."""
        with TemporaryDirectory() as place:
            for name in ("requests.sqlite", "requests.sqlite-wal"):
                if (self.folder / name).exists():
                    shutil.copy(self.folder / name, place)
            copy = Path(place) / "requests.sqlite"
            if not copy.exists():
                return set()
            with closing(sqlite3.connect(copy)) as connection:
                try:
                    rows = connection.execute("SELECT request FROM replies").fetchall()
                except sqlite3.OperationalError:  # killed before the table was made
                    return set()
        return {digest(json.loads(request)["payload"]) for (request,) in rows}


def manifests_in(folder: Path) -> dict[str, dict[str, object]]:
    """Folder name -> manifest."""
    found = sorted(folder.glob("*/manifest.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def digests_in(folder: Path) -> dict[str, object]:
    """Folder name -> content digest."""
    return {name: made["digest"] for name, made in manifests_in(folder).items()}


@dataclass
class Unbroken:
    """What a run that nobody ended left, and how long its stages took."""

    digests: dict[str, object]
    bodies: set[str]
    """Digests of what it sent."""
    stages: list[str]
    """Of each step, in order."""
    seconds: list[float]
    largest: list[int]
    """Bytes of each step's largest file."""

    @property
    def longest(self) -> float:
        """Seconds that a run may take with whatever happens to it, on a machine that others use."""
        return 60 + 3 * sum(self.seconds)


def unbroken(pipeline: Pipeline) -> Unbroken:
    """Run it, uninterrupted."""
    before = len(pipeline.server.payloads)
    done = pipeline.finish()
    steps = [line.split()[0] for line in done.err.splitlines() if RUNNING in line]
    made = [Path(line.split()[-1]) for line in done.out.splitlines() if " made  " in line]
    assert [path.name.partition("-")[0] for path in made] == steps
    bodies = [digest(one) for one in pipeline.server.payloads[before:]]
    assert len(bodies) == len(set(bodies)), "each request is another"
    manifests = pipeline.manifests()
    sizes = [[one.stat().st_size for one in path.rglob("*") if one.is_file()] for path in made]
    return Unbroken(
        pipeline.digests(),
        set(bodies),
        steps,
        [float(str(manifests[path.name]["seconds"])) for path in made],
        [max(one) for one in sizes],
    )


@dataclass
class Scene:
    pipeline: Pipeline
    whole: Unbroken
    home: Path

    def at(self, folder: Path) -> Pipeline:
        return replace(self.pipeline, folder=folder)

    def sent(self, before: int) -> Counter[str]:
        """How often each body came since."""
        return Counter(map(digest, self.pipeline.server.payloads[before:]))


@contextmanager
def scene_at(home: Path) -> Iterator[Scene]:
    """An unbroken run in ``home/unbroken``, and the server and the process behind it."""
    with Server(longest=0.06) as server:
        pipeline = Pipeline(server, Forks(home), home / "unbroken")
        yield Scene(pipeline, unbroken(pipeline), home)


def one_line(ended: Ended) -> str:
    """What a run that ended with status 2 told its user."""
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err
    (told,) = [line for line in ended.err.splitlines() if line.startswith("bpo_data: ")]
    return told

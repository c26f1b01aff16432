"""A real run ended at random moments: no answer that came is lost, none is asked for again.

The command line is killed (SIGKILL) or stopped (SIGTERM, Ctrl-C) over and over, against a server
that counts, and has to leave in the end what an unbroken run leaves.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from counting import SLACK, Server
from forking import Forked
from helpers import start

from bpo_data.llm.stub.answers import digest

AT_ONCE = 8
RESPONSES = 4
BEFORE = ("load-", "embed-", "select-", "sft-")
"""Folders of what is made before the first request."""


@dataclass
class Scene:
    """A folder of runs in which all is made that comes before the first request."""

    server: Server
    home: Path
    bodies: set[str]
    """Digests of what an unbroken run sends."""

    runs: str = "unbroken"

    def __post_init__(self) -> None:
        self.folder = self.home / self.runs
        if not self.folder.exists():
            for made in (self.home / "unbroken").iterdir():
                if made.name.startswith(BEFORE):
                    shutil.copytree(made, self.folder / made.name)

    def start(self, at_once: int = AT_ONCE) -> Forked:
        url = self.server.url
        return start(
            "stage=score", "recipe=own_data", f"load.path={self.home}/prompts.jsonl",
            f"runtime.folder={self.folder}", f"runtime.concurrency={at_once}",
            "load.test_share=0.1", "select.share=1",
            "sft.kind=given", f"sft.model={self.home}/policy",
            "augment.client=openai", "augment.model=writer", f"augment.responses={RESPONSES}",
            f"augment.base_url={url}",
            "score.kind=rubric", "score.options.model=judge", f"score.options.base_url={url}",
        )  # fmt: skip

    def finish(self) -> None:
        """A run that nobody ends."""
        with self.start(4 * AT_ONCE) as process:
            _, error = process.communicate()
            assert process.returncode == 0, error

    def digests(self) -> dict[str, str]:
        """Stage -> content digest."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*/manifest.json")]
        return {manifest["stage"]: manifest["digest"] for manifest in found}

    def ask_store(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.folder / "requests.sqlite")) as connection:
            return connection.execute(query).fetchall()

    def stored(self) -> Counter[str]:
        """Digests of the bodies whose answers are in the store."""
        if not (self.folder / "requests.sqlite").exists():
            return Counter()
        rows = self.ask_store("SELECT request FROM replies")
        return Counter(digest(json.loads(str(request))["payload"]) for (request,) in rows)


@contextmanager
def scene(home: Path, questions: int) -> Iterator[Scene]:
    """What an unbroken run with so many questions made, and the server that it asked."""
    from bpo_data.policy import save_policy
    from bpo_data.scratch import Scratch, make_policy

    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer 17"}]
    policy = make_policy([talk], Scratch(width=16, layers=1, heads=2, hidden=16), 0)
    save_policy(policy, home / "policy")
    lines = (json.dumps({"prompt": f"question {number}?"}) for number in range(questions))
    (home / "prompts.jsonl").write_text("\n".join(lines))
    (home / "unbroken").mkdir()
    with pytest.MonkeyPatch.context() as patch, Server() as server:
        patch.setenv("NO_PROXY", "127.0.0.1")
        first = Scene(server, home, set())
        first.finish()
        first.bodies.update(map(digest, server.payloads))
        assert len(first.bodies) == len(server.payloads), "each request is another"
        yield first


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("small"), questions=40) as made:
        yield made


@dataclass
class Ending:
    """What the server and the store know of a run that was ended."""

    status: int
    sent: Counter[str] = field(repr=False)
    """Bodies that arrived."""

    answered: dict[str, float] = field(repr=False)
    """Bodies answered, and the seconds from the last byte of the answer to the ending."""

    words: str = ""
    """What the run wrote to stderr."""


def ended(scene: Scene, number: signal.Signals, chance: random.Random) -> Ending:
    """Start a run and send it a signal: now and then at any moment, mostly while it asks."""
    server = scene.server
    arrived, answers = len(server.payloads), len(server.heard.answers)
    process = scene.start()
    if number == signal.SIGKILL and chance.random() < 0.1:
        time.sleep(chance.uniform(0, 1))
    else:
        while len(server.payloads) == arrived:
            assert process.poll() is None, "it ended by itself: the test needs more questions"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.7))
    assert process.poll() is None, "it ended by itself: the test needs more questions"
    moment = time.monotonic()
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    while server.in_flight or server.counts.closing:
        time.sleep(0.001)
    return Ending(
        process.returncode,
        Counter(map(digest, server.payloads[arrived:])),
        {body: moment - seconds for seconds, body in server.heard.answers[answers:]},
        words,
    )


def kill_and_finish(unbroken: Scene, kills: int) -> str:
    """Kill a run so often, let it end, and compare; a line of figures."""
    scene = replace(unbroken, runs="killed")
    server, bodies = scene.server, scene.bodies
    arrived, answers = len(server.payloads), len(server.heard.answers)
    chance = random.Random(0)
    kept: set[str] = set()
    lost: list[float] = []
    under_way = working = 0
    for _ in range(kills):
        ending = ended(scene, signal.SIGKILL, chance)
        assert ending.status == -signal.SIGKILL
        assert not kept & ending.sent.keys(), "an answer that was in the store is asked for again"
        stored = scene.stored()
        assert kept <= stored.keys(), "an answer left the store"
        kept = set(stored)
        lost += [age for body, age in ending.answered.items() if body not in kept]
        under_way += len(ending.sent) - sum(age > SLACK for age in ending.answered.values())
        working += bool(ending.sent)
    assert max(lost, default=0) < SLACK, f"an answer of {max(lost):.3f} s before the kill is lost"
    scene.finish()
    asked = Counter(map(digest, server.payloads[arrived:]))
    paid = Counter(body for _, body in server.heard.answers[answers:])
    assert asked.keys() == paid.keys() == scene.stored().keys() == bodies
    assert paid.total() - len(paid) == len(lost), "only what was lost is answered again"
    assert asked.total() <= len(bodies) + under_way, "only what was under way is sent again"
    assert scene.digests() == unbroken.digests()
    ((on_account, attempts),) = scene.ask_store(
        "SELECT (SELECT sum(requests) FROM accounts), (SELECT count(*) FROM attempts)"
    )
    assert on_account == attempts
    assert on_account >= asked.total(), "the account counts all that was sent"
    before = [age for age in lost if age > 0]
    return (
        f"{kills} kills, {working} of them while it asked: {len(bodies)} requests, "
        f"{asked.total()} sent ({under_way} under way at a kill), {on_account} on the account, "
        f"{paid.total()} answered. Answers lost: {len(before)} written before the kill (oldest "
        f"{1000 * max(before, default=0):.1f} ms), {len(lost) - len(before)} after it"
    )


def test_a_run_killed_at_random_moments_loses_nothing_and_pays_nothing_twice(small: Scene) -> None:
    print(kill_and_finish(small, kills=5))


@pytest.mark.slow
def test_a_run_killed_50_times_loses_nothing_and_pays_nothing_twice(tmp_path: Path) -> None:
    with scene(tmp_path, questions=400) as unbroken:
        print(kill_and_finish(unbroken, kills=50), file=sys.stderr)


def stop_and_finish(unbroken: Scene, stops: int) -> None:
    """Stop a run so often by SIGTERM and Ctrl-C, let it end, and compare."""
    scene = replace(unbroken, runs="stopped")
    server, bodies = scene.server, scene.bodies
    arrived, answers = len(server.payloads), len(server.heard.answers)
    chance = random.Random(1)
    for turn in range(stops):
        before = scene.stored()
        ending = ended(scene, (signal.SIGTERM, signal.SIGINT)[turn % 2], chance)
        assert ending.status == 130
        assert "the same command goes on from here" in ending.words
        assert "Traceback" not in ending.words
        came = Counter(ending.answered.keys())
        assert ending.sent == came, "what was under way is waited for"
        assert scene.stored() - before == came, "every answer that came is in the store"
    scene.finish()
    asked = Counter(map(digest, server.payloads[arrived:]))
    paid = Counter(body for _, body in server.heard.answers[answers:])
    assert asked == paid == scene.stored() == Counter(bodies), "each is asked and paid once"
    assert scene.digests() == unbroken.digests()
    ((on_account,),) = scene.ask_store("SELECT sum(requests) FROM accounts")
    assert on_account == len(bodies), "the account counts what was sent, and nothing else"


def test_a_run_stopped_by_a_signal_waits_for_what_is_under_way(small: Scene) -> None:
    stop_and_finish(small, stops=2)


@pytest.mark.slow
def test_a_run_stopped_20_times_asks_each_request_once(tmp_path: Path) -> None:
    with scene(tmp_path, questions=160) as unbroken:
        stop_and_finish(unbroken, stops=20)

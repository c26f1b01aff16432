"""Ways to end a run at a random moment, and what has to hold after each."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from whole import RUNNING, Pipeline, Unbroken

from bpo_data.llm.stub.answers import digest

COUNTED = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "open")

AT_EVENT = f"""
import os, signal, sys
left = [{{number}}]

def look(event, args):
    if event not in {COUNTED} or "/{{stage}}-" not in str(args[0]):
        return
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    left[0] -= 1
    if left[0] < 0:
        with open({{note!r}}, "a") as file:
            file.write(event + "\\n")
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(look)
"""
"""Ends the run right before the n-th change that Python makes to a stage's folders."""

TORN = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""
"""The kernel ends the run within the first write that would make any file larger than so much: what
fits is on disk, whichever library writes."""


@dataclass
class Toll:
    """What the kills of one folder came to."""

    kept: set[str] = field(default_factory=set, repr=False)
    """Bodies whose answers have been seen in the store."""
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By stage and way."""
    lost: list[float] = field(default_factory=list)
    """Seconds from the last byte of an answer that was lost to the kill."""
    sent: int = 0
    under_way: int = 0
    """Requests that had no answer, or a lost one, when a kill came."""


class Killer:
    """Kills one pipeline again and again and looks, each time, at what is left."""

    asked_again = True
    """Whether what was under way at a kill is sent anew; a batch goes on by itself."""

    def __init__(self, pipeline: Pipeline, whole: Unbroken, seed: int) -> None:
        self.pipeline, self.whole = pipeline, whole
        self.server = pipeline.server
        self.chance = random.Random(seed)
        self.toll = Toll()
        self.events: dict[str, int] = {}
        """Stage -> changes to its folders that a try made."""
        self.last = 0.0
        """Seconds that the run took which nobody ended."""

    def strike(self, place: int, way: str) -> None:
        """Start the run and end it in the step ``place``, unless that is done by then."""
        begun = len(self.pipeline.manifests())
        if begun > place:
            return
        stage, server = self.whole.stages[place], self.server
        arrived, answers = len(server.payloads), len(server.heard.answers)
        note = self.pipeline.forks.folder / "events"
        note.write_text("")
        if way == "event":
            number = self.chance.randint(1, self.events.get(stage, 12))
            first = AT_EVENT.format(number=number, stage=stage, note=str(note))
        elif way == "torn":
            first = TORN.format(
                bytes=self.chance.randint(2_000, max(3_000, self.whole.largest[place]))
            )
        else:
            first = AT_EVENT.format(number=0, stage=stage, note=str(note))
        started = self.pipeline.start(first)
        if way == "clock" and started.saw(RUNNING, place - begun + 1):
            time.sleep(self.chance.uniform(0, self.whole.seconds[place] + 0.02))
        elif way != "clock":
            started.saw(RUNNING, place - begun + 2)
        alive = not started.gone()
        if alive:
            started.send(signal.SIGKILL)
        moment = time.monotonic()
        ended = started.wait()
        if way == "clock":
            self.events[stage] = max(1, self.events.get(stage, 0), note.read_text().count("\n"))
        assert ended.status in (0, -signal.SIGKILL, -signal.SIGXFSZ), ended.err
        if ended.status:
            ours = not alive or way == "clock"  # else it got past the stage
            found = [line.split()[0] for line in ended.err.splitlines() if RUNNING in line]
            died = stage if ours and way == "event" else found[-1] if found else "before"
            self.toll.kills[died, way if ours else "clock"] += 1
        self.look(moment, arrived, answers)

    def look(self, moment: float, arrived: int, answers: int) -> None:
        """What holds after every kill."""
        while self.server.in_flight or self.server.counts.closing:
            time.sleep(0.001)
        sent = [digest(one) for one in self.server.payloads[arrived:]]
        assert not self.toll.kept & set(sent), "an answer that was in the store is asked for again"
        stored = self.pipeline.stored()
        assert self.toll.kept <= stored, "an answer left the store"
        ages = {body: moment - then for then, body in self.server.heard.answers[answers:]}
        self.toll.lost += [age for body, age in ages.items() if body not in stored]
        self.toll.kept = stored
        self.toll.sent += len(sent)
        self.toll.under_way += len(sent) - len(set(sent) & stored)
        for folder in self.pipeline.folder.glob("*-*"):
            whole = folder.name.endswith(".partial") or (folder / "manifest.json").is_file()
            assert whole or not folder.is_dir(), f"{folder.name} is half done under its own name"

    def end(self) -> Toll:
        """Let it end, and compare with the unbroken run."""
        arrived = len(self.server.payloads)
        self.last = self.pipeline.finish().seconds
        sent = [digest(one) for one in self.server.payloads[arrived:]]
        self.toll.sent += len(sent)
        assert not self.toll.kept & set(sent), "an answer that was in the store is asked for again"
        assert self.pipeline.stored() == self.whole.bodies
        again = self.toll.under_way if self.asked_again else 0
        assert self.toll.sent == len(self.whole.bodies) + again
        assert self.pipeline.digests() == self.whole.digests
        left = [*self.pipeline.folder.glob("*.partial"), *self.pipeline.folder.rglob("*.writing")]
        assert not left, "what was begun and never finished stays"
        return self.toll

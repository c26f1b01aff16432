"""What a judge is: items in, verdicts out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bpo_data.llm.desk import Desk
from bpo_data.tables import Message

if TYPE_CHECKING:
    from bpo_data.llm.client import Request
    from bpo_data.llm.endpoint import Endpoint

STATES = ("ok", "no_score", "unreadable", "too_long", "verifier_failed", "request_failed")


@dataclass(frozen=True)
class Item:
    """A response to be judged."""

    prompt: Sequence[Message]
    text: str
    group: str
    """The prompt's id: comparisons stay within a group."""
    reference: str | None = None
    given: float | None = None
    """The source's own score of this response."""
    author: str = ""
    """Who wrote it, for the check of judges that favour their own family; shown to no judge."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    """The source's own points of it by criterion."""
    rationale: str | None = None
    """The source's own reason for its score."""


@dataclass(frozen=True)
class Opinion:
    """One thing that one judge said once: of a response, or of two responses in an order."""

    judge: str
    item: int
    """The row of the item it is about; of a comparison, the response shown first."""
    score: float | None
    """Points on the judge's scale; of a comparison 1 (the first is better), 0.5 (tie) or 0.
    None where nothing readable was said."""
    state: str
    """One of ``STATES``."""
    reply: str
    """The judge's words, verbatim."""
    level: str = ""
    """How the score was read from the words (``rubric.LEVELS``, ``winner.LEVELS``); empty where
    no words were read."""
    repeat: int = 0
    """Which of several askings of the same question this answers."""
    against: int | None = None
    """The row of the response shown second; None when one response was judged by itself."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    """Points by criterion, where the judge gives any."""
    rationale: str | None = None
    """The reason in these words, as plain text; None where they hold none, or no score."""


@dataclass(frozen=True)
class Verdict:
    """What a judge's opinions of one response come to."""

    score: float | None
    """Points on the judge's scale; None where it said nothing readable, never 0 for that."""
    state: str
    """One of ``STATES``."""
    reply: str
    """The judge's words, verbatim; of several opinions the first one's."""
    spread: float | None = None
    """Standard deviation (n - 1) of the points over repeats and judges; None below two."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    """Points by criterion, where the judge gives any; a panel's are its judges' by name."""
    rationale: str | None = None
    """The reason for the points, as plain text: of the first readable opinion that gives one."""


@dataclass(frozen=True)
class Judgement:
    """Verdicts for all items, in their order, and the opinions they rest on."""

    verdicts: list[Verdict]
    opinions: list[Opinion]


class Judge(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def judges_new(self) -> bool:
        """Whether it can judge a response that the source does not hold."""

    @property
    def scale(self) -> tuple[float, float] | None:
        """Lowest and highest points it can give; None where there is no end."""

    def ready(self) -> None:
        """Raise UserError when something it needs from the environment is missing."""

    def requests(self, items: Sequence[Item]) -> list[tuple[Endpoint, Request, int]]:
        """All that it would ask a server to judge these items, with draws; for the forecast."""

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        """A judgement of the items; ``known`` are items to learn from, with given scores.

        ``desk.done(n)`` is told of n more items.
        """


def requests_of(judge: Judge, items: Sequence[Item]) -> list[tuple[Endpoint, Request, int]]:
    """What a judge will ask; nothing for one from outside that does not say."""
    told = getattr(judge, "requests", None)
    return told(items) if told else []


class Offline:
    """A judge that asks no server and needs nothing from the environment."""

    scale: tuple[float, float] | None = None

    def ready(self) -> None:
        return

    def requests(self, items: Sequence[Item]) -> list[tuple[Endpoint, Request, int]]:
        return []


def sole(name: str, verdicts: list[Verdict]) -> Judgement:
    """The judgement of a judge that has one opinion an item."""
    return Judgement(
        verdicts,
        [
            Opinion(
                *(name, row, verdict.score, verdict.state, verdict.reply),
                criteria=verdict.criteria,
                rationale=verdict.rationale,
            )
            for row, verdict in enumerate(verdicts)
        ],
    )


def summed_up(opinions: Sequence[Opinion]) -> Verdict:
    """The verdict on one response: the mean of the readable opinions of it."""
    readable = [opinion for opinion in opinions if opinion.score is not None]
    points = [opinion.score for opinion in readable if opinion.score is not None]
    if not points:
        return Verdict(None, opinions[0].state, opinions[0].reply)
    criteria = {
        name: statistics.fmean(opinion.criteria[name] for opinion in readable)
        for name in readable[0].criteria
    }
    return Verdict(
        *(statistics.fmean(points), "ok", opinions[0].reply, spread_of(points), criteria),
        rationale=next((one.rationale for one in readable if one.rationale), None),
    )


def spread_of(points: Sequence[float]) -> float | None:
    """Standard deviation (n - 1); None below two points."""
    return statistics.stdev(points) if len(points) > 1 else None


def evenly(done: Callable[[int], None], steps: int, items: int) -> Callable[[int], None]:
    """Tells ``done`` of ``items`` items in all, spread evenly over ``steps`` steps."""
    taken = 0

    def step(count: int) -> None:
        nonlocal taken
        before, taken = taken, taken + count
        done(items * taken // steps - items * before // steps)

    if not steps:
        done(items)
    return step

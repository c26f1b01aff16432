"""Several judges as one, each with its weight."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bpo_data.components import kinds
from bpo_data.components.judging import (
    Item,
    Judge,
    Judgement,
    Opinion,
    Verdict,
    evenly,
    spread_of,
)
from bpo_data.components.model_judge import Question
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk

COMBINE = ("points", "standard", "rank")
WORDS = ("kind", "weight", "name", "options")
"""What stands in an entry of ``judges``."""

Points = list[float | None]


@dataclass(frozen=True)
class Member:
    """A judge of a panel."""

    name: str
    judge: Judge
    weight: float
    units: Any
    """What its points are measured in: its scale, or without one its kind."""


class Panel:
    """Several judges as one: the weighted mean of what they say.

    ``combine`` makes them comparable: ``points`` takes points as they are, for judges of one
    scale; ``standard`` those less the judge's mean over its standard deviation, both over all that
    it judges in one go, so what else is judged moves them; ``rank`` the response's rank within
    its prompt, 0 the worst and 1 the best. A response that a judge has no points for goes by the
    other judges' weights. Points by criterion are the judges', by their names.
    """

    name = "panel"

    def __init__(self, judges: list[dict[str, Any]], combine: str = "points") -> None:
        if combine not in COMBINE:
            raise ValueError(f"combine={combine} is not known; choose {', '.join(COMBINE)}")
        if not isinstance(judges, list) or not judges:
            raise ValueError("judges must be a list, such as [{kind: rubric, options: {...}}]")
        self.combine = combine
        self.members = [member(entry, number) for number, entry in enumerate(judges)]
        names = [one.name for one in self.members]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two judges are called {name}; give one of them another name")
        units = {one.units for one in self.members}
        if combine == "points" and len(units) > 1:
            raise ValueError(
                f"combine=points wants judges of one scale, and {', '.join(names)} have not; "
                f"use combine=standard or combine=rank"
            )
        self.judges_new = all(one.judge.judges_new for one in self.members)
        self.scale = {
            "points": self.members[0].judge.scale,
            "standard": None,
            "rank": (0.0, 1.0),
        }[combine]

    def ready(self) -> None:
        for number, one in enumerate(self.members):
            with placed(number):
                one.judge.ready()

    def requests(self, items: Sequence[Item]) -> list[Question]:
        return [question for one in self.members for question in one.judge.requests(items)]

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        judgements = []
        with shared(desk, len(self.members), len(items)):
            for number, one in enumerate(self.members):
                with placed(number):
                    judgements.append(one.judge(items, known, desk))
        said = [judgement.verdicts for judgement in judgements]
        points = [self.comparable([verdict.score for verdict in own], items) for own in said]
        verdicts = [
            self.verdict([own[row] for own in said], [own[row] for own in points])
            for row in range(len(items))
        ]
        opinions = [
            replace(opinion, judge=called(one, opinion))
            for one, judgement in zip(self.members, judgements, strict=True)
            for opinion in judgement.opinions
        ]
        return Judgement(verdicts, opinions)

    def comparable(self, points: Points, items: Sequence[Item]) -> Points:
        """One judge's points of all items in the panel's units."""
        if self.combine == "standard":
            return standardised(points)
        if self.combine == "rank":
            return ranked(points, [item.group for item in items])
        return points

    def verdict(self, verdicts: Sequence[Verdict], points: Points) -> Verdict:
        """The members' verdicts on one response as one; ``points`` in the panel's units."""
        readable = [
            (value, one.weight)
            for value, one in zip(points, self.members, strict=True)
            if value is not None
        ]
        if not readable:
            return Verdict(None, verdicts[0].state, verdicts[0].reply)
        total = math.fsum(weight for _, weight in readable)
        mean = math.fsum(value * weight for value, weight in readable) / total
        spread = spread_of([value for value, _ in readable])
        reason = next((verdict.rationale for verdict in verdicts if verdict.rationale), None)
        criteria = self.criteria(verdicts, points)
        return Verdict(mean, "ok", verdicts[0].reply, spread, criteria, reason)

    def criteria(self, verdicts: Sequence[Verdict], points: Points) -> dict[str, float]:
        """Each judge's points in the panel's units, under its name; behind ``name/`` those that it
        gives by criterion itself, as it gave them."""
        found = {}
        for one, verdict, value in zip(self.members, verdicts, points, strict=True):
            if value is not None:
                found[one.name] = value
                found |= {f"{one.name}/{name}": own for name, own in verdict.criteria.items()}
        return found


def member(entry: Any, number: int) -> Member:
    """A judge of the panel as its entry in ``judges`` says. Raises ValueError and UserError."""
    from bpo_data.components.judges import KINDS  # which names the panel itself

    if not isinstance(entry, Mapping) or "kind" not in entry or set(entry) - set(WORDS):
        raise ValueError(f"judges[{number}] must have kind, and may have weight, name and options")
    kind, weight, options = str(entry["kind"]), entry.get("weight", 1), entry.get("options", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"judges[{number}].options={options} must be settings by name")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"judges[{number}].weight={weight} must be a number above 0")
    with placed(number):
        judge: Judge = kinds.build(KINDS, kind, options, "score.kind")
    name = str(entry.get("name") or judge.name)
    return Member(name, judge, weight, kind if judge.scale is None else judge.scale)


@contextmanager
def shared(desk: Desk, judges: int, items: int) -> Iterator[None]:
    """The desk is told of each item by every judge, and counts it once."""
    done = desk.done
    desk.done = evenly(done, judges * items, items)
    try:
        yield
    finally:
        desk.done = done


@contextmanager
def placed(number: int) -> Iterator[None]:
    """A member's errors name the settings where they stand: in the panel's."""
    try:
        yield
    except UserError as error:
        place = rf"score.options.judges[{number}].\1"
        raise UserError(re.sub(r"\bscore\.(options|kind)\b", place, str(error))) from error


def called(member: Member, opinion: Opinion) -> str:
    """The name under which the panel reports an opinion; a panel within keeps its own names."""
    if opinion.judge == member.judge.name:
        return member.name
    return f"{member.name}/{opinion.judge}"


def standardised(points: Points) -> Points:
    """Points less their mean, over their standard deviation; 0 where all are equal."""
    readable = [value for value in points if value is not None]
    if not readable:
        return points
    mean, deviation = statistics.fmean(readable), statistics.pstdev(readable)
    return [
        None if value is None else (value - mean) / deviation if deviation else 0.0
        for value in points
    ]


def ranked(points: Points, groups: Sequence[str]) -> Points:
    """Each response's rank among the readable ones of its group, from 0 to 1; equals share it."""
    pools: dict[str, list[float]] = {}
    for group, value in zip(groups, points, strict=True):
        if value is not None:
            pools.setdefault(group, []).append(value)
    return [
        None if value is None else rank(value, pools[group])
        for group, value in zip(groups, points, strict=True)
    ]


def rank(value: float, pool: Sequence[float]) -> float:
    """The share of the others that the value is above, equals half; 0.5 without any others."""
    if len(pool) == 1:
        return 0.5
    below, equal = sum(other < value for other in pool), pool.count(value) - 1
    return (below + equal / 2) / (len(pool) - 1)

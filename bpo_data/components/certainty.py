"""How sure judges are of a pair: the share of their opinions that put chosen above rejected."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Artifact

ROUNDING = 1e-9
"""A share of 0.7 is within an uncertainty of 0.3, whatever the last bits say."""


class Opinions:
    """The readable opinions of the score stage's ``opinions.parquet``, by response."""

    def __init__(self, opinions: pa.Table | None = None) -> None:
        """``opinions`` has response_id, judge, against_id and score."""
        self.points: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.matches: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        if opinions is None:
            return
        readable = opinions.filter(pc.is_valid(opinions["score"]))
        if said_once(readable):
            return
        for row in readable.to_pylist():
            one, other, judge, score = (
                row[name] for name in ("response_id", "against_id", "judge", "score")
            )
            if other is None:
                self.points[one][judge].append(score)
            else:
                self.matches[one, other][judge].append(score)
                self.matches[other, one][judge].append(1 - score)

    def share(self, chosen: Sequence[str], rejected: Sequence[str]) -> float | None:
        """The share that puts chosen above rejected, a tie as half; None below two opinions.

        Either side is the ids of all responses that read the same. A judge that gives points says
        one thing with each of its askings of the one against each of the other; one that compares,
        with each comparison. All judges count the same. Two opinions are two judges of both sides,
        or one that was asked at least twice about each, or compared them twice.
        """
        ones, others = self.said(chosen), self.said(rejected)
        shares: list[float] = []
        heard = 0
        for judge in sorted(ones.keys() & others.keys()):
            said = [worth(a, b) for a in ones[judge] for b in others[judge]]
            shares.append(math.fsum(said) / len(said))
            heard += min(len(ones[judge]), len(others[judge]))
        compared: dict[str, list[float]] = defaultdict(list)
        for one in chosen:
            for other in rejected:
                for judge, scores in self.matches.get((one, other), {}).items():
                    compared[judge] += scores
        for _, scores in sorted(compared.items()):
            shares.append(math.fsum(scores) / len(scores))
            heard += len(scores)
        return math.fsum(shares) / len(shares) if heard >= 2 else None

    def of_pair(self, pair: Mapping[str, Any], same: Mapping[str, Sequence[str]]) -> float | None:
        """The share for a pair; ``same`` has the ids of all responses that read as each does."""
        return self.share(same[pair["chosen_id"]], same[pair["rejected_id"]])

    def said(self, responses: Sequence[str]) -> dict[str, list[float]]:
        """Points that each judge gave the first of these responses of which it said anything.

        What it says of the same text once more is no second opinion: most judges repeat themselves.
        """
        found: dict[str, list[float]] = {}
        for response in responses:
            for judge, points in self.points.get(response, {}).items():
                found.setdefault(judge, points)
        return found


def said_once(opinions: pa.Table) -> bool:
    """Whether one judge gave each response points once, so that no pair has two opinions."""
    return bool(
        pc.count_distinct(opinions["judge"]).as_py() <= 1
        and opinions["against_id"].null_count == opinions.num_rows
        and pc.count_distinct(opinions["response_id"]).as_py() == opinions.num_rows
    )


def opinions_of(scores: Artifact) -> Opinions:
    """All that the score stage's judges said, one by one."""
    wanted = ["response_id", "judge", "against_id", "score"]
    return Opinions(scores.read("opinions.parquet", wanted))


def certain(
    pairs: Sequence[dict[str, Any]],
    same: Mapping[str, Sequence[str]],
    bound: float,
    opinions: Opinions,
) -> list[dict[str, Any]]:
    """The pairs of which at most ``bound`` of two or more opinions does not say what they say.

    Wang et al. 2024 (UPO, arXiv 2409.11212) filter by an estimator's uncertainty under dropout;
    here it is judges' own disagreement.
    """
    found = []
    for pair in pairs:
        share = opinions.of_pair(pair, same)
        if share is not None and 1 - share <= bound + ROUNDING:
            found.append(pair)
    return found


def worth(one: float, other: float) -> float:
    """What points say of two responses: 1 the first is better, 0.5 neither, 0 the second."""
    return 0.5 if one == other else float(one > other)

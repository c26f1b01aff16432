"""Who judged, and the words that each language model among the judges was sent."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bpo_data.components import judges, kinds
from bpo_data.components.judges import Verifier
from bpo_data.components.judging import Item, Judge, requests_of
from bpo_data.components.panel import Panel
from bpo_data.tables import Message

SORTS = {
    "given": "the scores that came with the source; who gave them is not known to bpo_data",
    "verifier": "a program, not a model and not a person",
    "preference": "a ranker of words and length, fitted on the source's own preferences",
    "reward_model": "a reward model, run in process",
    "rubric": "a language model that grades one response at a time",
    "pairwise": "a language model that compares two responses, in both orders",
}

PROMPT = [Message(role="user", content="(the turns of the prompt, each in a field of its own)")]
EXAMPLE = [Item(PROMPT, text, "0") for text in ("(a response)", "(another response)")]
"""Stands where prompt and responses stand in what a judge is sent."""


@dataclass(frozen=True)
class Member:
    """One judge, alone or of a panel."""

    name: str
    kind: str
    sort: str
    weight: float | None
    """Its weight in a panel; None for a judge alone."""
    asked: Asked | None
    """None for a judge that asks no language model."""
    marks: str = ""
    """What a program gives points for: the first line of its docstring; else empty."""
    steady: bool = False
    """Whether it is a program that its settings add no errors to."""


@dataclass(frozen=True)
class Asked:
    """What a judge asks of its language model."""

    model: str
    server: str
    temperature: float
    top_p: float
    max_tokens: int
    seeds: list[int]
    schema: bool
    """Whether the reply is held to a JSON schema."""
    words: str
    """The request, with ``EXAMPLE`` in place of prompt and responses."""


def members(score: Mapping[str, Any]) -> list[Member]:
    """The judges of a ``score`` section; those of a panel one by one. Raises UserError."""
    judge: Judge = kinds.build(judges.KINDS, score["kind"], score["options"], "score.kind")
    return list(members_of(judge, score["kind"], score["options"], judge.name, None))


def members_of(
    judge: Judge, kind: str, options: Mapping[str, Any], name: str, weight: float | None
) -> Iterator[Member]:
    if not isinstance(judge, Panel):
        sort = SORTS.get(kind, "from outside bpo_data")
        if options.get("noise"):
            sort += (
                f"; its points are off on purpose, with a standard deviation of {options['noise']}"
            )
        steady = isinstance(judge, Verifier) and not judge.noise
        yield Member(name, kind, sort, weight, asked(judge), marks_of(judge), steady)
        return
    for one, entry in zip(judge.members, options["judges"], strict=True):
        share = one.weight * (1.0 if weight is None else weight)
        yield from members_of(one.judge, entry["kind"], entry.get("options", {}), one.name, share)


def marks_of(judge: Judge) -> str:
    """The first line of the docstring that a verifier's function has of its own."""
    if not isinstance(judge, Verifier):
        return ""
    told = str(judge.function.__doc__ or "") if inspect.isroutine(judge.function) else ""
    return told.strip().partition("\n")[0].rstrip(".")


def asked(judge: Judge) -> Asked | None:
    """What the judge would send about two responses; of both orders of a comparison the first."""
    requests = [(endpoint, request) for endpoint, request, _ in requests_of(judge, EXAMPLE)]
    if not requests:
        return None
    endpoint, request = requests[0]
    several = len(request.messages) > 1
    return Asked(
        model=request.model,
        server=endpoint.base_url,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seeds=sorted({request.seed for _, request in requests}),
        schema="response_format" in (request.extra or {}),
        words="\n\n".join(
            f"[{turn['role']}]\n{turn['content']}" if several else turn["content"]
            for turn in request.messages
        ),
    )

"""What a judge is: items in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bpo_data.runtime import Runtime
from bpo_data.tables import Message

STATES = ("ok", "no_score", "unreadable", "verifier_failed", "request_failed")


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


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one response."""

    score: float | None
    """Points on the judge's scale; None where it said nothing readable, never 0 for that."""
    state: str
    """One of ``STATES``."""
    reply: str
    """The judge's words, verbatim."""


class Judge(Protocol):
    name: str
    judges_new: bool
    """Whether it can judge a response that the source does not hold."""

    def ready(self) -> None:
        """Raise UserError when something it needs from the environment is missing."""

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        """A verdict for each item, in order; ``known`` are items to learn from, with given scores.

        ``done(n)`` is told of n more verdicts.
        """


class AlwaysReady:
    """A judge that needs nothing from the environment."""

    def ready(self) -> None:
        return

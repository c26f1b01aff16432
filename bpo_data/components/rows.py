"""What a source hands to ``load``: good rows and rows set aside."""

from __future__ import annotations

from dataclasses import dataclass

from bpo_data.tables import Message


@dataclass(frozen=True)
class Given:
    """A response the source already holds."""

    text: str
    author: str = ""
    """The model or person that wrote it; ``chosen`` / ``rejected`` in a preference pair."""
    score: float | None = None
    """The source's own score, higher is better; a bare preference pair gives 1 and 0."""
    criteria: tuple[tuple[str, float], ...] = ()
    """The source's own points by criterion, sorted by name."""
    rationale: str = ""
    """Why it has them, in the source's words."""


@dataclass(frozen=True)
class Row:
    """One row of a source: a prompt, and the responses that row carries (maybe none)."""

    prompt: tuple[Message, ...]
    given: tuple[Given, ...]
    origin: str
    """Where it stands: ``name.jsonl:12`` (lines from 1) or ``name.parquet#3`` (rows from 0)."""
    topic: str | None = None
    reference: str | None = None
    """What a verifier checks a response against, such as the right answer."""
    split: str | None = None
    """``seed``, ``pool`` or ``test`` where the source says so itself."""
    notices: tuple[str, ...] = ()
    """Things worth counting that do not spoil the row, such as ``special_tokens``."""


@dataclass(frozen=True)
class Rejected:
    """A row set aside, with the reason and its bytes as they stood."""

    origin: str
    reason: str
    """One word of a closed set, such as ``invalid_json``."""
    detail: str
    raw: bytes

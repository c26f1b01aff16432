"""Ids of the source: each names one row, or one prompt whose responses come in several rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bpo_data.components.reading.faults import Bad
from bpo_data.components.rows import Given
from bpo_data.tables import Message


class Ids:
    """The ids of one file."""

    def __init__(self) -> None:
        self.prompt_of: dict[bytes, bytes] = {}
        self.seen: set[bytes] = set()

    def add(
        self, label: str | None, prompt: Sequence[Message], given: Sequence[Given], one: bool
    ) -> None:
        """Remember an id. Raises Bad unless it names one row or, with ``one``, one prompt.

        ``one`` is a row of a single response: several of them may share their prompt's id.
        """
        if label is None:
            raise Bad("missing_id", "the row has no id, or an empty one; others have one")
        name, whole = _digest(label), _digest(repr(prompt))
        response = _digest(repr((label, given))) if one else name
        if (one and self.prompt_of.get(name, whole) != whole) or response in self.seen:
            raise Bad("duplicate_id", f"the id {label!a:.80} stands on an earlier row too")
        self.prompt_of[name] = whole
        self.seen |= {response} if one else {response, name}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

"""A row as it stands in its file, and the names of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_data.components.reading.faults import Bad, FileRejected


@dataclass(frozen=True)
class Record:
    """A row as it stands in its file, before anyone asks what it means."""

    place: str
    """``:12`` (line, from 1) or ``#3`` (row, from 0)."""
    fields: dict[str, Any] | Bad
    raw: bytes | None = None
    """Its bytes; None in Parquet, where ``fields`` is all there is."""


def check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise FileRejected(path, "duplicate_key", "two columns have the same name. Rename one.")

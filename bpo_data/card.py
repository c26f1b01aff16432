"""The dataset card, from the template in ``data_cards``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpo_data import __version__, disk
from bpo_data.artifacts import Draft


def text(draft: Draft, config: Mapping[str, Any]) -> str:
    """The dataset card, from the template in ``data_cards``."""
    from jinja2 import Environment, StrictUndefined

    template = template_path().read_text(encoding="utf-8")
    environment = Environment(  # the card is Markdown, which has no HTML to escape
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    return environment.from_string(template).render(
        facts=draft.facts,
        config=config,
        inputs=draft.inputs,
        settings={
            used.manifest["stage"]: used.manifest["settings"] for used in draft.inputs.values()
        }
        | {"export": dict(config)},
        version=__version__,
        has_test="test" in draft.facts["splits"],
        size=size_category(draft.facts["pairs"]),
        digest=content_digest(draft),
    )


def content_digest(draft: Draft) -> str:
    """16 hex digits that change with the rows.

    ``datasets`` caches a local folder by its name and its card alone, so two exports whose cards
    agree would be one dataset to it, and the second would load the rows of the first.
    """
    rows = "".join(disk.sha256(draft.folder / name) for name in draft.table_files)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def template_path() -> Path:
    """The card's template: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "data_cards" / "TEMPLATE.md"
    return inside if inside.exists() else package.parent / "data_cards" / "TEMPLATE.md"


def size_category(rows: int) -> str:
    """The hub's word for a size."""
    for bound, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if rows < bound:
            return name
    return "100K<n<1M" if rows < 1_000_000 else "n>1M"

"""What the card tells, out of the artifacts that the dataset was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Artifact, Draft
from bpo_data.llm.prices import Price, Prices
from bpo_data.tables import MSG

SOURCE_FILES = 12

MEASURES = 24
"""Figures on the judge listed, those beyond our bounds first."""

EXAMPLES = ("same_text_rank", "same_text_lead")
"""Measures of single texts: shown only where they are beyond the bounds."""

TYPES = {MSG: "messages", pa.float32(): "float32"}
"""Names of types that readers of the card know; others are Arrow's."""

COLUMNS = {
    "prompt": "the conversation up to the turn that is answered",
    "chosen": "the preferred response, one assistant message",
    "rejected": "the other response, one assistant message",
    "split": "`train` or `test`",
    "pair_id": "prompt and the two responses' numbers: `<prompt_id>/<chosen>><rejected>`",
    "prompt_id": "16 hex digits of the sha256 of the prompt's messages",
    "score_chosen": "the judge's points",
    "score_rejected": "the same",
    "margin": "difference of the points, on the scale named under Pairs below",
    "p_chosen": "share of judges' opinions that put chosen above rejected, ties half; null with "
    "fewer than two",
    "depth": "pairs kept of this prompt, over both splits",
    "cluster": "cluster of the pair's gradient, over all candidate pairs",
    "usefulness": "cosine of the pair's projected gradient with its cluster's centre",
    "informativeness": "length of the pair's projected gradient",
    "author_chosen": "who wrote it: a model's name, `policy`, or what the source says",
    "author_rejected": "the same",
    "topic": "the source's own label; null where it has none",
    "source": "file and row, or dataset and row, where the prompt stood",
    "criteria_chosen": "the judge's points by criterion, or its judges' by name; null where it has "
    "none",
    "criteria_rejected": "the same",
    "rationale_chosen": "the judge's reason, in its own words; null where it gave none",
    "rationale_rejected": "the same",
}
"""What the columns mean; Markdown."""


def columns(schema: pa.Schema) -> list[dict[str, str]]:
    """Name, type and meaning of each column, in the schema's order."""
    return [
        {
            "name": column.name,
            "type": TYPES.get(column.type, str(column.type)),
            "meaning": COLUMNS.get(column.name, ""),
        }
        for column in schema
    ]


def splits(draft: Draft) -> list[dict[str, Any]]:
    """Pairs and prompts of each split, train first."""
    pairs, prompts, last = Counter[str](), Counter[str](), ""
    for rows in draft.batches(["split", "prompt_id"]):
        pairs.update(rows["split"].to_pylist())
        names = rows["prompt_id"].to_pylist()
        for split, name in zip(rows["split"].to_pylist(), names, strict=True):
            prompts[split] += name != last  # a prompt's rows stand together
            last = name
    return [
        {"name": name, "pairs": pairs[name], "prompts": prompts[name]}
        for name in sorted(pairs, reverse=True)
    ]


def in_words(counts: Mapping[str, int]) -> str:
    """``3 empty, 1,598 ok``."""
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def after_cut(formats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The balance that is left once a trainer has cut and dropped, for formats that know it."""
    return [
        {"format": name, **figures}
        for name, figures in formats.items()
        if figures.get("max_length") is not None and figures.get("pairs") is not None
    ]


def measures(scores: Artifact) -> dict[str, list[dict[str, Any]]]:
    """What was measured of the judge: figures beyond our bounds, and the others."""
    if "hygiene.parquet" not in scores.manifest["files"]:
        return {"flagged": [], "others": []}
    rows = [row for row in scores.read("hygiene.parquet").to_pylist() if row["value"] is not None]
    flagged = [row for row in rows if row["flag"]]
    others = [row for row in rows if not row["flag"] and row["measure"] not in EXAMPLES]
    return {"flagged": flagged[:MEASURES], "others": others[: max(0, MEASURES - len(flagged))]}


def source(load: Artifact, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A short name of the source, and its files or revisions with their digests."""
    kind, options = settings["kind"], settings["options"]
    name = {
        "files": PurePath(settings["path"]).name,
        "hub": str(options.get("name", "")),
        "topics": "a generated world of small tasks",
    }.get(kind, kind)
    digests = sorted(load.manifest["outside"].items())
    return {
        "name": name or kind,
        "digests": [
            (PurePath(path).name if kind == "files" else path, digest)
            for path, digest in digests[:SOURCE_FILES]
        ],
        "more": max(0, len(digests) - SOURCE_FILES),
    }


def price_rows(prices: Prices, models: list[str]) -> list[tuple[str, Price]]:
    """The prices of those models that the file of prices has."""
    rows = [(model, prices.of(model)) for model in dict.fromkeys(models)]
    return [(model, price) for model, price in rows if price is not None]

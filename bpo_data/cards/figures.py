"""What the card tells, out of the artifacts that the dataset was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Artifact, Draft
from bpo_data.cards.judges import STAND_INS, Member
from bpo_data.llm.prices import Price, Prices
from bpo_data.tables import MSG

AUTHORS = 12
"""Authors listed, those of most responses first."""

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
    "depth": "pairs kept of this prompt, over both splits",
    "cluster": "cluster of the pair's gradient, over all candidate pairs",
    "usefulness": "cosine of the pair's projected gradient with its cluster's centre",
    "informativeness": "length of the pair's projected gradient",
    "author_chosen": "who wrote it: a model's name, `policy`, or what the source says",
    "author_rejected": "the same",
    "topic": "the source's own label; null where it has none",
    "source": "file and row, or dataset and row, where the prompt stood",
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
    rows = draft.read(["split", "prompt_id"]).to_pylist()
    names = Counter(row["split"] for row in rows)
    return [
        {
            "name": name,
            "pairs": names[name],
            "prompts": len({row["prompt_id"] for row in rows if row["split"] == name}),
        }
        for name in sorted(names, reverse=True)
    ]


def depths(allocation: Mapping[str, Any]) -> list[dict[str, int]]:
    """For each depth: prompts that had so many candidate pairs, and that keep so many."""
    before, after = allocation["depths_before"], allocation["depths"]
    return [
        {"depth": depth, "before": before.get(str(depth), 0), "after": after.get(str(depth), 0)}
        for depth in sorted({int(depth) for depth in [*before, *after]})
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


def authors(draft: Draft) -> dict[str, Any]:
    """How often each author is chosen and rejected, the largest first; how many are left out."""
    rows = draft.read(["author_chosen", "author_rejected"])
    chosen = Counter(rows["author_chosen"].to_pylist())
    rejected = Counter(rows["author_rejected"].to_pylist())
    both = sorted((chosen + rejected).items(), key=lambda one: (-one[1], one[0]))
    return {
        "rows": [
            {"name": name, "chosen": chosen[name], "rejected": rejected[name]}
            for name, _ in both[:AUTHORS]
        ],
        "more": max(0, len(both) - AUTHORS),
    }


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


def requests(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """What each stage asked of servers, for those that asked anything."""
    found = []
    for stage, table in (("embed", "embeddings"), ("augment", "responses"), ("score", "scores")):
        asked = inputs[table].facts.get("requests") or {}
        if asked.get("replies"):
            found.append({"stage": stage, "usd": None, "models": [], **asked})
    return found


def spent(asked: list[dict[str, Any]]) -> float | None:
    """US dollars of all stages; None where one of them is unknown."""
    known = [one["usd"] for one in asked if one["usd"] is not None]
    return sum(known) if asked and len(known) == len(asked) else None


def price_rows(prices: Prices, models: list[str]) -> list[tuple[str, Price]]:
    """The prices of those models that the file of prices has."""
    rows = [(model, prices.of(model)) for model in dict.fromkeys(models)]
    return [(model, price) for model, price in rows if price is not None]


def stand_ins(sft: Mapping[str, Any], judges: list[Member]) -> dict[str, Any]:
    """What stood in for a model that one would mean to use."""
    return {
        "policy": sft["kind"] == "scratch",
        "judges": [member for member in judges if member.kind in STAND_INS],
    }

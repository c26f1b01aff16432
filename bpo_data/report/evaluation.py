"""Did it help: the evaluation by topic, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.statistics import share_by_prompt
from bpo_data.tables import lookup

WORTH = {"trained": 1.0, "tie": 0.5, "sft": 0.0}


def by_topic(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Win rate (ties half) and mean points of each of the source's topics, most compared first."""
    wins = inputs["wins"].table(["prompt_id", "winner", "score_sft", "score_trained"])
    prompts = inputs["prompts"].table(["prompt_id", "topic"])
    topics = lookup(prompts, "prompt_id", wins["prompt_id"])["topic"].to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, topic in zip(wins.to_pylist(), topics, strict=True):
        if topic and row["winner"]:
            groups.setdefault(topic, []).append(row)
    found = [
        {
            "topic": topic,
            "comparisons": len(rows),
            "sft": sum(row["score_sft"] for row in rows) / len(rows),
            "trained": sum(row["score_trained"] for row in rows) / len(rows),
            "win_rate": share_by_prompt((row["prompt_id"], WORTH[row["winner"]]) for row in rows),
        }
        for topic, rows in groups.items()
    ]
    return sorted(found, key=lambda row: (-row["comparisons"], row["topic"]))

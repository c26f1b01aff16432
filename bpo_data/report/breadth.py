"""What came out: depth before and after, and how the kept prompts cover the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Artifact
from bpo_data.tables import columns, lookup

DEPTHS = columns(depth=pa.int32(), prompts_before=pa.int64(), prompts_kept=pa.int64())
"""``depths.parquet``: prompts with so many candidate pairs, and with so many kept."""


def depth_table(facts: Mapping[str, Any]) -> pa.Table:
    """Prompts by their number of pairs; ``facts`` are those of ``allocate``."""
    before, after = facts["depths_before"], facts["depths"]
    depths = sorted({int(depth) for depth in [*before, *after]})
    rows = [
        {
            "depth": depth,
            "prompts_before": before.get(str(depth), 0),
            "prompts_kept": after.get(str(depth), 0),
        }
        for depth in depths
    ]
    return pa.Table.from_pylist(rows, schema=DEPTHS)


def topic_rows(inputs: Mapping[str, Artifact], table: pa.Table) -> list[dict[str, Any]]:
    """For each topic of the source: prompts in the pool, selected, with kept pairs; kept pairs.

    Most asked first; empty where the source names no topics. ``table`` is that of
    ``pair_map.pair_table``.
    """
    selection = inputs["selection"].table(["prompt_id", "kept"])
    prompts = inputs["prompts"].table(["prompt_id", "topic"])
    topics = lookup(prompts, "prompt_id", selection["prompt_id"])["topic"].to_pylist()
    if not any(topics):
        return []
    chosen = selection["kept"].to_pylist()
    kept = table.filter(table["kept"])
    owner = dict(zip(kept["prompt_id"].to_pylist(), kept["topic"].to_pylist(), strict=True))
    counts = {
        "pool": Counter(topics),
        "selected": Counter(topic for topic, one in zip(topics, chosen, strict=True) if one),
        "prompts": Counter(owner.values()),
        "pairs": Counter(kept["topic"].to_pylist()),
    }
    return [
        {"topic": topic or "", **{name: count[topic] for name, count in counts.items()}}
        for topic in sorted(counts["pool"], key=lambda one: (-counts["pool"][one], one or ""))
    ]

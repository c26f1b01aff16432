"""The clusters of pair gradients: size, quota, what is kept of each, examples and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data.components.lengths import bias
from bpo_data.report import words
from bpo_data.report.pair_map import lengths_of
from bpo_data.report.plain import short
from bpo_data.tables import ID, columns

WORDS = 8
EXAMPLE = 1_000
"""Characters of a text that is shown as an example."""
BY_QUOTA = ("center", "far", "informative", "sample", "clusters", "matching_pursuit")
"""Depth rules that share the budget out over gradient clusters first."""
SCHEMA = columns(
    cluster=pa.int32(),
    pairs=pa.int64(),
    quota=pa.float64(),
    kept=pa.int64(),
    prompts=pa.int64(),
    mean_margin=pa.float64(),
    usefulness=pa.float64(),
    informativeness=pa.float64(),
    chosen_longer=pa.float64(),
    typical=ID,
    odd=ID,
    words=pa.list_(pa.string()),
)
"""``clusters.parquet``: ``quota`` is the budget shared out by the clusters' sizes alone;
``typical`` and ``odd`` are the pairs nearest to and farthest from the centre; ``chosen_longer``
counts equal lengths half."""


def by_quota(allocate: Mapping[str, Any]) -> bool:
    """Whether the depth rule of these settings fills quotas of gradient clusters by their sizes."""
    sizes = allocate["options"].get("quota", "proportional") == "proportional"
    return allocate["kind"] in BY_QUOTA and sizes


def cluster_table(table: pa.Table) -> pa.Table:
    """One row a cluster, the largest first; ``table`` is that of ``pair_map.pair_table``."""
    cluster = table["cluster"].to_numpy()
    numbers, group, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    figures = {name: table[name].to_numpy() for name in ("kept", "margin", "distance")}
    figures |= {name: table[name].to_numpy() for name in ("usefulness", "informativeness")}
    names, prompts = table["pair_id"].to_pylist(), table["prompt_id"].to_numpy()
    lengths, said = lengths_of(table), telling_words(table, group, len(numbers))
    budget = int(figures["kept"].sum())
    rows = []
    for place, rows_of in enumerate(members):
        far = figures["distance"][rows_of]
        rows.append(
            {
                "cluster": int(numbers[place]),
                "pairs": len(rows_of),
                "quota": budget * len(rows_of) / len(cluster),
                "kept": int(figures["kept"][rows_of].sum()),
                "prompts": len(np.unique(prompts[rows_of])),
                "mean_margin": float(figures["margin"][rows_of].mean()),
                "usefulness": float(figures["usefulness"][rows_of].mean()),
                "informativeness": float(figures["informativeness"][rows_of].mean()),
                "chosen_longer": bias(lengths[rows_of])["longer_share"],
                "typical": names[rows_of[int(far.argmin())]],
                "odd": names[rows_of[int(far.argmax())]],
                "words": said[place],
            }
        )
    rows.sort(key=lambda row: (-row["pairs"], row["cluster"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def telling_words(table: pa.Table, group: np.ndarray, groups: int) -> list[list[str]]:
    """The words of each cluster's pairs, or of a sample of them, against all other clusters'."""
    drawn = words.by_lot(table["pair_id"].to_pylist())
    rows = table.select(["text", "chosen", "rejected"]).take(pa.array(drawn, pa.int64()))
    place: dict[str, int] = {}
    texts_of: list[dict[int, None]] = [{} for _ in range(groups)]
    for row, where in zip(rows.to_pylist(), group[drawn], strict=True):
        for text in row.values():
            texts_of[where][place.setdefault(text[: words.READ], len(place))] = None
    return words.telling(list(place), [list(texts) for texts in texts_of], WORDS)


def shown(clusters: pa.Table, table: pa.Table, most: int) -> list[dict[str, Any]]:
    """The largest clusters with the words of their examples."""
    rows = clusters.slice(0, most).to_pylist()
    wanted = {row[kind] for row in rows for kind in ("typical", "odd")}
    place = {name: at for at, name in enumerate(table["pair_id"].to_pylist()) if name in wanted}
    texts = table.select(["pair_id", "text", "topic", "chosen", "rejected"])
    for row in rows:
        for kind in ("typical", "odd"):
            row[kind] = example(texts.slice(place[row[kind]], 1).to_pylist()[0])
    return rows


def example(row: dict[str, Any]) -> dict[str, str]:
    return {name: short(text or "", EXAMPLE) for name, text in row.items()}

"""The page people look at: what came out, did it help, what the clusters are, what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import disk
from bpo_data.artifacts import Draft
from bpo_data.components.lengths import bias, characters
from bpo_data.runtime import Runtime
from bpo_data.tables import columns, lookup, lot
from bpo_data.work import leaves

VERSION = 3
COLOURS = 10
"""Colours of the map; clusters share them in turn."""


@dataclass
class ReportConfig:
    points: int = 2000
    """Pairs drawn on the map; more are sampled by lot, and the page says so."""

    clusters: int = 24
    """Clusters listed with examples, largest first."""

    def problems(self) -> Iterator[str]:
        if self.points < 0 or self.clusters < 0:
            yield "report.points and report.clusters are 0 or more."


def schema(config: ReportConfig) -> pa.Schema:
    return columns(table=pa.string(), figure=pa.string(), value=pa.string())


def run(draft: Draft, config: ReportConfig, runtime: Runtime) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    facts = {name: used.facts for name, used in draft.inputs.items()}
    page = environment.get_template("report.html").render(
        facts=facts,
        receipts=[used.manifest for used in draft.inputs.values()],
        folders={used.manifest["stage"]: str(used.folder) for used in draft.inputs.values()},
        notes=[
            (used.manifest["stage"], said)
            for used in draft.inputs.values()
            for said in used.facts.get("notes", [])
        ],
        depths=depth_rows(facts["allocation"]),
        clusters=cluster_rows(draft, config),
        hygiene=draft.inputs["scores"].read("hygiene.parquet").to_pylist(),
        **map_of(draft, config),
    )
    # A lone surrogate cannot reach here (load sets it aside); anything else is written as it is.
    disk.write_bytes(page.encode(), draft.view("report.html"))
    rows = [
        {"table": name, "figure": figure, "value": str(value)}
        for name, figures in facts.items()
        for figure, value in leaves(figures).items()
    ]
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))


def depth_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """For each depth: prompts that had so many pairs to choose from, and that keep so many."""
    before, after = facts["depths_before"], facts["depths"]
    depths = sorted({int(depth) for depth in [*before, *after]})
    most = max([*before.values(), *after.values()])
    return [
        {
            "depth": depth,
            "before": before.get(str(depth), 0),
            "after": after.get(str(depth), 0),
            "before_share": before.get(str(depth), 0) / most,
            "after_share": after.get(str(depth), 0) / most,
        }
        for depth in depths
    ]


def pair_table(draft: Draft) -> pa.Table:
    """Every candidate pair with its cluster and whether it is kept."""
    allocation = draft.inputs["allocation"].table()
    clusters = lookup(draft.inputs["clusters"].table(), "pair_id", allocation["pair_id"])
    for name in ("cluster", "distance", "usefulness", "x", "y"):
        allocation = allocation.append_column(name, clusters[name])
    return allocation


def cluster_rows(draft: Draft, config: ReportConfig) -> list[dict[str, Any]]:
    """The largest clusters with sizes, kept pairs, length bias and their most typical pair."""
    table = pair_table(draft)
    grouped = table.append_column("kept_count", pc.cast(table["kept"], pa.int64()))
    sums = grouped.group_by("cluster").aggregate(
        [("pair_id", "count"), ("kept_count", "sum"), ("usefulness", "mean")]
    )
    rows = sorted(sums.to_pylist(), key=lambda row: (-row["pair_id_count"], row["cluster"]))
    texts = Texts(draft)
    found = []
    for row in rows[: config.clusters]:
        members = table.filter(pc.equal(table["cluster"], row["cluster"]))
        nearest = members.sort_by([("distance", "ascending"), ("pair_id", "ascending")])
        pairs = lookup(texts.pairs, "pair_id", members["pair_id"])
        found.append(
            {
                "cluster": row["cluster"],
                "colour": row["cluster"] % COLOURS,
                "size": row["pair_id_count"],
                "kept": row["kept_count_sum"],
                "prompts": len(set(members["prompt_id"].to_pylist())),
                "usefulness": row["usefulness_mean"],
                "mean_margin": pc.mean(pairs["margin"]).as_py(),
                "longer_share": bias(characters(pairs, texts.responses))["longer_share"],
                **texts.of(nearest["pair_id"][0].as_py()),
            }
        )
    return found


class Texts:
    """The words of a pair, found by its id."""

    def __init__(self, draft: Draft) -> None:
        self.pairs = draft.inputs["pairs"].table()
        self.prompts = draft.inputs["prompts"].table(["prompt_id", "prompt", "topic"])
        self.responses = draft.inputs["responses"].table(["response_id", "text"])

    def of(self, pair_id: str) -> dict[str, Any]:
        pair = lookup(self.pairs, "pair_id", [pair_id]).to_pylist()[0]
        owner = lookup(self.prompts, "prompt_id", [pair["prompt_id"]]).to_pylist()[0]
        sides = lookup(self.responses, "response_id", [pair["chosen_id"], pair["rejected_id"]])
        chosen, rejected = sides["text"].to_pylist()
        return {
            "pair_id": pair_id,
            "prompt": owner["prompt"][-1]["content"],
            "topic": owner["topic"] or "",
            "chosen": chosen,
            "rejected": rejected,
            "margin": pair["margin"],
        }


def map_of(draft: Draft, config: ReportConfig) -> dict[str, Any]:
    """Points of the map in a 600 x 400 frame: kept pairs filled, the others hollow."""
    table = pair_table(draft)
    rows = sorted(table.to_pylist(), key=lambda row: lot(0, "map", row["pair_id"]))
    drawn = rows[: config.points]
    xs, ys = [row["x"] for row in drawn], [row["y"] for row in drawn]
    points = [
        {
            "x": round(10 + 580 * placed(row["x"], xs), 1),
            "y": round(390 - 380 * placed(row["y"], ys), 1),
            "colour": row["cluster"] % COLOURS,
            "kept": row["kept"],
            "title": f"{row['pair_id']} cluster {row['cluster']}",
        }
        for row in drawn
    ]
    return {"points": points, "points_total": table.num_rows}


def placed(value: float, values: list[float]) -> float:
    """Where a value lies between the least and the greatest, from 0 to 1."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5

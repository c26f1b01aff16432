"""The page people look at: what came out, did it help, what the clusters are, what was lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import disk
from bpo_data.artifacts import Artifact, Draft
from bpo_data.cards import judges, privacy
from bpo_data.components.embedders import unit
from bpo_data.errors import UserError
from bpo_data.report import (
    ablation,
    authors,
    breadth,
    clusters,
    costs,
    evaluation,
    figures,
    judging,
    lengths,
    losses,
    neighbours,
    origins,
    page,
    pair_map,
    training,
    words,
)
from bpo_data.runtime import Runtime
from bpo_data.stages.cluster import ClusterConfig, gradients_of
from bpo_data.tables import columns, lookup
from bpo_data.work import leaves, settings_of

VERSION = 10
TOPICS = 40
"""Topics listed; the rest is in the tables the page names."""


@dataclass
class ReportConfig:
    points: int = 10_000
    """Pairs drawn on the map with their words; of more, a sample by lot, and the page says so.
    10,000 keep the page below 8 MB however many pairs there are."""

    clusters: int = 24
    """Clusters listed with examples, largest first."""

    figures: bool = False
    """Write ``figures/*.svg`` and ``*.png`` too, for papers; needs ``pip install
    'bpo-data[figures]'``."""

    ablation: str = ""
    """A folder that ``recipe=ablation`` wrote, such as ``runs/ablation/ablation``: its table stands
    on the page."""

    def problems(self) -> Iterator[str]:
        if self.points < 0 or self.clusters < 0:
            yield "report.points and report.clusters are 0 or more."
        if self.figures and not figures.available():
            yield (
                "report.figures=true needs matplotlib: pip install 'bpo-data[figures]', or leave "
                "report.figures out."
            )
        if self.ablation:
            try:
                ablation.outcomes(self.ablation)
            except UserError as error:
                yield str(error)


def outside(config: ReportConfig) -> dict[str, str]:
    """The digest of the ablation's rows, so that other rows make another page."""
    if not config.ablation:
        return {}
    path = Path(config.ablation) / ablation.NAME
    return {f"ablation/{ablation.NAME}": disk.sha256(path)}


def schema(config: ReportConfig) -> pa.Schema:
    return columns(table=pa.string(), figure=pa.string(), value=pa.string())


def run(draft: Draft, config: ReportConfig, runtime: Runtime) -> None:
    table = pair_map.pair_table(draft.inputs)
    groups = clusters.cluster_table(table)
    depths = breadth.depth_table(draft.inputs["allocation"].facts)
    near = nearest_pairs(draft, table)
    draft.write_beside(pair_map.for_atlas(table, near), "map.parquet")
    draft.write_beside(groups, "clusters.parquet")
    draft.write_beside(depths, "depths.parquet")
    drawn = pair_map.sample(table, config.points)
    view = gathered(draft.inputs, config, table, groups, depths)
    recipe = origins.recipe(settings_by_stage(draft.inputs) | {"report": settings_of(config)})
    disk.write_bytes(recipe.encode(), draft.view("recipe.yaml"))
    folder = str(draft.folder).removesuffix(".partial")
    view |= {"recipe": recipe, "folder": folder, "neighbours": near is not None}
    view["has_hidden"] = privacy.HIDDEN in recipe
    html = page.render(view, pair_map.payload(drawn))
    disk.write_bytes(html.encode(), draft.view("report.html"))
    if config.figures:
        figures.draw(draft.view, table, drawn, depths, view["topics"]["wins"][:TOPICS])
    rows = [
        {"table": name, "figure": figure, "value": str(value)}
        for name, used in draft.inputs.items()
        for figure, value in leaves(used.facts).items()
    ]
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    draft.facts |= {"page_bytes": len(html.encode()), "points": drawn.num_rows}


def nearest_pairs(draft: Draft, table: pa.Table) -> pa.Array | None:
    """Neighbours by gradient of each row of ``table``; None, and a line, where that is too much."""
    why = neighbours.too_many(table.num_rows, draft.inputs["gradients"].facts["dim"])
    if why:
        draft.say(why)
        return None
    pairs = lookup(draft.inputs["pairs"].table(), "pair_id", table["pair_id"].combine_chunks())
    settings = ClusterConfig(**draft.inputs["clusters"].manifest["settings"])
    rows, _ = gradients_of(pairs, draft.inputs["gradients"].table(), settings)
    return neighbours.nearest(unit(rows))


def gathered(
    inputs: Mapping[str, Artifact],
    config: ReportConfig,
    table: pa.Table,
    groups: pa.Table,
    depths: pa.Table,
) -> dict[str, Any]:
    """Everything the template shows but the map's points."""
    wins = evaluation.by_topic(inputs)
    rounds = inputs["rounds"].facts["rounds"] if "rounds" in inputs else []
    breadths = breadth.topic_rows(inputs, table)
    requests = costs.request_rows(inputs)
    settings = privacy.without_secrets(settings_by_stage(inputs))
    members = judges.members(settings["score"])
    kept = table.filter(table["kept"])
    return {
        "facts": {name: used.facts for name, used in inputs.items()},
        "settings": settings,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "stand_ins": origins.stand_ins(settings["sft"], members),
        "judges": members,
        "said": evaluation.said(inputs["wins"].facts),
        "measured": evaluation.measured(inputs["wins"].facts, len(rounds)),
        "opponent": evaluation.opponent(inputs["wins"].facts),
        "evaluator": evaluation.evaluator(settings["score"], settings["evaluate"]),
        "depths": depths.to_pylist(),
        "rounds": rounds,
        "online": settings.get("rounds", {}),
        "curves": training.curves(inputs),
        "loss": evaluation.loss(settings["train"]["loss"]),
        "topics": {"wins": wins, "breadth": breadths, "most": TOPICS},
        "worlds": list(ablation.worlds(*ablation.outcomes(config.ablation)))
        if config.ablation
        else [],
        "ablation": config.ablation,
        "clusters": clusters.shown(groups, table, config.clusters),
        "clusters_total": groups.num_rows,
        "sampled_words": table.num_rows > words.SAMPLED,
        "pairs_total": table.num_rows,
        "points": min(config.points, table.num_rows),
        "length_tells": lengths.tells(kept),
        "authors": authors.authors([kept]),
        "hygiene": judging.figures(inputs["scores"]),
        "by_quota": clusters.by_quota(settings["allocate"]),
        "stages": costs.stage_rows(inputs),
        "dataset_name": inputs["dataset"].folder.name,
        "dataset_digest": inputs["dataset"].digest[:16],
        "requests": requests,
        "requests_total": costs.total(requests),
        "losses": losses.losses(inputs),
        "notes": list(notes(inputs)),
        "formats": inputs["dataset"].facts.get("formats") or {},
        "versions": origins.versions(),
    }


def notes(inputs: Mapping[str, Artifact]) -> Iterator[tuple[str, str, str]]:
    """(stage, what it had to say, its folder)."""
    for name, used in inputs.items():
        for said in used.facts.get("notes", []):
            yield costs.called(name, inputs), said, str(used.folder)


def settings_by_stage(inputs: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Those of the last round, where there are several: earlier ones bring "trained 1"."""
    return {
        used.manifest["stage"]: used.manifest["settings"]
        for name, used in inputs.items()
        if " " not in name
    }

"""Finished artifacts made by hand, so that a report's figures are known before it is written."""

from __future__ import annotations

import hashlib
import random
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data import disk
from bpo_data.artifacts import Artifact, Draft
from bpo_data.runtime import Runtime
from bpo_data.stages import STAGES, report
from bpo_data.stages.report import ReportConfig
from bpo_data.tables import vectors
from bpo_data.work import settings_of

EVIL = [
    "<script>window.owned = 1</script>",
    "</script><script>window.owned = 2</script>",
    "<!-- <script> --!>",
    "</td></table><img src=x onerror=window.owned=3>",
    '"><svg onload="window.owned = 4">',
    "{{ 7 * 7 }} {% raw %} }} { ${7*7}",
    "\u202eright to left\u202c \u2067 isolate \u200d\u200b",
    "\x00\x07\x1b[31m\x85 controls \u2028 and \u2029 ends",
    "w" * 3000,
    "javascript:alert(1) &lt;b&gt; &amp;",
    "\u6570\u636e \u0e02\u0e49\u0e2d\u0e21\u0e39\u0e25 \u05e9\u05dc\u05d5\u05dd",
]
CLUSTERS, DIM, DEPTH = 4, 16, 3
LENGTHS = {
    "pairs": 10, "chosen_longer": 5, "equally_long": 0, "longer_share": 0.5, "mean_chosen": 9.0,
    "mean_rejected": 9.0, "median_ratio": 1.0,
}  # fmt: skip
ESTIMATE = {"mean": 0.6012, "low": 0.55, "high": 0.65, "count": 40}


def rows_of(prompts: int) -> dict[str, list[dict[str, Any]]]:
    """``prompts`` prompts of three pairs, every second pair kept, words from a hostile list."""
    drawn = random.Random(7)
    tables: dict[str, list[dict[str, Any]]] = {}

    def add(table: str, **row: Any) -> None:
        tables.setdefault(table, []).append(row)

    for number in range(prompts):
        prompt = f"{number:016x}"
        text, topic = f"ask {number} {EVIL[number % len(EVIL)]}", EVIL[number % 3]
        add("prompts", prompt_id=prompt, prompt=[{"role": "user", "content": text}], topic=topic)
        add("selection", prompt_id=prompt, kept=True)
        for draw, winner in enumerate(("trained", "tie", "sft")[: 1 + number % 3]):
            add("wins", prompt_id=prompt, winner=winner, score_sft=4.0 + draw, score_trained=5.0)
        for draw in range(DEPTH + 1):
            evil = EVIL[(number + draw) % len(EVIL)]
            author = EVIL[draw] if draw else "policy"
            name, words = f"{prompt}/{draw:02d}", f"answer{draw} {evil}"
            add("responses", response_id=name, prompt_id=prompt, text=words, author=author)
        for draw in range(DEPTH):
            place = number * DEPTH + draw
            add("pairs", pair_id=f"{prompt}/{draw:02d}>{draw + 1:02d}", prompt_id=prompt,
                chosen_id=f"{prompt}/{draw:02d}", rejected_id=f"{prompt}/{draw + 1:02d}",
                margin=drawn.random())  # fmt: skip
            add("clusters", pair_id=f"{prompt}/{draw:02d}>{draw + 1:02d}",
                cluster=place % CLUSTERS, distance=drawn.random(), usefulness=drawn.random(),
                informativeness=drawn.random(), x=drawn.random(), y=drawn.random())  # fmt: skip
            add("allocation", pair_id=f"{prompt}/{draw:02d}>{draw + 1:02d}", prompt_id=prompt,
                kept=place % 2 == 0, depth=2 - number % 2)  # fmt: skip
    return tables


def facts_of(tables: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The facts that the page reads."""
    pairs, kept = len(tables["pairs"]), sum(row["kept"] for row in tables["allocation"])
    depth = Counter(row["prompt_id"] for row in tables["allocation"] if row["kept"])
    prompts = len(tables["prompts"])
    before = {str(DEPTH): prompts}
    after = {str(key): value for key, value in sorted(Counter(depth.values()).items())}
    states = {"ok": len(tables["responses"])}
    requests = {"replies": 7, "attempts": 9, "tokens_in": 70, "tokens_out": 700, "usd": 0.25}
    pair_facts = dict.fromkeys((name for name, _ in report.losses.PAIRS), 0)
    return {
        "prompts": {"rejected_by_reason": {"empty_response": 5}, "notices": {"role_marker": 3},
                    "rows_of_prompts_left_out_by_limit": 0},
        "embeddings": {"dim": 8, "empty": 0},
        "selection": {"coverage": 0.5, "coverage_by_lot": 0.4, "pool": prompts, "kept": prompts,
                      "clusters": 2, "near_duplicates": 0},
        "policy": {"kind": "scratch", "cut": 0, "dropped": 0, "refused": 0},
        "responses": {"states": {**states, "truncated": 2}},
        "scores": {"judge": EVIL[0], "agreement_with_given": None, "states": states,
                   "requests": {**requests, "states": {"ok": 6, "http_error": 1}}},
        "gradients": {"dim": DIM, "set_aside": {}},
        "pairs": {**pair_facts, "pairs_exchanged": 0, "lengths": {"possible": LENGTHS}},
        "clusters": {"clusters": CLUSTERS, "zero_gradients": 0, "starts_agree": None},
        "allocation": {"depths_before": before, "depths": after, "prompts_without_pairs": 0},
        "dataset": {"pairs": kept, "prompts": prompts, "pool": pairs, "mean_depth": 1.5,
                    "gini": 0.1, "gini_before": 0.0,
                    "lengths": {"candidates": LENGTHS, "kept": LENGTHS},
                    "notes": [EVIL[1]]},
        "trained": {"cut": 0, "dropped": 0, "refused": 0},
        "wins": {"prompts": prompts, "comparisons": len(tables["wins"]), "without_verdict": 0,
                 "ties": 4, "win_rate": ESTIMATE, "score_sft": ESTIMATE,
                 "score_trained": ESTIMATE, "pair_accuracy": None},
    }  # fmt: skip


HYGIENE = {"measure": "longer_wins", "judge": EVIL[0], "about": "", "value": 0.7, "count": 9,
           "low": 0.6, "high": 0.8, "flag": True, "note": EVIL[1]}  # fmt: skip


def artifacts(folder: Path, prompts: int = 40) -> dict[str, Artifact]:
    """One artifact a stage, each in a folder of its own, by the table it makes."""
    tables = rows_of(prompts)
    facts = facts_of(tables)
    settings = {"augment": {"client": "replay"}, "score": {"kind": "verifier"}}
    made = {}
    for name, stage in STAGES.items():
        if name == "report":
            continue
        place = folder / f"{name}-0123456789ab"
        files = {f"{stage.makes}.parquet": table_of(stage.makes, tables)}
        if name == "score":
            files["hygiene.parquet"] = pa.Table.from_pylist([HYGIENE])
        for file, table in files.items():
            disk.write_parquet(table, place / file)
        default = typing.get_type_hints(stage.module.schema)["config"]()
        manifest = {
            "stage": name,
            "settings": settings_of(default) | settings.get(name, {}),
            "table": [f"{stage.makes}.parquet"],
            "rows": files[f"{stage.makes}.parquet"].num_rows,
            "facts": facts[stage.makes],
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "files": {
                file: {"bytes": (place / file).stat().st_size, "sha256": disk.sha256(place / file)}
                for file in files
            },
            "seconds": 1.5,
            "made": "2026-11-21T12:00:00Z",
        }
        made[stage.makes] = Artifact(place, manifest)
    return made


def table_of(name: str, tables: dict[str, list[dict[str, Any]]]) -> pa.Table:
    if name != "gradients":
        return pa.Table.from_pylist(tables.get(name, [{"row": 1}]))
    count = len(tables["responses"])
    gradient = np.random.default_rng(3).standard_normal((count, DIM))
    ones = np.ones(count, dtype=np.float32)
    return pa.table(
        {
            "response_id": [row["response_id"] for row in tables["responses"]],
            "gradient": vectors(gradient),
            "scale": ones,
            "tokens": np.ones(count, dtype=np.int32),
            "log_prob": -ones,
            "reference_log_prob": -ones,
        }
    )


def write(folder: Path, config: ReportConfig, prompts: int = 40) -> Path:
    """The report of such artifacts; the folder it is in."""
    made = folder / "report-0123456789ab.partial"
    made.mkdir(parents=True)
    inputs = artifacts(folder, prompts)
    draft = Draft(made, "figures", report.schema(config), inputs, "report")
    report.run(draft, config, Runtime())
    return made


def large(pairs: int, characters: int) -> pa.Table:
    """As many pairs as a report may meet, four a prompt, with long texts that are all different."""
    drawn = np.random.default_rng(5)
    letters = np.array(list('abcdefgh <>&"\\\n\u6570'))
    long = "".join(letters[drawn.integers(0, len(letters), pairs + characters)])

    def texts(shift: int) -> list[str]:
        starts = (np.arange(pairs) * 7919 + shift) % pairs
        return [long[start : start + characters] for start in starts]

    prompts = [f"{place // 4:016x}" for place in range(pairs)]
    asked = texts(0)
    measures = ("x", "y", "distance", "usefulness", "informativeness", "margin")
    return pa.table(
        {
            "pair_id": [f"{name}/{at % 4:02d}>{at % 4 + 1:02d}" for at, name in enumerate(prompts)],
            "prompt_id": prompts,
            "kept": drawn.random(pairs) < 0.5,
            "depth": drawn.integers(0, 5, pairs, dtype=np.int32),
            "cluster": drawn.integers(0, 100, pairs, dtype=np.int32),
            **{name: drawn.random(pairs, dtype=np.float32) for name in measures},
            "text": [asked[place // 4] for place in range(pairs)],
            "topic": ["a"] * pairs,
            "chosen": texts(1),
            "rejected": texts(2),
            "author_chosen": ["a"] * pairs,
            "author_rejected": ["b"] * pairs,
        }
    )


def page_of(folder: Path, table: pa.Table, config: ReportConfig) -> Path:
    """A page over this table of pairs; facts are those of the small artifacts."""
    inputs = artifacts(folder)
    depths = report.breadth.depth_table(inputs["allocation"].facts)
    groups = report.clusters.cluster_table(table)
    view = report.gathered(inputs, config, table, groups, depths)
    view |= {"recipe": "", "folder": "runs/report-0123456789ab", "neighbours": False}
    view["has_hidden"] = False
    drawn = report.pair_map.sample(table, config.points)
    path = folder / "report.html"
    path.write_text(report.page.render(view, report.pair_map.payload(drawn)), encoding="utf-8")
    return path

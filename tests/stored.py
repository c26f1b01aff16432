"""Stored tables as the stages before ``export`` leave them, made up from a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bpo_data import disk
from bpo_data.artifacts import Artifact
from bpo_data.stages import allocate, augment, cluster, load, pair, score

SCHEMAS: dict[str, pa.Schema] = {
    "prompts": load.schema(load.LoadConfig()),
    "responses": augment.schema(augment.AugmentConfig()),
    "scores": score.schema(score.ScoreConfig()),
    "pairs": pair.schema(pair.PairConfig()),
    "clusters": cluster.schema(cluster.ClusterConfig()),
    "allocation": allocate.schema(allocate.AllocateConfig()),
}
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Shape:
    """One prompt: how long its texts are, which responses are paired, how many pairs are kept."""

    words: tuple[int, ...]
    """Of each response."""
    pairs: tuple[tuple[int, int], ...]
    kept: int
    """Of the pairs, those with the lowest ids."""
    criteria: tuple[str, ...] = ()
    """Names that the judge gave points for, to responses with an odd number."""
    reason: str = ""
    """The judge's, for the same."""


def prompt_rows(number: int, shape: Shape) -> Rows:
    """The rows of a prompt in every table."""
    name = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    rows: Rows = {key: [] for key in SCHEMAS}
    rows["prompts"].append(
        {
            "prompt_id": name,
            "prompt": [{"role": "user", "content": f"{number}: why?"}],
            "given": [],
            "topic": None if number % 3 else "topic",
            "reference": None,
            "split": "pool",
            "source": f"made.jsonl:{number}",
        }
    )
    for place, words in enumerate(shape.words):
        response, odd = f"{name}/{place:02d}", place % 2
        points = [{"name": one, "points": float(place)} for one in sorted(shape.criteria)]
        rows["responses"].append(
            {
                "response_id": response, "prompt_id": name, "number": place,
                "text": f"{number} {place}" + " word" * words, "author": f"m{place % 3}",
                "state": "ok", "tokens": None,
            }
        )  # fmt: skip
        rows["scores"].append(
            {
                "response_id": response, "judge": "judge", "score": float(place), "spread": None,
                "opinions": 1, "criteria": points or None if odd else None,
                "rationale": shape.reason or None if odd else None, "state": "ok", "reply": "",
            }
        )  # fmt: skip
    ids = sorted(
        (f"{name}/{chosen:02d}>{other:02d}", chosen, other) for chosen, other in shape.pairs
    )
    for place, (pair_id, chosen, rejected) in enumerate(ids):
        rows["pairs"].append(
            {
                "pair_id": pair_id, "prompt_id": name, "chosen_id": f"{name}/{chosen:02d}",
                "rejected_id": f"{name}/{rejected:02d}", "score_chosen": float(chosen),
                "score_rejected": float(rejected), "margin": (chosen - rejected) / 3,
                "p_chosen": None if number % 2 else 0.75,
            }
        )  # fmt: skip
        rows["clusters"].append(
            {
                "pair_id": pair_id, "cluster": place, "distance": 1.0, "usefulness": number / 7,
                "informativeness": 2.0, "x": 0.0, "y": 0.0,
            }
        )  # fmt: skip
        rows["allocation"].append(
            {
                "pair_id": pair_id, "prompt_id": name, "kept": place < shape.kept, "rank": None,
                "depth": min(shape.kept, len(ids)), "reason": "",
            }
        )  # fmt: skip
    return rows


def rows_of(shapes: list[Shape]) -> Rows:
    """Every table, in the order of the prompts' ids."""
    found = [prompt_rows(number, shape) for number, shape in enumerate(shapes)]
    found.sort(key=lambda rows: rows["prompts"][0]["prompt_id"])
    return {key: [row for rows in found for row in rows[key]] for key in SCHEMAS}


def artifacts(folder: Path, rows: Rows) -> dict[str, Artifact]:
    """The tables on disk."""
    found = {}
    for name, own in rows.items():
        table = pa.Table.from_pylist(own, SCHEMAS[name])
        disk.write_parquet(table, folder / name / f"{name}.parquet")
        found[name] = finished(folder / name, name)
    return found


def finished(folder: Path, name: str) -> Artifact:
    """The artifact of a folder that holds its table."""
    file = f"{name}.parquet"
    files = {file: {"bytes": 0, "sha256": disk.sha256(folder / file)}}
    rows = pq.ParquetFile(folder / file).metadata.num_rows
    return Artifact(folder, {"table": [file], "files": files, "rows": rows, "settings": {}})


def many(count: int) -> Iterator[Shape]:
    """Prompts with eight responses of very different lengths, one to four of five pairs kept."""
    for number in range(count):
        words = tuple(20 + 37 * (number * 7 + place * 13) % 400 for place in range(8))
        yield Shape(words, ((1, 0), (3, 0), (5, 2), (7, 4), (6, 1)), 1 + number % 4)

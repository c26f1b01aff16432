"""The dataset's rows, joined out of tables of some whole prompts, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.components.lengths import Bias, characters
from bpo_data.lots import highest_drawn
from bpo_data.statistics import gini_of_counts
from bpo_data.tables import MSG, lookup, lot

Tables = Mapping[str, pa.Table]
"""Rows of the same prompts out of each table, by its name."""


@dataclass(frozen=True)
class Draw:
    """Which prompts are of the test split: whole prompts, drawn by lot."""

    prompts: int
    """That have a kept pair."""
    pairs: int
    """Kept."""
    seed: int
    highest: str
    """Lot of the last one drawn, below every lot where none is."""

    def splits(self, prompt_ids: Sequence[str]) -> list[str]:
        """The split of each prompt."""
        lots = {name: lot_of(self.seed, name) for name in set(prompt_ids)}
        return ["test" if lots[name] <= self.highest else "train" for name in prompt_ids]


def lot_of(seed: int, prompt_id: str) -> str:
    return lot(seed, "export", prompt_id)


def draw(allocation: Callable[[], Iterable[pa.Table]], test_share: float, seed: int) -> Draw:
    """Draw the test split among the prompts with a kept pair; ``prompt_id`` and ``kept`` of the
    allocation are gone through a few times, in any pieces."""
    prompts = pairs = 0
    for names in kept_prompts(allocation()):
        prompts += len(names)
        pairs += names.total()
    highest = highest_drawn(
        lambda: (lot_of(seed, name) for names in kept_prompts(allocation()) for name in names),
        round(test_share * prompts),
    )
    return Draw(prompts, pairs, seed, highest)


def kept_prompts(allocation: Iterable[pa.Table]) -> Iterator[Counter[str]]:
    """The prompts with a kept pair and how many they have, some at a time."""
    open_end: Counter[str] = Counter()
    for rows in allocation:
        names = open_end + Counter(rows.filter(rows["kept"])["prompt_id"].to_pylist())
        last = next(reversed(names), None)
        open_end = Counter({last: names.pop(last)} if last else ())
        yield names
    yield open_end


def joined(kept: pa.Table, tables: Tables) -> pa.Table:
    """One row per kept pair with everything a trainer or a reader asks of it, but for its split."""
    pair = lookup(tables["pairs"], "pair_id", kept["pair_id"])
    place = lookup(tables["clusters"], "pair_id", kept["pair_id"])
    owner = lookup(tables["prompts"], "prompt_id", kept["prompt_id"])
    table = {
        "prompt": owner["prompt"],
        "pair_id": kept["pair_id"],
        "prompt_id": kept["prompt_id"],
        "depth": kept["depth"],
        "margin": pair["margin"],
        "p_chosen": pair["p_chosen"],
        "topic": owner["topic"],
        "source": owner["source"],
        **{name: place[name] for name in ("cluster", "usefulness", "informativeness")},
    }
    for side in ("chosen", "rejected"):
        answer = lookup(tables["responses"], "response_id", pair[f"{side}_id"])
        turns = [[{"role": "assistant", "content": text}] for text in answer["text"].to_pylist()]
        table[side] = pa.array(turns, MSG)
        table[f"author_{side}"] = answer["author"]
        table[f"score_{side}"] = pair[f"score_{side}"]
    return pa.table(table)


class Figures:
    """Counts for the card and the report, taken of whole prompts as they come."""

    def __init__(self, folder: Path) -> None:
        self.depths: Counter[int] = Counter()
        """Prompts by the pairs kept of them; those without any are not counted."""
        self.before: Counter[int] = Counter()
        """Prompts by the pairs they had."""
        self.splits: Counter[str] = Counter()
        self.margin = 0.0
        self.lengths = {"candidates": Bias(folder), "kept": Bias(folder)}

    def add(self, dataset: pa.Table, tables: Tables) -> None:
        """Rows of the dataset, and the tables of their prompts."""
        pairs, responses = tables["pairs"], tables["responses"]
        self.before.update(depths(tables["allocation"]))
        self.lengths["candidates"].add(characters(pairs, responses))
        if dataset.num_rows:
            own = lookup(pairs, "pair_id", dataset["pair_id"])
            self.lengths["kept"].add(characters(own, responses))
            self.depths.update(depths(dataset))
            self.splits.update(dataset["split"].to_pylist())
            self.margin += pc.sum(dataset["margin"]).as_py()

    def facts(self) -> dict[str, Any]:
        pairs, prompts = self.splits.total(), self.depths.total()
        return {
            "pairs": pairs,
            "prompts": prompts,
            "splits": dict(self.splits),
            "depths": {str(k): v for k, v in sorted(self.depths.items())},
            "mean_depth": round(pairs / prompts, 3),
            "gini": round(gini_of_counts(self.depths), 4),
            "gini_before": round(gini_of_counts(self.before), 4),
            "pool": sum(depth * count for depth, count in self.before.items()),
            "mean_margin": round(self.margin / pairs, 4),
            "lengths": {name: bias.facts() for name, bias in self.lengths.items()},
        }


def depths(rows: pa.Table) -> list[int]:
    """How many rows each of the prompts has that have any."""
    return list(Counter(rows["prompt_id"].to_pylist()).values())

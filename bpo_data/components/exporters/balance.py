"""What becomes of a format's rows in its trainer, and what the target tokenizer misreads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bpo_data.components.exporters.rows import CUT, DROPPED, Asked, Exporter, Row
from bpo_data.errors import plain
from bpo_data.statistics import gini_of_counts


class Tally:
    """What becomes of a format's rows: refused here, dropped or cut by the trainer, kept.

    Counted are rows of the train split, which is what a trainer trains on; ``lacking`` and ``rows``
    alone count all splits.
    """

    def __init__(self, exporter: Exporter, longest: int) -> None:
        self.exporter = exporter
        self.longest = longest
        self.refused: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self.alike = 0
        """Pairs of which the cut leaves two equal responses, which teach nothing."""
        self.tags: Counter[str] = Counter()
        self.depth: Counter[int] = Counter()
        """Prompts by their rows that the trainer keeps; those without any are not counted."""
        self.before: Counter[int] = Counter()
        """Prompts by their rows before the trainer cuts."""
        self.lacking: Counter[str] = Counter()
        self.rows = 0

    def add(self, asked: Asked, rows: Sequence[Row]) -> None:
        """All rows of a prompt."""
        self.rows += len(rows)
        self.lacking.update(row.reason for row in rows if row.reason)
        if asked.split != "train":
            return
        before = Counter(self.fate(row) for row in rows if not row.reason)
        for row in rows:
            self.tags.update(row.tags)
            if row.reason:
                self.refused[row.reason] += 1
        self.fates += before
        kept = before.total() - before[DROPPED]
        self.before.update([before.total()] if before else [])
        self.depth.update([kept] if kept else [])

    def fate(self, row: Row) -> str:
        """What the trainer does with a row of the train split."""
        if not self.longest or not all(answer.tokens for answer in row.answers):
            return "kept"
        fate = self.exporter.fate(row, self.longest)
        self.alike += fate == CUT and self.exporter.alike(row, self.longest)
        return fate

    def facts(self, why: str) -> dict[str, Any]:
        """For the manifest; without a target tokenizer only what it takes none to know."""
        facts = {"unit": self.exporter.unit, "refused": self.refused.total(), **self.tags}
        if self.refused:
            facts["reasons"] = dict(self.refused.most_common())
        if why:
            return {**facts, "why": why, "rows": self.fates.total()}
        return {
            **facts,
            "max_length": self.longest,
            "pairs": sum(depth * count for depth, count in self.depth.items()),
            "cut": self.fates[CUT],
            "alike": self.alike,
            "dropped": self.fates[DROPPED],
            "prompts": self.depth.total(),
            "depths": {str(k): v for k, v in sorted(self.depth.items())},
            "mean_depth": mean(self.depth),
            "gini": round(gini_of_counts(self.depth), 4),
            "rule": self.exporter.rule,
        }

    def words(self, name: str, written: bool) -> Iterator[str]:
        """What a person should know before training; ``written`` says that there are files."""
        unit, trained = self.exporter.unit, self.fates.total()
        if self.lacking:
            reason, _ = self.lacking.most_common(1)[0]
            lacks = f"formats/{name} lacks" if written else f"{name} would lack"
            more = ", and other reasons" if len(self.lacking) > 1 else ""
            where = "; left_out.parquet there names them" if written else ""
            yield (
                f"{lacks} {self.lacking.total():,} of {self.rows:,} {unit}: "
                f"{plain(reason)}{more}{where}"
            )
        if self.fates[CUT] or self.fates[DROPPED]:
            before, after = mean(self.before), mean(self.depth)
            alike = f" ({self.alike:,} of them to equal responses)" if self.alike else ""
            yield (
                f"{name} trained at {self.longest:,} tokens would drop {self.fates[DROPPED]:,} and "
                f"cut {self.fates[CUT]:,} of {trained:,} {unit} of the train split{alike}; mean "
                f"depth {before:g} -> {after:g}. Set export.max_length to what you will train with"
            )


def mean(prompts: Counter[int]) -> float:
    """The mean depth, of prompts by depth."""
    rows = sum(depth * count for depth, count in prompts.items())
    return round(rows / prompts.total(), 3) if prompts else 0.0


class Checks:
    """Pairs whose texts the target tokenizer misreads."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def add(self, asked: Asked) -> None:
        for pair in asked.pairs:
            ids = {asked.prompt_id, pair.chosen.response_id, pair.rejected.response_id}
            sides = [one.tokens for one in (pair.chosen, pair.rejected) if one.tokens]
            self.found["special_in_text"] += bool(ids & asked.special)
            self.found["refused"] += len(sides) < 2
            self.found["not_prefix"] += any(one.shared < one.prompt for one in sides)
            self.found["not_ended"] += any(one.ends == 0 for one in sides)
            self.found["ended_twice"] += any(one.ends > 1 for one in sides)
            self.found["not_read_back"] += any(not one.readable for one in sides)
            self.found["text_changed"] += any(not one.intact for one in sides)


SAID = {
    "not_prefix": "pairs have a prompt that the target's chat template does not write as the "
    "beginning of the conversation; trainers differ in what they make of that",
    "not_ended": "pairs have a response behind which the target's chat template writes no end "
    "token; a model trained on them does not learn to stop",
    "ended_twice": "pairs have more than one end token in a response",
    "not_read_back": "pairs lose letters in the target tokenizer",
    "text_changed": "pairs have a response that the target's chat template changes",
}
"""What is said of each finding, after how many of how many."""

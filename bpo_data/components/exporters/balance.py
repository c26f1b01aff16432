"""What becomes of a format's rows in its trainer, and what the target tokenizer misreads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from bpo_data.components.exporters.rows import CUT, DROPPED, Asked, Exporter, Row
from bpo_data.errors import plain
from bpo_data.statistics import gini


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
        self.depth: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        """Rows of each prompt before the trainer cuts."""
        self.lacking: Counter[str] = Counter()
        self.rows = 0

    def add(self, asked: Asked, row: Row) -> None:
        self.rows += 1
        if row.reason:
            self.lacking[row.reason] += 1
        if asked.split != "train":
            return
        self.tags.update(row.tags)
        if row.reason:
            self.refused[row.reason] += 1
            return
        self.before[asked.prompt_id] += 1
        fate = "kept"
        if self.longest and all(answer.tokens for answer in row.answers):
            fate = self.exporter.fate(row, self.longest)
        self.fates[fate] += 1
        self.alike += fate == CUT and self.exporter.alike(row, self.longest)
        if fate != DROPPED:
            self.depth[asked.prompt_id] += 1

    def facts(self, why: str) -> dict[str, Any]:
        """For the manifest; without a target tokenizer only what it takes none to know."""
        facts = {"unit": self.exporter.unit, "refused": self.refused.total(), **self.tags}
        if self.refused:
            facts["reasons"] = dict(self.refused.most_common())
        if why:
            return {**facts, "why": why, "rows": self.fates.total()}
        depths = list(self.depth.values())
        return {
            **facts,
            "max_length": self.longest,
            "pairs": sum(depths),
            "cut": self.fates[CUT],
            "alike": self.alike,
            "dropped": self.fates[DROPPED],
            "prompts": len(depths),
            "depths": {str(k): v for k, v in sorted(Counter(depths).items())},
            "mean_depth": mean(depths),
            "gini": round(gini(depths), 4),
            "rule": self.exporter.rule,
        }

    def words(self, name: str, written: bool) -> Iterator[str]:
        """What a person should know before training; ``written`` says that there are files."""
        unit, trained = self.exporter.unit, self.before.total()
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
            before, after = (mean(list(one.values())) for one in (self.before, self.depth))
            alike = f" ({self.alike:,} of them to equal responses)" if self.alike else ""
            yield (
                f"{name} trained at {self.longest:,} tokens would drop {self.fates[DROPPED]:,} and "
                f"cut {self.fates[CUT]:,} of {trained:,} {unit} of the train split{alike}; mean "
                f"depth {before:g} -> {after:g}. Set export.max_length to what you will train with"
            )


def mean(depths: list[int]) -> float:
    return round(sum(depths) / len(depths), 3) if depths else 0.0


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

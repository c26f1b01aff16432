"""Two policies' responses to the same prompts, before one judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bpo_data.components.judging import Item, Judge
from bpo_data.components.wins import WORTH, reasons_by_side, row_of, shown, win_figures
from bpo_data.evaluation.diversity import diversity
from bpo_data.evaluation.lengths import length_controlled
from bpo_data.generation import Sample
from bpo_data.llm.desk import Desk
from bpo_data.policy import Policy
from bpo_data.tables import lot

if TYPE_CHECKING:
    from bpo_data.artifacts import Draft
    from bpo_data.stages.evaluate import EvaluateConfig

DECODINGS = {"sampled": ("sampled",), "greedy": ("greedy",), "both": ("sampled", "greedy")}
"""What ``evaluate.decoding`` asks for; the stage's table holds the first."""
WRITTEN = ("ok", "truncated", "empty")
"""States of responses that a policy wrote; others were never sampled and cannot win or lose."""


@dataclass
class Contest:
    """Responses of both policies; ``asked`` and each side's samples are in the same order."""

    asked: list[dict[str, Any]]
    draws: int
    samples: dict[str, list[Sample]]

    def judged(self, judge: Judge, known: list[Item], desk: Desk) -> Judged:
        """What the judge says of all of them in one call: the same text gets the same points."""
        written = [
            (side, place, Item(row["prompt"], drawn.text, row["prompt_id"], row["reference"]))
            for side in self.samples
            for place, (row, drawn) in enumerate(zip(self.asked, self.samples[side], strict=True))
            if drawn.state in WRITTEN
        ]
        points: dict[str, list[float | None]] = {
            side: [None] * len(self.asked) for side in self.samples
        }
        reasons: dict[str, dict[str, int]] = {}
        if written:
            judgement = judge([item for _, _, item in written], known, desk)
            for (side, place, _), verdict in zip(written, judgement.verdicts, strict=True):
                points[side][place] = verdict.score
            reasons = reasons_by_side(judgement, [side for side, _, _ in written])
        rows = [
            row_of(prompt["prompt_id"], place % self.draws, place, self.samples, points)
            for place, prompt in enumerate(self.asked)
        ]
        return Judged(rows, reasons)

    def varied(self) -> dict[str, Any]:
        """``diversity`` of what each policy wrote."""
        return {
            side: diversity(one.text for one in drawn if one.state in WRITTEN)
            for side, drawn in self.samples.items()
        }


@dataclass
class Judged:
    """Rows of the stage's table, and ``reasons_by_side`` of what was said."""

    rows: list[dict[str, Any]]
    reasons: dict[str, dict[str, int]]

    def table(self, schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=schema)

    def figures(self, seed: int) -> dict[str, Any]:
        """``win_figures``, and the win rate at equal length."""
        controlled = length_controlled(map(longer, filter(decided, self.rows)), seed)
        return {**win_figures(self.rows), "length_controlled": shown(controlled)}


def decided(row: Mapping[str, Any]) -> bool:
    return bool(row["winner"])


def longer(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """(prompt_id, worth for the trained policy, characters its response is longer)."""
    characters = len(row["text_trained"]) - len(row["text_sft"])
    return row["prompt_id"], WORTH[row["winner"]], float(characters)


def rows_of(asked: list[dict[str, Any]], draws: int, decoding: str) -> list[dict[str, Any]]:
    """The rows to answer, of a list that has each prompt ``draws`` times: greedy ones have it once,
    since all would be the same."""
    return asked[::draws] if decoding == "greedy" else asked


def hold(
    draft: Draft,
    seats: Mapping[str, Policy],
    asked: list[dict[str, Any]],
    config: EvaluateConfig,
    decoding: str,
) -> Contest:
    """Both policies answer ``rows_of`` these; a row's seed is the same for both policies."""
    greedy = decoding == "greedy"
    draws = 1 if greedy else config.draws
    rows = rows_of(asked, config.draws, decoding)
    temperature = 0.0 if greedy else config.temperature
    samples = {
        side: answers(draft, policy, rows, config, draws, temperature)
        for side, policy in seats.items()
    }
    return Contest(rows, draws, samples)


def answers(
    draft: Draft,
    policy: Policy,
    asked: list[dict[str, Any]],
    config: EvaluateConfig,
    draws: int,
    temperature: float,
) -> list[Sample]:
    """A response of this policy for each row."""
    from bpo_data.generation import sample

    seeds = [
        int(lot(config.seed, "draw", f"{row['prompt_id']}/{place % draws}")[:8], 16)
        for place, row in enumerate(asked)
    ]
    with draft.bar(len(asked), "responses") as bar:
        return sample(
            policy,
            [row["prompt"] for row in asked],
            seeds,
            max_new_tokens=config.max_tokens,
            temperature=temperature,
            top_p=1.0,
            batch_rows=config.batch,
            progress=bar,
        )

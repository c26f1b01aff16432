"""What comparisons of the trained policy with the SFT policy come to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bpo_data.components.judging import Judgement
from bpo_data.generation import Sample
from bpo_data.statistics import Estimate, mean_by_prompt, share_by_prompt

SIDES = ("sft", "trained")
WORTH = {"trained": 1.0, "tie": 0.5, "sft": 0.0}
"""What a comparison's winner counts for the trained policy."""

REASONS = 12
"""Different reasons up to which they are kinds that can be counted; our choice."""
WORDY = 80
"""Characters from which on a reason is free text; our choice."""


def row_of(
    prompt_id: str,
    draw: int,
    place: int,
    samples: dict[str, list[Sample]],
    points: dict[str, list[float | None]],
) -> dict[str, Any]:
    """Both responses of a draw, their points and who won; null where a side has no points."""
    before, after = points["sft"][place], points["trained"][place]
    winner = None
    if before is not None and after is not None:
        winner = "tie" if after == before else "trained" if after > before else "sft"
    sides = {
        f"{name}_{side}": getattr(samples[side][place], name)
        for side in samples
        for name in ("text", "state")
    }
    return {
        "prompt_id": prompt_id,
        "draw": draw,
        **sides,
        "score_sft": before,
        "score_trained": after,
        "winner": winner,
    }


def win_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Win rate (ties half) and mean points with 95 % intervals over prompts."""
    decided = [row for row in rows if row["winner"]]
    return {
        "prompts": len({row["prompt_id"] for row in rows}),
        "comparisons": len(decided),
        "without_verdict": len(rows) - len(decided),
        "ties": sum(row["winner"] == "tie" for row in decided),
        "win_rate": shown(
            share_by_prompt((row["prompt_id"], WORTH[row["winner"]]) for row in decided)
        ),
        "score_sft": shown(mean_by_prompt((row["prompt_id"], row["score_sft"]) for row in decided)),
        "score_trained": shown(
            mean_by_prompt((row["prompt_id"], row["score_trained"]) for row in decided)
        ),
    }


def topic_figures(
    rows: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Mean points before and after, and comparisons, by the source's own topics."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, prompt in zip(rows, asked, strict=True):
        if row["winner"] and prompt["topic"]:
            groups.setdefault(prompt["topic"], []).append(row)
    return {
        topic: {
            "comparisons": len(found),
            "sft": round(sum(row["score_sft"] for row in found) / len(found), 3),
            "trained": round(sum(row["score_trained"] for row in found) / len(found), 3),
            "win_rate": round(sum(WORTH[row["winner"]] for row in found) / len(found), 3),
        }
        for topic, found in sorted(groups.items())
    }


def shown(estimate: Estimate | None) -> dict[str, float | None] | None:
    """An estimate as a manifest holds it; an interval that is not finite is null."""
    if estimate is None:
        return None
    return {
        name: round(value, 4) if math.isfinite(value) else None
        for name, value in vars(estimate).items()
    }


def reasons_by_side(judgement: Judgement, sides: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often the judge gave each reason for each policy's responses, the most frequent first.

    ``sides`` names the policy of each verdict. Empty where reasons are no few kinds: more than
    ``REASONS`` of them, one that is missing or longer than ``WORDY``, or a judge that says more
    than one thing of a response or compares two.
    """
    alone = len(judgement.opinions) == len(sides)
    if not alone or any(one.against is not None for one in judgement.opinions):
        return {}
    said = [verdict.reply for verdict in judgement.verdicts]
    kinds = Counter(said)
    if len(kinds) > REASONS or not all(0 < len(reason) <= WORDY for reason in kinds):
        return {}
    counts = Counter(zip(said, sides, strict=True))
    order = sorted(kinds, key=lambda reason: (-kinds[reason], reason))
    return {reason: {side: counts[reason, side] for side in SIDES} for reason in order}

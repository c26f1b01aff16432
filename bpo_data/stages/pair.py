"""Pairs of responses of one prompt: all with a margin above the floor, then some by lot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components.lengths import alike, bias, evened, first_of_each, lengths_of, side
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, lot, same_text

VERSION = 1
SCALES = ("score", "rank", "logit")


@dataclass
class PairConfig:
    per_prompt: int = 4
    """Pairs kept per prompt before the gradients choose among them. Our choice."""

    scale: str = "score"
    """What a margin is measured in: ``score`` points, ``rank`` within the prompt, or ``logit`` of a
    score that is a share in [0, 1] (saturated judges)."""

    min_margin: float = 0.0
    """A pair's margin must be greater than this, in units of the scale."""

    max_length_ratio: float = 0.0
    """No pair whose longer response has more than this many times the characters of the shorter.
    0, the default, is no bound."""

    match_length: bool = False
    """Exchange drawn pairs for others of the same prompt until the chosen response is the longer
    one as often as the shorter over all prompts, or none has a pair left to exchange. Prompts keep
    their depth. By how much it is longer is ``pair.max_length_ratio``'s to bound."""

    seed: int = 0
    """Draws the pairs of each prompt."""

    def problems(self) -> Iterator[str]:
        if self.per_prompt < 1:
            yield f"pair.per_prompt={self.per_prompt}: keep at least 1 pair for a prompt."
        if self.scale not in SCALES:
            yield f"pair.scale={self.scale}: choose {', '.join(SCALES)}."
        if self.min_margin < 0:
            yield f"pair.min_margin={self.min_margin}: a margin is 0 or more."
        if self.max_length_ratio != 0 and not 1 <= self.max_length_ratio < math.inf:
            yield (
                f"pair.max_length_ratio={self.max_length_ratio}: the longer of two responses is "
                f"at least 1 times as long as the shorter; 0 is no bound."
            )


def schema(config: PairConfig) -> pa.Schema:
    return columns(
        pair_id=ID,
        prompt_id=ID,
        chosen_id=ID,
        rejected_id=ID,
        score_chosen=pa.float32(),
        score_rejected=pa.float32(),
        margin=pa.float32(),
    )


def run(
    draft: Draft,
    config: PairConfig,
    runtime: Runtime,
    *,
    responses: pa.Table,
    scores: pa.Table,
) -> None:
    measured = draft.inputs["gradients"].table(["response_id"])["response_id"]
    usable = responses.filter(pc.is_in(responses["response_id"], measured.combine_chunks()))
    judged = dict(zip(scores["response_id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    by_prompt: dict[str, list[dict[str, Any]]] = {
        name: [] for name in sorted(responses["prompt_id"].unique().to_pylist())
    }
    for row in usable.to_pylist():
        score = judged.get(row["response_id"])
        if score is not None:
            by_prompt[row["prompt_id"]].append({**row, "score": score})
    distinct = {name: collapse(rows) for name, rows in by_prompt.items()}
    rows, facts = candidates(distinct, config)
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    with_score = sum(map(len, by_prompt.values()))
    draft.facts |= {
        **facts,
        "responses_without_score": usable.num_rows - with_score,
        "identical_responses_collapsed": with_score - sum(map(len, distinct.values())),
    }
    tell(draft, config)


def candidates(
    responses: dict[str, list[dict[str, Any]]], config: PairConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs drawn from each prompt's distinct responses, by id, and facts of the draw.

    Raises UserError when there is none.
    """
    drawn, spare, possible = {}, {}, []
    over, lost, one_kind = 0, 0, 0
    for name, distinct in responses.items():
        pairs = pairs_of(name, distinct, config)
        possible.append(lengths_of(pairs))
        near = [pair for pair in pairs if alike(pair, config.max_length_ratio)]
        over += len(pairs) - len(near)
        lost += bool(pairs) and not near
        one_kind += len({side(pair) for pair in near}) == 1
        order = sorted(near, key=lambda pair: lot(config.seed, "pair", pair["pair_id"]))
        drawn[name] = order[: config.per_prompt]
        spare[name] = first_of_each(order[config.per_prompt :], config.per_prompt)
    all_possible = np.concatenate(possible)
    if not any(drawn.values()):
        raise UserError(why_none(config, len(all_possible)))
    depths = [len(pairs) for pairs in drawn.values()]
    exchanged = 0
    if config.match_length:
        drawn, exchanged = evened(drawn, spare, config.seed)
    rows = sorted(chain.from_iterable(drawn.values()), key=lambda row: row["pair_id"])
    return rows, {
        "prompts": len(depths),
        "prompts_without_pairs": depths.count(0),
        "prompts_lost_to_length": lost,
        "prompts_short_of_pairs": sum(0 < depth < config.per_prompt for depth in depths),
        "prompts_of_one_kind": one_kind,
        "pairs_possible": len(all_possible),
        "pairs_over_length_ratio": over,
        "pairs_exchanged": exchanged,
        "lengths": {"possible": bias(all_possible), "candidates": bias(lengths_of(rows))},
    }


def tell(draft: Draft, config: PairConfig) -> None:
    """Say on the terminal and in the report what fell short."""
    facts = draft.facts
    prompts, lengths = facts["prompts"], facts["lengths"]["candidates"]
    draft.note(facts["prompts_without_pairs"], prompts, "prompts give no pair")
    draft.note(
        facts["prompts_short_of_pairs"],
        prompts,
        f"prompts give fewer than {config.per_prompt} pairs",
    )
    draft.note(
        facts["prompts_lost_to_length"],
        prompts,
        f"prompts have pairs, but none within pair.max_length_ratio={config.max_length_ratio:g}",
    )
    longer = lengths["chosen_longer"]
    shorter = lengths["pairs"] - lengths["equally_long"] - longer
    if config.match_length and abs(longer - shorter) > 1:
        draft.say(
            f"pair.match_length: chosen is the longer in {longer:,} pairs and the shorter in "
            f"{shorter:,}; no prompt has one left to exchange"
        )


def why_none(config: PairConfig, possible: int) -> str:
    """What to do when there is no pair at all."""
    if possible:
        return (
            f"pair: in each of {possible:,} pairs the longer response is over "
            f"pair.max_length_ratio={config.max_length_ratio:g} times the shorter. Raise it."
        )
    return (
        f"pair: no prompt has two responses whose scores differ by more than "
        f"pair.min_margin={config.min_margin} ({config.scale}). Lower it, try pair.scale=rank, "
        f"or raise augment.responses."
    )


def collapse(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Responses that read the same become one, the lowest number's, with their mean score."""
    same: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(responses, key=lambda row: row["number"]):
        same.setdefault(same_text(row["text"]), []).append(row)
    return [
        {**rows[0], "score": math.fsum(row["score"] for row in rows) / len(rows)}
        for rows in same.values()
    ]


def pairs_of(
    prompt_id: str, responses: list[dict[str, Any]], config: PairConfig
) -> list[dict[str, Any]]:
    """Every ordered pair of a prompt's distinct responses whose margin passes the floor."""
    points = scaled([row["score"] for row in responses], config.scale)
    found = []
    for (one, a), (other, b) in combinations(zip(responses, points, strict=True), 2):
        chosen, rejected = (one, other) if a > b else (other, one)
        if abs(a - b) > config.min_margin:
            numbers = f"{chosen['number']:02d}>{rejected['number']:02d}"
            found.append(
                {
                    "pair_id": f"{prompt_id}/{numbers}",
                    "prompt_id": prompt_id,
                    "chosen_id": chosen["response_id"],
                    "rejected_id": rejected["response_id"],
                    "score_chosen": chosen["score"],
                    "score_rejected": rejected["score"],
                    "margin": abs(a - b),
                    "chosen_length": len(chosen["text"]),
                    "rejected_length": len(rejected["text"]),
                }
            )
    return found


def scaled(scores: list[float], scale: str) -> list[float]:
    """Scores on the scale margins are measured in; equal scores stay equal."""
    if scale == "rank":
        place = {score: float(rank) for rank, score in enumerate(sorted(set(scores)))}
        return [place[score] for score in scores]
    if scale == "logit":
        if not all(0 <= score <= 1 for score in scores):
            raise UserError(
                f"pair.scale=logit needs scores in [0, 1]; there is one of "
                f"{next(score for score in scores if not 0 <= score <= 1):g}. Use score or rank."
            )
        # A judge's 0 or 1 is the end of what it can write, not certainty.
        inside = [min(max(score, 1e-6), 1 - 1e-6) for score in scores]
        return [math.log(score / (1 - score)) for score in inside]
    return scores

"""Online rounds side by side: what each sampled, kept and learnt.

After BPO in proximity to the behaviour LLM (Xu et al., arXiv 2406.12168): sample with the current
policy, judge, select, train, and begin again; the loss compares with the policy that sampled. The
other references, and the extrapolation, are settings of the same loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Artifact, Draft
from bpo_data.runtime import Runtime
from bpo_data.tables import columns, maybe

VERSION = 3
REFERENCES = ("behaviour", "sft", "ema")
PARTS = ("responses", "scores", "dataset", "trained")
"""Tables of each round that are looked at."""
AFTER = "wins"
"""The evaluation of a round's policy, where each is evaluated: none of the work of the round."""


@dataclass
class RoundsConfig:
    count: int = 1
    """Rounds of sampling, judging, selecting and training; the settings of these stages are those
    of one round, so that two rounds of ``train.steps=64`` make 128 updates. 1 is offline training.
    """

    reference: str = "behaviour"
    """What the loss of the second round and later ones compares the policy with: ``behaviour`` (the
    policy that sampled the round, as it is before the round's training), ``sft`` (the SFT policy,
    as iterative DPO often has it), or ``ema`` (a running mean of the weights of the SFT policy and
    of the policies that sampled)."""

    decay: float = 0.5
    """Share of the reference before that ``ema`` keeps at each new round; our choice."""

    extrapolate: float = 0.0
    """Each later round starts from, and samples with, the trained policy moved on by this share of
    the way from the one trained before it (the SFT policy, for the first), in the weights; 0 starts
    from the trained policy. A momentum after Accelerated Preference Optimization (arXiv
    2410.06293), which has it in the policy."""

    evaluate_each: bool = False
    """Where ``evaluate`` is asked for, evaluate the policy after each round, not after the last
    alone."""

    def problems(self) -> Iterator[str]:
        if self.count < 1:
            yield f"rounds.count={self.count}: use at least 1."
        if self.reference not in REFERENCES:
            yield f"rounds.reference={self.reference}: choose {', '.join(REFERENCES)}."
        if self.decay != RoundsConfig.decay and self.reference != "ema":
            yield (
                f"rounds.decay={self.decay:g} has no use with rounds.reference={self.reference}. "
                f"Set rounds.reference=ema, or leave rounds.decay out."
            )
        if not 0 < self.decay < 1:
            yield f"rounds.decay={self.decay:g}: use a share above 0 and below 1."
        if not 0 <= self.extrapolate <= 1:
            yield f"rounds.extrapolate={self.extrapolate:g}: use 0 to 1."


def schema(config: RoundsConfig) -> pa.Schema:
    """A row a round; log-probabilities and rewards in nats, times beta where they are rewards.
    ``usd`` is what the round's requests came to, without those of its evaluation."""
    return columns(
        round=pa.int32(),
        responses=pa.int64(),
        judged=pa.int64(),
        points=maybe(pa.float64()),
        pairs=pa.int64(),
        prompts=pa.int64(),
        updates=pa.int64(),
        first_loss=maybe(pa.float64()),
        margin=pa.float64(),
        accuracy=pa.float64(),
        chosen_over_reference=pa.float64(),
        trained_points=maybe(pa.float64()),
        win_rate=maybe(pa.float64()),
        usd=maybe(pa.float64()),
        dataset=pa.string(),
        policy=pa.string(),
    )


def run(draft: Draft, config: RoundsConfig, runtime: Runtime) -> None:
    """Write a row of each round, from what its stages made."""
    found = [
        row_of(number, of_round(draft.inputs, number)) for number in range(1, config.count + 1)
    ]
    draft.write(pa.Table.from_pylist(found, schema=draft.schema))
    draft.facts |= {
        "result": f"{config.count} rounds",
        "reference": config.reference,
        "rounds": found,
        "updates": sum(row["updates"] for row in found),
        "judged": sum(row["judged"] for row in found),
        "pairs": sum(row["pairs"] for row in found),
    }


def of_round(inputs: Mapping[str, Artifact], number: int) -> dict[str, Artifact]:
    """What is looked at of a round, by table: "trained 2" is ``trained`` of the second."""
    named = (name.split(" ") for name in inputs)
    return {table: inputs[f"{table} {own}"] for table, own in named if own == str(number)}


def row_of(number: int, made: Mapping[str, Artifact]) -> dict[str, Any]:
    """The figures of a round; ``points`` are of the responses that its policy wrote."""
    responses, scores, dataset, trained = (made[name] for name in PARTS)
    wrote = responses.table(["response_id", "author"])
    own = wrote.filter(pc.equal(wrote["author"], "policy"))["response_id"].combine_chunks()
    judged = scores.table(["response_id", "score"])
    points = pc.mean(judged.filter(pc.is_in(judged["response_id"], own))["score"]).as_py()
    figures = trained.facts
    asked = [made[name].facts.get("requests") or {} for name in PARTS]
    prices = [one["usd"] for one in asked if one.get("replies")]
    compared = made[AFTER].facts if AFTER in made else {}
    return {
        "round": number,
        "responses": len(own),
        "judged": judged.num_rows,
        "points": points,
        "pairs": dataset.facts["pairs"],
        "prompts": dataset.facts["prompts"],
        "updates": figures["updates"],
        "first_loss": figures["first_loss"],
        "margin": figures["margin"],
        "accuracy": figures["accuracy"],
        "chosen_over_reference": figures["chosen_over_reference"],
        "trained_points": mean_of(compared.get("score_trained")),
        "win_rate": mean_of(compared.get("win_rate")),
        "usd": None if any(price is None for price in prices) else sum(prices),
        "dataset": dataset.folder.name,
        "policy": trained.folder.name,
    }


def mean_of(estimate: Mapping[str, Any] | None) -> float | None:
    return estimate["mean"] if estimate else None

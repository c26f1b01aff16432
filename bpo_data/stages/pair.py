"""Pairs of responses of one prompt: all with a margin above the floor, of which some are drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Artifact, Draft
from bpo_data.components import constructions, criteria, kinds
from bpo_data.components.certainty import Opinions, certain, opinions_of
from bpo_data.components.constructions import Construction
from bpo_data.components.lengths import alike, bias, evened, first_of_each, lengths_of, side
from bpo_data.components.possible import by_prompt, collapse, pairs_of, pool_of, same_ids
from bpo_data.components.scales import SCALES
from bpo_data.errors import UserError, nearest
from bpo_data.runtime import Runtime
from bpo_data.stages.augment import AugmentConfig, author
from bpo_data.tables import ID, columns, maybe

VERSION = 3
AUTHORS = ("all", "policy", "source")


@dataclass
class PairConfig:
    kind: str = "lot"
    """Which pairs are drawn: by ``lot``; ``best_worst`` of the prompt; with margins evenly
    ``spread``; of ``adjacent`` ranks; with the ``low`` rejected nearest to mu - 2 sigma; or of
    responses kept by rejection sampling, ``rso``. Or ``package.module:name``. best_worst gives 1
    pair a prompt unless points tie."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind: ``temperature`` and ``samples`` of rso, ``deviations`` of low."""

    per_prompt: int = 4
    """Pairs kept per prompt before the gradients choose among them. Our choice."""

    scale: str = "score"
    """What a margin is measured in: ``score`` points, ``rank`` within the prompt, ``logit`` of a
    score that is a share in [0, 1] (saturated judges), or ``win``, the share of the prompt's other
    responses that a response beats, ties half."""

    criteria: dict[str, float] = field(default_factory=dict)
    """Weights of criteria whose sum stands in for the judge's score, a direction as in DPA:
    ``{helpfulness: 0.7, verbosity: -0.3}``. Responses that lack one of them take no part, and
    ``p_chosen`` is empty, since opinions are of the score. Empty is the score itself."""

    min_margin: float = 0.0
    """A pair's margin must be greater than this, in units of the scale."""

    authors: str = "all"
    """Whose responses may be in pairs: ``all``; those of the ``policy`` that augment samples from
    (on-policy only), known by the column author; or those of the ``source`` (off-policy only)."""

    max_uncertainty: float = 1.0
    """No pair of which more than this share of the judges' opinions does not put chosen above
    rejected, ties half, nor one with fewer than two opinions. It needs a judge with repeats, or
    several. 1, the default, is no bound; 0 keeps what all agree on."""

    max_length_ratio: float = 0.0
    """No pair whose longer response has more than this many times the characters of the shorter.
    0, the default, is no bound."""

    match_length: bool = False
    """Exchange drawn pairs for others of the same prompt until the chosen response is the longer
    one as often as the shorter over all prompts, or none has a pair left to exchange. Prompts keep
    their depth. By how much it is longer is ``pair.max_length_ratio``'s to bound."""

    seed: int = 0
    """Draws the pairs of each prompt."""

    def construction(self) -> Construction:
        """The way of drawing these settings name. Raises UserError."""
        found: Construction = kinds.build(constructions.KINDS, self.kind, self.options, "pair.kind")
        return found

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(constructions.KINDS, self.kind, self.options, "pair.kind")
        if self.per_prompt < 1:
            yield f"pair.per_prompt={self.per_prompt}: keep at least 1 pair for a prompt."
        if self.scale not in SCALES:
            yield f"pair.scale={self.scale}: choose {', '.join(SCALES)}."
        if self.min_margin < 0:
            yield f"pair.min_margin={self.min_margin}: a margin is 0 or more."
        if self.authors not in AUTHORS:
            yield (
                f"pair.authors={self.authors}: choose {', '.join(AUTHORS)}."
                f"{nearest(self.authors, AUTHORS)}"
            )
        if not 0 <= self.max_uncertainty <= 1:
            yield f"pair.max_uncertainty={self.max_uncertainty}: a share lies from 0 to 1."
        weights = self.criteria.values()
        if weights and not (any(weights) and all(map(math.isfinite, weights))):
            yield f"pair.criteria={self.criteria}: give finite weights, not all of them 0."
        if self.criteria and self.max_uncertainty < 1:
            yield (
                f"pair.max_uncertainty={self.max_uncertainty:g} compares opinions of the whole "
                f"score, which pair.criteria does not pair by. Leave one of them out."
            )
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
        p_chosen=maybe(pa.float32()),
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
    judged = criteria.points_of(scores, config.criteria)
    welcome = of_authors(usable, config.authors, draft.inputs)
    names = sorted(responses["prompt_id"].unique().to_pylist())
    opinions = Opinions() if config.criteria else opinions_of(draft.inputs["scores"])
    rows, count, facts = candidates(by_prompt(welcome, names, judged), config, opinions)
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    draft.facts |= {
        **facts,
        "responses_without_score": welcome.num_rows - count["judged"],
        "responses_of_other_authors": usable.num_rows - welcome.num_rows,
        "identical_responses_collapsed": count["judged"] - count["distinct"],
        "pairs_with_opinions": sum(row["p_chosen"] is not None for row in rows),
    }
    tell(draft, config)


def of_authors(responses: pa.Table, authors: str, inputs: dict[str, Artifact]) -> pa.Table:
    """The responses that ``pair.authors`` lets into pairs. Raises UserError without any."""
    if authors == "all":
        return responses
    policy = author(AugmentConfig(**inputs["responses"].manifest["settings"]))
    own = pc.equal(responses["author"], policy)
    found = responses.filter(own if authors == "policy" else pc.invert(own))
    if not found.num_rows:
        names = ", ".join(sorted(set(responses["author"].to_pylist()))[:5])
        raise UserError(
            f"pair.authors={authors}: the policy is {policy}, and all {responses.num_rows:,} "
            f"responses are by {names}. Use pair.authors=all."
        )
    return found


def candidates(
    responses: Iterable[tuple[str, list[dict[str, Any]]]], config: PairConfig, opinions: Opinions
) -> tuple[list[dict[str, Any]], Counter[str], dict[str, Any]]:
    """The pairs drawn from each prompt's judged responses, by id; counts and facts of the draw.

    Raises UserError when there is none.
    """
    construction = config.construction()
    drawn, spare, possible = {}, {}, []
    count: Counter[str] = Counter()
    for name, judged in responses:
        distinct = collapse(judged)
        same = same_ids(distinct)
        pairs = pairs_of(name, distinct, config)
        possible.append(lengths_of(pairs))
        near = [pair for pair in pairs if alike(pair, config.max_length_ratio)]
        agreed = near
        if config.max_uncertainty < 1:
            agreed = certain(near, same, config.max_uncertainty, opinions)
        points = pool_of(distinct, config)
        order = construction(points, agreed, config.per_prompt, config.seed) if agreed else []
        drawn[name] = order[: config.per_prompt]
        if config.match_length:
            spare[name] = first_of_each(order[config.per_prompt :], config.per_prompt)
        for pair in (*drawn[name], *spare.get(name, ())):
            pair["p_chosen"] = opinions.of_pair(pair, same)
        count["judged"] += len(judged)
        count["distinct"] += len(distinct)
        count["over"] += len(pairs) - len(near)
        count["uncertain"] += len(near) - len(agreed)
        count["lost_to_length"] += bool(pairs) and not near
        count["lost_to_uncertainty"] += bool(near) and not agreed
        count["lost_to_kind"] += bool(agreed) and not order
        count["one_kind"] += len({side(pair) for pair in order}) == 1
    all_possible = np.concatenate(possible)
    if not any(drawn.values()):
        raise UserError(why_none(config, len(all_possible), count))
    depths = [len(pairs) for pairs in drawn.values()]
    exchanged = 0
    if config.match_length:
        drawn, exchanged = evened(drawn, spare, config.seed)
    rows = sorted(chain.from_iterable(drawn.values()), key=itemgetter("pair_id"))
    return (
        rows,
        count,
        {
            "prompts": len(depths),
            "prompts_without_pairs": depths.count(0),
            "prompts_lost_to_length": count["lost_to_length"],
            "prompts_lost_to_uncertainty": count["lost_to_uncertainty"],
            "prompts_lost_to_kind": count["lost_to_kind"],
            "prompts_short_of_pairs": sum(0 < depth < config.per_prompt for depth in depths),
            "prompts_of_one_kind": count["one_kind"],
            "pairs_possible": len(all_possible),
            "pairs_over_length_ratio": count["over"],
            "pairs_over_uncertainty": count["uncertain"],
            "pairs_exchanged": exchanged,
            "lengths": {"possible": bias(all_possible), "candidates": bias(lengths_of(rows))},
        },
    )


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
    draft.note(
        facts["prompts_lost_to_uncertainty"],
        prompts,
        f"prompts have pairs, but none within pair.max_uncertainty={config.max_uncertainty:g}",
    )
    draft.note(
        facts["prompts_lost_to_kind"],
        prompts,
        f"prompts have pairs, but none that pair.kind={config.kind} takes",
    )
    longer = lengths["chosen_longer"]
    shorter = lengths["pairs"] - lengths["equally_long"] - longer
    if config.match_length and abs(longer - shorter) > 1:
        draft.say(
            f"pair.match_length: chosen is the longer in {longer:,} pairs and the shorter in "
            f"{shorter:,}; no prompt has one left to exchange"
        )


def why_none(config: PairConfig, possible: int, count: Counter[str]) -> str:
    """What to do when there is no pair at all."""
    left = possible - count["over"]
    if possible and not left:
        return (
            f"pair: in each of {possible:,} pairs the longer response is over "
            f"pair.max_length_ratio={config.max_length_ratio:g} times the shorter. Raise it."
        )
    if possible and left == count["uncertain"]:
        return (
            f"pair: none of {left:,} pairs has two opinions of judges and is within "
            f"pair.max_uncertainty={config.max_uncertainty:g}. Raise it, or let score ask a judge "
            f"more than once, or several: score.options.repeats, score.kind=panel."
        )
    if possible:
        return (
            f"pair: pair.kind={config.kind} takes none of {left - count['uncertain']:,} pairs. "
            f"Loosen the filters of pair, or use pair.kind=lot."
        )
    return (
        f"pair: no prompt has two responses whose scores differ by more than "
        f"pair.min_margin={config.min_margin} ({config.scale}). Lower it, try pair.scale=rank, "
        f"or raise augment.responses."
    )

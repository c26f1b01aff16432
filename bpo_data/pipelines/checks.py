"""What is wrong with settings of several sections together, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyarrow.types import is_floating

from bpo_data.components.judging import Item, requests_of
from bpo_data.errors import UserError, nearest
from bpo_data.llm.prices import read_prices
from bpo_data.policy import check_location
from bpo_data.stages import STAGES

if TYPE_CHECKING:
    from bpo_data.pipelines.config import Config

SILENT = ("pairwise", "reward_model", "preference", "verifier")
"""Judges that give one number and none by criterion."""
TWO_ANSWERS = [Item([{"role": "user", "content": "?"}], text, "1") for text in ("yes", "no")]
"""What any judge would ask about, to see which models it asks."""


def together(config: Config) -> Iterator[str]:
    """A line for each."""
    yield from impossible_budgets(config)
    if config.score.kind == "given" and config.augment.client != "replay":
        yield (
            f"score.kind=given knows the source's own responses alone, so those of "
            f"augment.client={config.augment.client} would have no points. Set "
            f"augment.client=replay, or another score.kind."
        )
    trained = config.sft.kind != "given"
    if config.gradients.preconditioner == "adam" and trained and not config.sft.keep_moments:
        yield "gradients.preconditioner=adam wants Adam's moments: set sft.keep_moments=true."
    if config.allocate.kind == "ifd" and not config.gradients.unprompted:
        yield "allocate.kind=ifd compares with no prompt: set gradients.unprompted=true."
    yield from impossible_pairs(config)
    yield from unknown_criteria(config)
    yield from impossible_rounds(config)
    yield from missing_columns(config)
    if config.sft.model:
        try:
            check_location(config.sft.model)
        except UserError as error:
            yield str(error)
    yield from missing_prices(config)


def impossible_pairs(config: Config) -> Iterator[str]:
    """Filters of pairs that these settings can leave nothing of."""
    if config.pair.authors == "policy" and config.augment.client == "replay":
        yield (
            "pair.authors=policy wants responses of the policy, and augment.client=replay "
            "samples none. Use pair.authors=all, or another augment.client."
        )
    if config.pair.max_uncertainty < 1 and not config.score.repeated:
        yield (
            f"pair.max_uncertainty={config.pair.max_uncertainty:g} compares opinions, and "
            f"score.kind={config.score.kind} has one of each response. Ask more often "
            f"(score.options.repeats), or several judges (score.kind=panel)."
        )


def unknown_criteria(config: Config) -> Iterator[str]:
    """Criteria to pair by that a rubric with named criteria is not asked for."""
    asked = config.score.options.get("criteria")
    if config.pair.criteria and (
        config.score.kind in SILENT or (config.score.kind == "rubric" and not asked)
    ):
        yield (
            f"pair.criteria wants points by criterion, and score.kind={config.score.kind} gives "
            f"none as it is set. Name them in score.options.criteria of score.kind=rubric, or use "
            f"score.kind=panel."
        )
    if config.score.kind != "rubric" or not isinstance(asked, dict):
        return
    for name in config.pair.criteria:
        if name not in asked:
            yield (
                f"pair.criteria.{name} is none of score.options.criteria.{nearest(name, asked)} "
                f"There are {', '.join(asked)}."
            )


def impossible_rounds(config: Config) -> Iterator[str]:
    """What several rounds cannot be done with."""
    if config.rounds.count == 1:
        return
    if config.augment.client != "local":
        yield (
            f"rounds.count={config.rounds.count} samples each round from the policy that the one "
            f"before trained, and augment.client={config.augment.client} does not. Use "
            f"augment.client=local, or rounds.count=1."
        )
    if config.gradients.reference and config.rounds.reference != "behaviour":
        yield (
            f"rounds.reference={config.rounds.reference} and gradients.reference name two "
            f"references. Leave one of them out."
        )
    if config.gradients.preconditioner == "adam":
        yield (
            "gradients.preconditioner=adam has moments of the SFT training alone, which later "
            "rounds have left behind. Use gradients.preconditioner=none, or rounds.count=1."
        )


def missing_columns(config: Config) -> Iterator[str]:
    """Columns that the training asks for and no stage before it makes."""
    losses, weights = config.train.loss.split("+"), config.train.weights
    schemas = [STAGES[name].module.schema(getattr(config, name)) for name in ("export", "pair")]
    known = {field.name for schema in schemas for field in schema if is_floating(field.type)}
    if weights != "none" and weights not in known:
        yield (
            f"train.weights={weights} is no column of the dataset.{nearest(weights, known)} "
            f"Use none, or one of {', '.join(sorted(known))}."
        )
    certain = config.score.repeated and not config.pair.criteria
    if "smoothed" in losses and not certain and not config.train.label_smoothing:
        yield "train.loss=smoothed without judges' p_chosen: set train.label_smoothing above 0."
    if "inpo" in losses and "shift_chosen" not in known and not second_reference(config):
        yield (
            "train.loss=inpo has two references: name the second in gradients.reference, or "
            "run rounds with rounds.reference=sft."
        )


def second_reference(config: Config) -> bool:
    """Whether the gradients stage is given a reference other than the policy."""
    online = config.rounds.count > 1 and config.rounds.reference != "behaviour"
    return bool(config.gradients.reference) or online


def missing_prices(config: Config) -> Iterator[str]:
    """Models that a cap in dollars cannot reckon with; found before anything is made."""
    if config.budget.usd is None or not config.budget.prices:
        return
    try:
        prices = read_prices(config.budget.prices)
        models = dict.fromkeys(asked_models(config))
    except UserError:  # told where it belongs
        return
    for model in models:
        if prices.of(model) is None:
            yield (
                f"budget.prices={config.budget.prices} has no price of {model}, so "
                f"budget.usd={config.budget.usd:g} cannot be kept. Add the model to the file."
            )


def asked_models(config: Config) -> Iterator[str]:
    """The models that these settings ask at servers."""
    if config.embed.kind == "server":
        yield str(config.embed.options.get("model"))
    if config.augment.client == "openai":
        yield config.augment.model
    for judge in (config.score.judge(), config.evaluate.judge(config.score)):
        for _, request, _ in requests_of(judge, TWO_ANSWERS):
            yield request.model


def impossible_budgets(config: Config) -> Iterator[str]:
    """Numbers that no data can make fit; the allocate stage checks again with the real ones."""
    keep, budget, per_prompt = config.select.keep, config.allocate.budget, config.pair.per_prompt
    if not keep or not budget or any(config.allocate.problems()):
        return
    floor, depth = config.allocate.limits(per_prompt)
    if budget > keep * depth:
        yield (
            f"allocate.budget={budget} is above the pool: select.keep={keep} prompts of at "
            f"most {depth} pairs are {keep * depth}. Lower allocate.budget, or raise "
            f"select.keep or pair.per_prompt."
        )
    if floor and budget < keep:
        yield (
            f"allocate.budget={budget} is below select.keep={keep}, and each kept prompt is to "
            f"have a pair. Raise allocate.budget, lower select.keep, or set "
            f"allocate.floor=false."
        )

"""How far training has moved the policy: the KL divergence to its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_data.components.wins import shown
from bpo_data.policy import Policy, prompt_tokens
from bpo_data.statistics import Estimate, mean_by_prompt

if TYPE_CHECKING:
    from bpo_data.generation import Sample


@dataclass(frozen=True)
class Divergence:
    """Estimates of KL(policy || reference), in nats."""

    per_response: Estimate
    per_token: Estimate


def divergence(
    policy: Policy,
    reference: Policy,
    asked: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
) -> Divergence | None:
    """KL of ``policy`` to ``reference`` over its own ``samples`` for the prompts ``asked``.

    The plain Monte Carlo estimator: the mean of ``log pi(y|x) - log ref(y|x)`` over sampled tokens,
    the end token included, is unbiased when ``y`` was drawn from ``pi`` at temperature 1; the
    divergence is that of responses cut at the longest sampled. A single term, and so an estimate
    near 0, can be negative. ``per_response`` is the mean over prompts of each prompt's mean;
    ``per_token`` is all nats over all tokens. Intervals are Student's over prompts, so that the
    standard error is that of the mean over prompts. None where nothing was sampled.
    """
    from bpo_data.likelihood import log_probs_of_tokens

    drawn = [
        (row["prompt_id"], prompt_tokens(policy.tokenizer, row["prompt"]), list(one.ids))
        for row, one in zip(asked, samples, strict=True)
        if one.ids
    ]
    if not drawn:
        return None
    rows = [(prompt, response) for _, prompt, response in drawn]
    ratios = log_probs_of_tokens(policy, rows) - log_probs_of_tokens(reference, rows)
    prompts = [name for name, _, _ in drawn]
    mean = mean_by_prompt(zip(prompts, ratios.tolist(), strict=True))
    if mean is None:
        raise AssertionError("there are samples")
    tokens = [len(response) for _, response in rows]
    return Divergence(mean, ratio_by_prompt(prompts, ratios.tolist(), tokens))


def ratio_by_prompt(
    prompts: Sequence[str], above: Sequence[float], below: Sequence[int]
) -> Estimate:
    """The sum of ``above`` over that of ``below``, prompts being what was sampled.

    The interval is Student's of the prompts' residuals ``above - ratio * below`` over the mean of
    ``below`` (the delta method; Cochran 1977, "Sampling techniques", section 6.3). One prompt has
    none: its ends are not finite.
    """
    sums: dict[str, list[float]] = {}
    for name, one, other in zip(prompts, above, below, strict=True):
        both = sums.setdefault(name, [0.0, 0.0])
        both[0] += one
        both[1] += other
    ratio = sum(above) / sum(below)
    mean = sum(below) / len(sums)
    residuals = mean_by_prompt(
        (name, (one - ratio * other) / mean) for name, (one, other) in sums.items()
    )
    if residuals is None:
        raise AssertionError("there are prompts")
    return Estimate(ratio, ratio + residuals.low, ratio + residuals.high, len(sums))


def divergence_figures(found: Divergence | None) -> dict[str, Any] | None:
    """As the manifest holds it."""
    if found is None:
        return None
    return {name: shown(estimate) for name, estimate in vars(found).items()}

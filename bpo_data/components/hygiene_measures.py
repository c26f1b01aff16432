"""The closed set of hygiene measures: what each says, and from where on it is worth a warning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bpo_data.components.hygiene_cases import over_prompts
from bpo_data.tables import columns, maybe

SCHEMA = columns(
    measure=pa.string(),
    judge=pa.string(),
    about=pa.string(),
    value=maybe(pa.float64()),
    count=pa.int64(),
    low=maybe(pa.float64()),
    high=maybe(pa.float64()),
    flag=pa.bool_(),
    note=pa.string(),
)

PROMPTS_FOR_A_FLAG = 10
"""With fewer prompts an interval is too rough to warn by."""

SHARE = (0.0, 1.0)
SIGNED = (-1.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """A figure of the report. The bounds are ours: what we would want to be told of."""

    says: str
    """What the value is."""
    note: str
    """The row's sentence, with ``{percent}``, ``{value}`` and ``{count}`` of its own."""
    ends: tuple[float, float] | None = SHARE
    """Lowest and highest possible value; None where there is no end."""
    below: float | None = None
    """Flagged when the whole interval (without one: the value) lies below this ..."""
    above: float | None = None
    """... or above this."""


MEASURES = {
    "null_rate": Measure(
        "Share of a judge's opinions, or of the verdicts, that hold no points.",
        "{judge}: {percent} of {count:,} hold no points.",
        above=0.01,
    ),
    "null_by_state": Measure(
        "Share of a judge's opinions that hold no points, by state.",
        "{judge}: {percent} of {count:,} hold no points and are {about}.",
    ),
    "null_by_level": Measure(
        "Share of a judge's opinions that hold no points, by what was found in the words.",
        "{judge}: {percent} of {count:,} hold no points because the words are {about}.",
    ),
    "comparison_ties": Measure(
        "Share of a judge's readable comparisons that end in a tie.",
        "{judge}: {percent} of {count:,} comparisons are ties.",
    ),
    "seat_flip_rate": Measure(
        "Share of pairs compared in both seats where another response wins when the seats change; "
        "of all pairs with two readable outcomes, ties among them.",
        "{judge}: another winner in {percent} of {count:,} pairs when the seats change.",
        above=0.1,
    ),
    "seat_disagreement": Measure(
        "The seat flips, and the pairs that tie in one seat alone.",
        "{judge}: another outcome in {percent} of {count:,} pairs when the seats change.",
        above=0.2,
    ),
    "first_seat_wins": Measure(
        "Share that the response shown first wins of pairs compared in both seats, a tie half; "
        "without a taste for a seat 0.5.",
        "{judge}: the response shown first wins {percent} over both seats of {count:,} pairs.",
        below=0.45,
        above=0.55,
    ),
    "judge_order": Measure(
        "Share of pairs within prompts that two judges put in the same order, without ties.",
        "{judge} and {about}: the same order in {percent} of {count:,} pairs; "
        "{ties:,} more are ties to one of them.",
        below=0.6,
    ),
    "judge_spearman": Measure(
        "Spearman's correlation of two judges' points within a prompt, mean over prompts.",
        "{judge} and {about}: correlation {value:.2f} within prompts, over {count:,} prompts; "
        "{without:,} have none.",
        ends=SIGNED,
        below=0.3,
    ),
    "judge_same": Measure(
        "Share of compared pairs with the same outcome for two judges, ties among them; each "
        "judge's outcome is the mean over its seats and repeats.",
        "{judge} and {about}: the same outcome in {percent} of {count:,} pairs.",
        below=0.6,
    ),
    "judge_kappa": Measure(
        "Cohen's kappa of these outcomes; every pair counts in both directions, as neither "
        "response comes first by right.",
        "{judge} and {about}: kappa {value:.2f} over {count:,} pairs.",
        ends=SIGNED,
    ),
    "repeat_exact": Measure(
        "Share of questions asked several times that got the same points every time.",
        "{judge}: the same points every time for {percent} of {count:,} questions asked again.",
    ),
    "repeat_difference": Measure(
        "Mean absolute difference, in points, of two answers to the same question.",
        "{judge}: two answers differ by {value:.3g} points on average, over {count:,} questions.",
        ends=None,
    ),
    "repeat_order": Measure(
        "Share of pairs within prompts that two askings put in the same order, without ties.",
        "{judge}: two askings order a pair alike {percent} of the time, over {count:,} pairs.",
        below=0.8,
    ),
    "longer_wins": Measure(
        "Share of pairs within prompts, without ties in points or length, that the longer wins.",
        "{judge}: the longer response wins {percent} of {count:,} pairs.",
        below=0.4,
        above=0.6,
    ),
    "length_spearman": Measure(
        "Spearman's correlation of points and length (code points) within a prompt, mean over "
        "prompts.",
        "{judge}: points and length correlate by {value:.2f} within prompts, over {count:,} "
        "prompts; {without:,} have no correlation.",
        ends=SIGNED,
        below=-0.3,
        above=0.3,
    ),
    "own_family_wins": Measure(
        "Share that responses by models of the judge's family win against others, a tie half; "
        "they may be better.",
        "{judge}: responses by its family {about} win {percent} of {count:,} pairs with others.",
    ),
    "own_family_excess": Measure(
        "How much larger that share is than what judges of other families give the same pairs.",
        "{judge}: responses by its family {about} win {value:+.3f} more of a pair than other "
        "judges give them, over {count:,} pairs and judges.",
        ends=SIGNED,
        above=0.0,
    ),
    "top_share": Measure(
        "Share of verdicts at the top of the scale (within 1 % of its length).",
        "{percent} of {count:,} verdicts are at the top of the scale, {about}.",
        above=0.5,
    ),
    "bottom_share": Measure(
        "Share of verdicts at the bottom of the scale (within 1 % of its length).",
        "{percent} of {count:,} verdicts are at the bottom of the scale, {about}.",
        above=0.5,
    ),
    "modal_share": Measure(
        "Share of verdicts that are the most frequent one.",
        "{percent} of {count:,} verdicts are {about}.",
        above=0.5,
    ),
    "tied_pairs": Measure(
        "Share of pairs of distinct texts within prompts that got the same points.",
        "{percent} of {count:,} pairs have equal points and cannot be told apart.",
        above=0.5,
    ),
    "tied_prompts": Measure(
        "Share of prompts with several distinct texts whose points are all the same.",
        "{percent} of {count:,} prompts have the same points throughout.",
        above=0.2,
    ),
    "same_texts": Measure(
        "Share of responses whose text stands under several prompts.",
        "{percent} of {count:,} responses are one of {texts:,} texts that stand under {least} or "
        "more prompts.",
    ),
    "same_text_rank": Measure(
        "Of a text that stands under several prompts: the share of a prompt's other texts that it "
        "beats, a tie half, mean over prompts; chance gives 0.5. Flagged when it is above the "
        "middle more often than a response drawn by lot would be (binomial test at 5 %, divided "
        "by the number of texts tested).",
        "{about} beats {percent} of the other texts of its {count:,} prompts; it is above the "
        "middle in {above:,}, by chance in {chance:.1f}.",
    ),
    "same_text_lead": Measure(
        "Of the same text: its points less the mean of the prompt's other texts, mean over "
        "prompts.",
        "{about} gets {points:.3g} points under {count:,} prompts, other texts there {rest:.3g}.",
        ends=None,
    ),
}
"""Each measure by name. A mean is over prompts of each prompt's mean, and so is its interval."""


def share_row(measure: str, judge: str, about: str, part: int, whole: int) -> dict[str, Any]:
    """A plain share of cases."""
    return row(measure, judge, about, part / whole if whole else None, whole)


def prompts_row(
    measure: str, judge: str, about: str, prompt: np.ndarray, values: np.ndarray, **facts: Any
) -> dict[str, Any]:
    """A mean over prompts of these cases: (m,) prompts and values."""
    values = np.asarray(values, np.float64)
    found = over_prompts(prompt, values, MEASURES[measure].ends)
    if found is None:
        return row(measure, judge, about, None, 0)
    ends = (found.low, found.high) if np.isfinite(found.low) else None
    sure = ends is not None and found.count >= PROMPTS_FOR_A_FLAG
    facts = {"sure": sure, **facts}
    return row(measure, judge, about, found.mean, len(values), ends, **facts)


def row(
    measure: str,
    judge: str,
    about: str,
    value: float | None,
    count: int,
    ends: tuple[float, float] | None = None,
    sure: bool = True,
    **facts: Any,
) -> dict[str, Any]:
    """A row of the table; ``facts`` fill the note, ``sure`` says whether it may be flagged."""
    kind = MEASURES[measure]
    names = {"measure": measure, "judge": judge, "about": about}
    if value is None or not count:
        empty = {"value": None, "count": 0, "low": None, "high": None, "flag": False}
        return {**names, **empty, "note": f"{judge}: there is no case to measure this on."}
    low, high = ends or (value, value)
    beyond = (kind.below is not None and high < kind.below) or (
        kind.above is not None and low > kind.above
    )
    percent = f"{100 * value:.1f} %"
    note = kind.note.format(**names, value=value, percent=percent, count=count, **facts)
    return {
        **names,
        "value": value,
        "count": count,
        "low": ends and low,
        "high": ends and high,
        "flag": bool(sure and beyond),
        "note": note,
    }

"""What was lost on the way, each with the file that has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bpo_data.artifacts import Artifact


@dataclass(frozen=True)
class Loss:
    stage: str
    count: int
    what: str
    file: str
    """Where each is to be found, with the column that tells where there is one."""


def losses(inputs: Mapping[str, Artifact]) -> list[Loss]:
    """All that fell out or fell short, those that did not happen too (their count is 0)."""
    facts = {name: used.facts for name, used in inputs.items()}
    folder = {name: used.folder for name, used in inputs.items()}
    found = [*of_sources(facts), *of_responses(facts), *of_pairs(facts), *of_training(facts)]
    return [
        Loss(stage, count, what, f"{folder[table]}/{name}")
        for stage, table, name, count, what in found
    ]


Found = tuple[str, str, str, int, str]
"""Stage, its table, the file, how many, what."""


def of_sources(facts: Mapping[str, Any]) -> Iterator[Found]:
    loaded = facts["prompts"]
    rejected = loaded["rejected_by_reason"]
    for reason, count in rejected.items():
        yield "load", "prompts", "rejected.parquet", count, f"rows set aside: {plainly(reason)}"
    if not rejected:
        yield "load", "prompts", "rejected.parquet", 0, "rows set aside"
    left_out = loaded["rows_of_prompts_left_out_by_limit"]
    yield "load", "prompts", "manifest.json", left_out, "rows of prompts that load.limit leaves out"
    empty = facts["embeddings"].get("empty", 0)
    yield "embed", "embeddings", "embeddings.parquet", empty, "prompts without a word to embed"
    repeated = facts["selection"]["near_duplicates"]
    where = "selection.parquet, column duplicate_of"
    yield "select", "selection", where, repeated, "prompts that nearly repeat another"


def of_responses(facts: Mapping[str, Any]) -> Iterator[Found]:
    tables = (
        ("augment", "responses", "responses-*.parquet", "responses not usable"),
        ("score", "scores", "scores.parquet", "responses without points"),
    )
    for stage, table, file, what in tables:
        bad = {state: count for state, count in facts[table]["states"].items() if state != "ok"}
        for state, count in bad.items():
            yield stage, table, f"{file}, column state", count, f"{what}: {plainly(state)}"
        if not bad:
            yield stage, table, file, 0, what
    aside = facts["gradients"]["set_aside"]
    for reason, count in aside.items():
        yield (
            "gradients",
            "gradients",
            "set_aside.parquet",
            count,
            f"responses set aside: {plainly(reason)}",
        )
    if not aside:
        yield "gradients", "gradients", "set_aside.parquet", 0, "responses set aside"


PAIRS = (
    ("responses_without_score", "responses without points, in no pair"),
    ("identical_responses_collapsed", "identical responses of a prompt, collapsed into one"),
    ("prompts_without_pairs", "prompts without any pair: no margin above the floor"),
    ("prompts_lost_to_length", "of these, prompts with pairs but none of near enough length"),
    ("prompts_lost_to_uncertainty", "of these, prompts with pairs but none judges are sure of"),
    ("prompts_lost_to_kind", "of these, prompts with pairs but none that pair.kind takes"),
    ("prompts_short_of_pairs", "prompts with fewer pairs than pair.per_prompt"),
    ("pairs_over_length_ratio", "possible pairs over pair.max_length_ratio"),
    ("pairs_over_uncertainty", "possible pairs over pair.max_uncertainty or without opinions"),
    ("responses_of_other_authors", "responses left out by pair.authors"),
)


def of_pairs(facts: Mapping[str, Any]) -> Iterator[Found]:
    for name, what in PAIRS:
        yield "pair", "pairs", "manifest.json", facts["pairs"][name], what
    zero = facts["clusters"]["zero_gradients"]
    where = "clusters.parquet, column informativeness"
    yield "cluster", "clusters", where, zero, "pairs whose gradient is zero"
    without = facts["allocation"]["prompts_without_pairs"]
    where = "allocation.parquet, column depth"
    yield "allocate", "allocation", where, without, "prompts with pairs of which none is kept"


CUTS = {
    "sft": {
        "cut": "responses that the trainer cut at its max_length",
        "dropped": "responses left out: the prompt alone fills the trainer's max_length",
        "refused": "responses that the chat template refuses",
    },
    "train": {
        "cut": "pairs of which the trainer cut a response at its max_length",
        "dropped": "pairs the trainer left out: the prompt alone fills its max_length",
        "refused": "pairs that the chat template refuses",
    },
}


def of_training(facts: Mapping[str, Any]) -> Iterator[Found]:
    for stage, table in (("sft", "policy"), ("train", "trained")):
        for name, what in CUTS[stage].items():
            if name in facts[table]:
                yield stage, table, "manifest.json", facts[table][name], what
    wins = facts["wins"]
    if "without_verdict" in wins:
        where = "wins.parquet, column winner"
        yield "evaluate", "wins", where, wins["without_verdict"], "comparisons without a verdict"


def plainly(name: str) -> str:
    """``empty_response`` as words."""
    return name.replace("_", " ")

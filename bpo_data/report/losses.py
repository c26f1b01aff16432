"""What was lost on the way, each with the file that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.report.costs import called


@dataclass(frozen=True)
class Loss:
    stage: str
    """With its round, where there are several."""
    count: int
    what: str
    file: str
    """Where each is to be found, with the column that tells where there is one."""


def losses(inputs: Mapping[str, Artifact]) -> list[Loss]:
    """All that fell out or fell short in the order of the stages, each online round on its own;
    those that did not happen too (their count is 0)."""
    return [
        Loss(called(name, inputs), count, what, f"{used.folder}/{file}")
        for table, find in FINDS.items()
        for name, used in inputs.items()
        if name.partition(" ")[0] == table
        for file, count, what in find(used.facts)
    ]


Facts = Mapping[str, Any]
Found = tuple[str, int, str]
"""The file, how many, what."""


def of_prompts(facts: Facts) -> Iterator[Found]:
    rejected = facts["rejected_by_reason"]
    for reason, count in rejected.items():
        yield "rejected.parquet", count, f"rows set aside: {plainly(reason)}"
    if not rejected:
        yield "rejected.parquet", 0, "rows set aside"
    left_out = facts["rows_of_prompts_left_out_by_limit"]
    yield "manifest.json", left_out, "rows of prompts that load.limit leaves out"


def of_embeddings(facts: Facts) -> Iterator[Found]:
    yield "embeddings.parquet", facts.get("empty", 0), "prompts without a word to embed"


def of_selection(facts: Facts) -> Iterator[Found]:
    where = "selection.parquet, column duplicate_of"
    yield where, facts["near_duplicates"], "prompts that nearly repeat another"


def of_states(file: str, what: str) -> Callable[[Facts], Iterator[Found]]:
    """Rows of a table that are in a state other than ``ok``."""

    def find(facts: Facts) -> Iterator[Found]:
        bad = {state: count for state, count in facts["states"].items() if state != "ok"}
        for state, count in bad.items():
            yield f"{file}, column state", count, f"{what}: {plainly(state)}"
        if not bad:
            yield file, 0, what

    return find


def of_gradients(facts: Facts) -> Iterator[Found]:
    for reason, count in facts["set_aside"].items():
        yield "set_aside.parquet", count, f"responses set aside: {plainly(reason)}"
    if not facts["set_aside"]:
        yield "set_aside.parquet", 0, "responses set aside"


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


def of_pairs(facts: Facts) -> Iterator[Found]:
    for name, what in PAIRS:
        yield "manifest.json", facts[name], what


def of_clusters(facts: Facts) -> Iterator[Found]:
    where = "clusters.parquet, column informativeness"
    yield where, facts["zero_gradients"], "pairs whose gradient is zero"


def of_allocation(facts: Facts) -> Iterator[Found]:
    where = "allocation.parquet, column depth"
    yield where, facts["prompts_without_pairs"], "prompts with pairs of which none is kept"


def of_cuts(**sentences: str) -> Callable[[Facts], Iterator[Found]]:
    """Rows that a trainer cut or left out."""

    def find(facts: Facts) -> Iterator[Found]:
        for name, what in sentences.items():
            if name in facts:
                yield "manifest.json", facts[name], what

    return find


def of_wins(facts: Facts) -> Iterator[Found]:
    if "without_verdict" in facts:
        where = "wins.parquet, column winner"
        yield where, facts["without_verdict"], "comparisons without a verdict"


FINDS: dict[str, Callable[[Facts], Iterator[Found]]] = {
    "prompts": of_prompts,
    "embeddings": of_embeddings,
    "selection": of_selection,
    "policy": of_cuts(
        cut="responses that the trainer cut at its max_length",
        dropped="responses left out: the prompt alone fills the trainer's max_length",
        refused="responses that the chat template refuses",
    ),
    "responses": of_states("responses-*.parquet", "responses not usable"),
    "scores": of_states("scores.parquet", "responses without points"),
    "gradients": of_gradients,
    "pairs": of_pairs,
    "clusters": of_clusters,
    "allocation": of_allocation,
    "trained": of_cuts(
        cut="pairs of which the trainer cut a response at its max_length",
        dropped="pairs the trainer left out: the prompt alone fills its max_length",
        refused="pairs that the chat template refuses",
    ),
    "wins": of_wins,
}
"""What is looked for, by table."""


def plainly(name: str) -> str:
    """``empty_response`` as words."""
    return name.replace("_", " ")

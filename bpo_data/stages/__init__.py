"""The stages, in order: each a module with its settings, schema and ``run``."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from bpo_data.stages import (
    allocate,
    augment,
    blend,
    cluster,
    embed,
    evaluate,
    export,
    gradients,
    load,
    pair,
    report,
    rounds,
    score,
    select,
    sft,
    train,
)


@dataclass(frozen=True)
class Stage:
    module: ModuleType
    makes: str
    needs: tuple[str, ...] = ()
    """Tables handed to ``run`` by name."""
    also: tuple[str, ...] = ()
    """Artifacts of which it reads something else: a model folder, facts, one column."""
    facts: bool = False
    """Whether it shows facts of its inputs, so that it is made again when they change."""


MEASURED = ("prompts", "embeddings", "selection", "responses", "scores", "gradients")
DECIDED = ("pairs", "clusters", "allocation", "dataset")

STAGES = {
    "load": Stage(load, makes="prompts"),
    "embed": Stage(embed, makes="embeddings", needs=("prompts",)),
    "select": Stage(select, makes="selection", needs=("prompts", "embeddings")),
    "sft": Stage(sft, makes="policy", needs=("prompts",)),
    "augment": Stage(augment, makes="responses", needs=("prompts", "selection"), also=("policy",)),
    "score": Stage(score, makes="scores", needs=("prompts", "responses")),
    "gradients": Stage(
        gradients, makes="gradients", needs=("prompts", "responses"), also=("policy",)
    ),
    "pair": Stage(pair, makes="pairs", needs=("responses", "scores"), also=("gradients",)),
    "cluster": Stage(cluster, makes="clusters", needs=("pairs",), also=("gradients",)),
    "allocate": Stage(
        allocate,
        makes="allocation",
        needs=("pairs", "clusters"),
        also=("embeddings", "responses", "gradients"),
    ),
    "export": Stage(
        export,
        makes="dataset",
        also=(*MEASURED, "policy", "pairs", "clusters", "allocation"),
        facts=True,
    ),
    "train": Stage(
        train,
        makes="trained",
        needs=("dataset",),
        also=("policy", "pairs", "scores", "gradients"),
    ),
    "evaluate": Stage(
        evaluate,
        makes="wins",
        needs=("prompts", "responses", "dataset"),
        also=("policy", "trained", "scores", "pairs", "gradients"),
    ),
    "report": Stage(
        report,
        makes="figures",
        also=(*MEASURED, "policy", *DECIDED, "trained", "wins"),
        facts=True,
    ),
}
"""Those of ``stage=all``."""

ONLINE = {
    "blend": Stage(blend, makes="blend"),
    "rounds": Stage(rounds, makes="rounds", facts=True),
}
"""What only several rounds have; other steps ask for it, and no command by itself."""

EVERY = STAGES | ONLINE
"""Whatever makes an artifact."""

MAKER = {stage.makes: name for name, stage in STAGES.items()}
"""Which stage makes a table."""

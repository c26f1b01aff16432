"""Write the depth-balanced preference dataset: Parquet a trainer reads as it is, and a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import card, disk, hub
from bpo_data.artifacts import Draft
from bpo_data.cards import metadata
from bpo_data.components import criteria, exporters
from bpo_data.components.exporters import making
from bpo_data.components.exporters.grouping import asked_of
from bpo_data.components.exporters.target import SPECIAL, find_target
from bpo_data.components.lengths import bias, characters
from bpo_data.errors import nearest, some
from bpo_data.llm.prices import read_prices
from bpo_data.runtime import Runtime
from bpo_data.statistics import gini
from bpo_data.tables import ID, MSG, columns, lookup, lot, maybe
from bpo_data.work import HOW, settings_of

VERSION = 6


@dataclass
class ExportConfig:
    test_share: float = 0.1
    """Share of the kept prompts whose pairs go to the test split; no prompt is in both."""

    license: str = "unknown"
    """Licence of the source, for the card; it is never guessed."""

    language: str = "unknown"
    """Language code of the source, for the card; it is never guessed."""

    formats: list[str] = field(default_factory=list)
    """Trainers' formats to write beside the dataset, each into ``formats/<name>``. A name in
    ``components.exporters.KINDS``, or ``package.module:name``, for each."""

    rationales: bool = False
    """Add the judge's reasons as ``rationale_chosen`` and ``rationale_rejected``, where it gave
    any. Points by criterion are always added, where there are any."""

    tokenizer: str = ""
    """Folder or hub name of the model that will be trained: its tokenizer and chat template say
    what trainers would cut or misread; empty means the policy's own."""

    max_length: int = 0
    """Tokens of prompt and response that trainers are told to keep; 0 means each one's own default
    (trl and kto 1024, openrlhf and axolotl 512, llamafactory 2048, nemo_rl 1024; else what the
    model can hold). Never more than the model can hold."""

    special_tokens: str = "break"
    """What formats do with a control token of the target that is typed in a text, which trainers
    take for a real one: ``break`` it with an invisible space, so that it stays text; ``keep`` it;
    or ``leave_out`` the pair."""

    seed: int = 0
    """Draws the prompts of the test split, and the order of rows where a trainer wants it so."""

    push_to_hub: str = field(default="", metadata=HOW)
    """A dataset repository of the hub, ``org/name``, that the finished export is sent to; empty:
    none. ``plan=true`` shows what would be sent."""

    private: bool = field(default=True, metadata=HOW)
    """A repository made for it is private; one that exists and is public is refused."""

    def problems(self) -> Iterator[str]:
        if not 0 <= self.test_share < 1:
            yield f"export.test_share={self.test_share}: a share lies from 0 up to below 1."
        yield from metadata.problems(self.license, self.language)
        yield from exporters.problems(self.formats)
        if self.push_to_hub:
            yield from hub.problems(self.push_to_hub)
        if self.max_length < 0:
            yield f"export.max_length={self.max_length}: use 0 or more."
        if self.special_tokens not in SPECIAL:
            yield (
                f"export.special_tokens={self.special_tokens}: choose {', '.join(SPECIAL)}."
                f"{nearest(self.special_tokens, SPECIAL)}"
            )


def views(config: ExportConfig) -> dict[str, str]:
    """Digests of a local tokenizer's files: formats and card change with them, no row does."""
    found = disk.folder_digests(config.tokenizer)
    return {f"export.tokenizer/{name}": digest for name, digest in found.items()}


def schema(config: ExportConfig) -> pa.Schema:
    return columns(
        prompt=MSG,
        chosen=MSG,
        rejected=MSG,
        split=pa.string(),
        pair_id=ID,
        prompt_id=ID,
        score_chosen=pa.float32(),
        score_rejected=pa.float32(),
        margin=pa.float32(),
        p_chosen=maybe(pa.float32()),
        depth=pa.int32(),
        cluster=pa.int32(),
        usefulness=pa.float32(),
        informativeness=pa.float32(),
        author_chosen=pa.string(),
        author_rejected=pa.string(),
        topic=maybe(pa.string()),
        source=pa.string(),
    )


def run(
    draft: Draft,
    config: ExportConfig,
    runtime: Runtime,
    *,
    prompts: pa.Table,
    responses: pa.Table,
    pairs: pa.Table,
    clusters: pa.Table,
    allocation: pa.Table,
) -> None:
    kept = allocation.filter(allocation["kept"]).sort_by("pair_id")
    dataset = joined(kept, prompts, responses, pairs, clusters)
    splits = split_of(dataset["prompt_id"].to_pylist(), config)
    dataset = dataset.append_column("split", pa.array(splits))
    for name, column in judged(draft, config, dataset["pair_id"], pairs).items():
        dataset = dataset.append_column(name, column)
        draft.schema = draft.schema.append(pa.field(name, column.type))
    for name in ("train", "test"):
        rows = dataset.filter(pc.equal(dataset["split"], name))
        if rows.num_rows:
            draft.write(rows, f"dataset/{name}.parquet")
    draft.facts |= figures(dataset, allocation)
    draft.facts["lengths"] = {
        "candidates": bias(characters(pairs, responses)),
        "kept": bias(characters(lookup(pairs, "pair_id", kept["pair_id"]), responses)),
    }
    if said := drift(draft.facts["lengths"]):
        draft.say(said)
    if dataset.num_rows < FEW:
        draft.say(f"{some(dataset.num_rows, 'pair')} are too few to train a model on")
    write_formats(draft, config, dataset, prompts, responses, pairs)
    disk.write_bytes(
        card.text(draft, settings_of(config), read_prices(runtime.budget.prices)).encode(),
        draft.view("dataset/README.md"),
    )


def write_formats(
    draft: Draft,
    config: ExportConfig,
    dataset: pa.Table,
    prompts: pa.Table,
    responses: pa.Table,
    pairs: pa.Table,
) -> None:
    """Write ``formats/`` and reckon what each trainer would keep, TRL in any case."""
    target = find_target(config.tokenizer, draft.inputs["policy"].folder)
    lists = any(one.lists for one in exporters.exporters(config.formats).values())
    rows = dataset.select(["pair_id", "prompt_id", "split"])
    own = lookup(pairs, "pair_id", rows["pair_id"])
    for name in ("chosen_id", "rejected_id"):
        rows = rows.append_column(name, own[name])
    scores = None
    if lists:
        weights = draft.inputs["pairs"].manifest["settings"].get("criteria", {})
        table = draft.inputs["scores"].table(criteria.needed(weights))
        scores = criteria.with_points(table, weights)
    making.write(
        draft, config, target, asked_of(rows, prompts, responses, scores), dataset.num_rows
    )


FEW = 10
"""A dataset of fewer pairs is an accident, most likely of rows that were set aside."""
DRIFT = 0.05
"""Share of pairs by which a depth rule may add to length bias before it is said."""


def drift(lengths: Mapping[str, Mapping[str, Any]]) -> str:
    """A line where the depth rule chose for length much more than the candidates do."""
    before, after = (lengths[name]["longer_share"] for name in ("candidates", "kept"))
    if min(before, 0.5) - DRIFT <= after <= max(before, 0.5) + DRIFT:
        return ""
    prefers = "length" if after > 0.5 else "brevity"
    return (
        f"the depth rule prefers {prefers}: the chosen response is the longer in {after:.0%} of "
        f"the kept pairs, in {before:.0%} of the candidates. pair.match_length and "
        f"pair.max_length_ratio bound that"
    )


def joined(
    kept: pa.Table,
    prompts: pa.Table,
    responses: pa.Table,
    pairs: pa.Table,
    clusters: pa.Table,
) -> pa.Table:
    """One row per kept pair with everything a trainer or a reader asks of it."""
    pair = lookup(pairs, "pair_id", kept["pair_id"])
    place = lookup(clusters, "pair_id", kept["pair_id"])
    needed = prompts.select(["prompt_id", "prompt", "topic", "source"])
    owner = lookup(needed, "prompt_id", kept["prompt_id"])
    table = {
        "prompt": owner["prompt"],
        "pair_id": kept["pair_id"],
        "prompt_id": kept["prompt_id"],
        "depth": kept["depth"],
        "margin": pair["margin"],
        "p_chosen": pair["p_chosen"],
        "topic": owner["topic"],
        "source": owner["source"],
        **{name: place[name] for name in ("cluster", "usefulness", "informativeness")},
    }
    for side in ("chosen", "rejected"):
        ids = pair[f"{side}_id"]
        needed = responses.select(["response_id", "text", "author"])
        answer = lookup(needed, "response_id", ids)
        turns = [[{"role": "assistant", "content": text}] for text in answer["text"].to_pylist()]
        table[side] = pa.array(turns, MSG)
        table[f"author_{side}"] = answer["author"]
        table[f"score_{side}"] = pair[f"score_{side}"]
    return pa.table(table)


def judged(
    draft: Draft, config: ExportConfig, pair_ids: pa.ChunkedArray, pairs: pa.Table
) -> dict[str, pa.Array]:
    """The columns of criteria and, where asked for, rationales of both sides; none without any."""
    names = ["criteria", *(["rationale"] if config.rationales else [])]
    scores = draft.inputs["scores"].table(["response_id", *names])
    pair = lookup(pairs, "pair_id", pair_ids)
    found = criteria.side_columns(scores, pair, names)
    if config.rationales and "rationale_chosen" not in found:
        draft.say("export.rationales=true, but the judge gave no reasons; there is no such column")
    return found


def split_of(prompt_ids: list[str], config: ExportConfig) -> list[str]:
    """The split of each row: whole prompts, drawn by lot."""
    order = sorted(set(prompt_ids), key=lambda name: lot(config.seed, "export", name))
    test = set(order[: round(config.test_share * len(order))])
    return ["test" if name in test else "train" for name in prompt_ids]


def figures(dataset: pa.Table, allocation: pa.Table) -> dict[str, Any]:
    """Counts for the card and the report."""
    depth = Counter(dataset["prompt_id"].to_pylist())
    return {
        "pairs": dataset.num_rows,
        "prompts": len(depth),
        "splits": dict(Counter(dataset["split"].to_pylist())),
        "depths": {str(k): v for k, v in sorted(Counter(depth.values()).items())},
        "mean_depth": round(dataset.num_rows / len(depth), 3),
        "gini": round(gini(list(depth.values())), 4),
        "gini_before": round(gini(list(Counter(allocation["prompt_id"].to_pylist()).values())), 4),
        "pool": allocation.num_rows,
        "mean_margin": round(float(pc.mean(dataset["margin"]).as_py()), 4),
    }

"""Write the depth-balanced preference dataset: Parquet a trainer reads as it is, and a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import card, disk, hub
from bpo_data.artifacts import Draft
from bpo_data.cards import metadata
from bpo_data.components import criteria, exporters
from bpo_data.components.exporters import making
from bpo_data.components.exporters.dataset import Draw, Figures, Tables, draw, joined
from bpo_data.components.exporters.grouping import asked_of
from bpo_data.components.exporters.rows import Asked
from bpo_data.components.exporters.target import SPECIAL, find_target
from bpo_data.errors import nearest, some
from bpo_data.llm.prices import read_prices
from bpo_data.runtime import Runtime
from bpo_data.side_by_side import side_by_side
from bpo_data.tables import ID, MSG, columns, lookup, maybe
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


def run(draft: Draft, config: ExportConfig, runtime: Runtime) -> None:
    drawn = write_dataset(draft, config)
    write_formats(draft, config, drawn)
    disk.write_bytes(
        card.text(draft, settings_of(config), read_prices(runtime.budget.prices)).encode(),
        draft.view("dataset/README.md"),
    )


def write_dataset(draft: Draft, config: ExportConfig) -> Draw:
    """Write the splits, set the facts about them, and tell which prompts are in which."""
    allocation = partial(draft.inputs["allocation"].batches, ["prompt_id", "kept"])
    drawn = draw(allocation, config.test_share, config.seed)
    judged = judged_types(draft, config)
    for name, kind in judged.items():
        for side in criteria.SIDES:
            draft.schema = draft.schema.append(pa.field(f"{name}_{side}", kind))
    figures = Figures(draft.folder)
    # The one opened last is finished first, and the train split comes first in the table.
    with (
        draft.writing("dataset/test.parquet") as test,
        draft.writing("dataset/train.parquet") as train,
        draft.bar(drawn.pairs, "pairs") as bar,
    ):
        for tables in read(draft, DATASET, ["response_id", *judged] if judged else []):
            rows = dataset_rows(tables, drawn, judged)
            for name, write in {"train": train, "test": test}.items():
                if own := rows.filter(pc.equal(rows["split"], name)):
                    write(own)
            figures.add(rows, tables)
            bar.update(rows.num_rows)
    draft.facts |= figures.facts()
    if said := drift(draft.facts["lengths"]):
        draft.say(said)
    if drawn.pairs < FEW:
        draft.say(f"{some(drawn.pairs, 'pair')} are too few to train a model on")
    return drawn


KEPT = {
    "allocation": ["pair_id", "prompt_id", "kept", "depth"],
    "pairs": ["pair_id", "prompt_id", "chosen_id", "rejected_id"],
}
TEXTS = KEPT | {
    "prompts": ["prompt_id", "prompt"],
    "responses": ["response_id", "prompt_id", "text", "author"],
}
DATASET = TEXTS | {
    "pairs": [*KEPT["pairs"], "score_chosen", "score_rejected", "margin", "p_chosen"],
    "prompts": [*TEXTS["prompts"], "topic", "source"],
    "clusters": ["pair_id", "cluster", "usefulness", "informativeness"],
}
"""Columns of the inputs that the dataset is made of."""


def read(
    draft: Draft, columns: Mapping[str, list[str]], of_scores: list[str]
) -> Iterator[dict[str, pa.Table]]:
    """The inputs' rows of some whole prompts at a time; of the scores where columns are named."""
    wanted = {**columns, **({"scores": of_scores} if of_scores else {})}
    return side_by_side({name: draft.inputs[name].batches(own) for name, own in wanted.items()})


def kept_of(tables: Tables) -> pa.Table:
    """The allocation's kept rows."""
    allocation = tables["allocation"]
    return allocation.filter(allocation["kept"]).sort_by("pair_id")


def dataset_rows(tables: Tables, drawn: Draw, judged: Mapping[str, pa.DataType]) -> pa.Table:
    """The rows of the dataset of some prompts, with their splits."""
    rows = joined(kept_of(tables), tables)
    splits = drawn.splits(rows["prompt_id"].to_pylist())
    rows = rows.append_column("split", pa.array(splits, pa.string()))
    if judged:
        own = lookup(tables["pairs"], "pair_id", rows["pair_id"])
        for name, column in criteria.side_columns(tables["scores"], own, judged).items():
            rows = rows.append_column(name, column)
    return rows


def judged_types(draft: Draft, config: ExportConfig) -> dict[str, pa.DataType]:
    """What kept pairs have of criteria and, where asked for, rationales: types by column."""
    names = ["criteria", *(["rationale"] if config.rationales else [])]
    pieces = (
        (tables["scores"], lookup(tables["pairs"], "pair_id", kept_of(tables)["pair_id"]))
        for tables in read(draft, KEPT, ["response_id", *names])
    )
    found = criteria.side_types(pieces, names)
    if config.rationales and "rationale" not in found:
        draft.say("export.rationales=true, but the judge gave no reasons; there is no such column")
    return found


def write_formats(draft: Draft, config: ExportConfig, drawn: Draw) -> None:
    """Write ``formats/`` and reckon what each trainer would keep, TRL in any case."""
    target = find_target(config.tokenizer, draft.inputs["policy"].folder)
    lists = any(one.lists for one in exporters.exporters(config.formats).values())
    weights = draft.inputs["pairs"].manifest["settings"].get("criteria", {})
    of_scores = criteria.needed(weights) if lists else []

    def chunks() -> Iterator[list[Asked]]:
        for tables in read(draft, TEXTS, of_scores):
            scores = criteria.with_points(tables["scores"], weights) if lists else None
            rows = with_sides(kept_of(tables), tables, drawn)
            yield asked_of(rows, tables["prompts"], tables["responses"], scores)

    making.write(draft, config, target, chunks, drawn.prompts, drawn.pairs)


def with_sides(kept: pa.Table, tables: Tables, drawn: Draw) -> pa.Table:
    """Kept pairs with their responses' ids and their split."""
    own = lookup(tables["pairs"], "pair_id", kept["pair_id"])
    for name in ("chosen_id", "rejected_id"):
        kept = kept.append_column(name, own[name])
    splits = drawn.splits(kept["prompt_id"].to_pylist())
    return kept.append_column("split", pa.array(splits, pa.string()))


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

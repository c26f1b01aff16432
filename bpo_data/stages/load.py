"""Read prompts, preference pairs or many responses a prompt; one row per distinct prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.components import criteria, kinds, sources
from bpo_data.components.rows import Given, Rejected, Row
from bpo_data.errors import UserError, plain, some
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, MSG, columns, lot, maybe, prompt_id

VERSION = 2
SPLITS = ("seed", "pool", "test")
ANSWER = pa.struct([("text", pa.string()), ("author", pa.string()), ("score", pa.float32())])
GIVEN = pa.list_(ANSWER)
RATED = pa.list_(pa.struct([*ANSWER, ("criteria", criteria.CRITERIA), ("rationale", pa.string())]))
"""``given`` of a source that has points by criterion, or reasons for its scores."""
REJECTED = pa.schema(
    [(name, pa.string()) for name in ("origin", "reason", "detail")] + [("raw", pa.binary())]
)


@dataclass
class LoadConfig:
    kind: str = "files"
    """A name in ``components.sources.KINDS``, or ``package.module:name``."""

    path: str = ""
    """For ``files``: a file, a folder or a pattern of Parquet, JSONL, JSON, CSV or TSV files."""

    columns: dict[str, str] = field(default_factory=dict)
    """The source's names for prompt, response, score, author, chosen ...; else guessed."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the kind: ``roles`` of files, sizes of ``topics``, a hub set's name."""

    test_share: float = 0.1
    """Share of prompts kept aside for ``evaluate``, where the source has no split of its own."""

    seed_share: float = 0.0
    """Share of prompts kept for ``sft`` alone; with 0 it trains on the pool's own responses."""

    limit: int = 0
    """Take this many prompts, drawn by lot; 0 takes all."""

    seed: int = 0
    """Draws the split and the limit."""

    def source(self) -> sources.Source:
        """The source these settings name. Raises UserError."""
        options = dict(self.options)
        if self.kind == "files":
            options["path"] = self.path
        if self.kind in ("files", "hub"):
            options["columns"] = self.columns
        source: sources.Source = kinds.build(sources.KINDS, self.kind, options, "load.kind")
        for method in ("problems", "digests", "rows"):
            if not hasattr(source, method):
                raise UserError(f"load.kind={self.kind} has no method {method}; add it.")
        return source

    def problems(self) -> Iterator[str]:
        try:
            yield from self.source().problems()
        except UserError as error:
            yield str(error)
        if self.path and self.kind in ("topics", "hub"):
            yield (
                f"load.path={self.path} has no use with load.kind={self.kind}. Add "
                f"recipe=own_data, or load.kind=files."
            )
        for name in ("test_share", "seed_share"):
            if not 0 <= getattr(self, name) < 1:
                yield f"load.{name}={getattr(self, name)}: a share lies from 0 up to below 1."
        if self.test_share + self.seed_share >= 1:
            yield "load.test_share + load.seed_share leave no prompts to work on; lower one."
        if self.limit < 0:
            yield f"load.limit={self.limit}: give a number of prompts, or 0 for all."


def outside(config: LoadConfig) -> dict[str, str]:
    """Digests of the files read, so that a changed file is read again."""
    return config.source().digests()


def schema(config: LoadConfig) -> pa.Schema:
    return columns(
        prompt_id=ID,
        prompt=MSG,
        given=GIVEN,
        topic=maybe(pa.string()),
        reference=maybe(pa.string()),
        split=pa.string(),
        source=pa.string(),
    )


def run(draft: Draft, config: LoadConfig, runtime: Runtime) -> None:
    grouped: dict[str, list[Row]] = {}
    rejected: list[Rejected] = []
    notices: Counter[str] = Counter()
    rows_in = 0
    with draft.bar(0, "rows") as bar:
        source = config.source()
        for row in source.rows():
            rows_in += 1
            bar.update(1)
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                grouped.setdefault(prompt_id(row.prompt), []).append(row)
                notices.update(row.notices)
    write_rejected(draft, rejected)
    draft.facts["columns"] = named(getattr(source, "seen", ()))
    if not grouped:
        raise UserError(
            f"load: none of {some(rows_in, 'row')} can be used. The reasons: "
            f"{reasons(rejected) or 'the source is empty'}. Check load.path and load.columns."
        )
    kept = limited(grouped, config)
    split = splits(kept, config)
    table = [prompt_row(name, kept[name], split[name], notices) for name in sorted(kept)]
    if any(one["criteria"] or one["rationale"] for row in table for one in row["given"]):
        place = draft.schema.get_field_index("given")
        draft.schema = draft.schema.set(place, draft.schema.field(place).with_type(RATED))
    draft.write(pa.Table.from_pylist(table, schema=draft.schema))
    by_split = Counter(row["split"] for row in table)
    draft.note(len(rejected), rows_in, f"rows set aside in rejected.parquet: {reasons(rejected)}")
    if not any(row.split for rows in kept.values() for row in rows):
        draft.note(by_split["test"], len(table), "prompts kept aside for evaluate")
        draft.note(by_split["seed"], len(table), "prompts kept aside for sft")
    if not any(row["given"] for row in table) and draft.facts.get("columns"):
        draft.say(
            f"no row carries a response; the columns are {', '.join(draft.facts['columns'])}. "
            f"Name those that hold responses with load.columns.chosen, .rejected or .response."
        )
    draft.facts |= {
        "result": some(len(table), "prompt")
        + (f" of {some(rows_in, 'row')}" if rows_in != len(table) else ""),
        "rows_in": rows_in,
        "rows_rejected": len(rejected),
        "rejected_by_reason": dict(Counter(row.reason for row in rejected)),
        "rows_of_prompts_left_out_by_limit": sum(
            len(rows) for name, rows in grouped.items() if name not in kept
        ),
        "prompts": {name: by_split[name] for name in SPLITS},
        "responses_given": sum(len(row["given"]) for row in table),
        "notices": dict(sorted(notices.items())),
    }


COLUMNS_NAMED = 50


def named(columns: Collection[str]) -> list[str]:
    """The names of a source's columns for people, the first of very many, and no endless ones."""
    shown = [plain(name)[:100] for name in sorted(columns)[:COLUMNS_NAMED]]
    return shown if len(columns) <= COLUMNS_NAMED else [*shown, f"and {len(columns):,} in all"]


def write_rejected(draft: Draft, rejected: Iterable[Rejected]) -> None:
    rows = [vars(row) for row in rejected]
    draft.write_beside(pa.Table.from_pylist(rows, schema=REJECTED), "rejected.parquet")


def reasons(rejected: Iterable[Rejected]) -> str:
    """``wrong_type 3 (a.jsonl:4: ...)``: each reason, how often, and where first."""
    first: dict[str, Rejected] = {}
    count: Counter[str] = Counter()
    for row in rejected:
        first.setdefault(row.reason, row)
        count[row.reason] += 1
    return "; ".join(
        f"{reason} {number} ({first[reason].origin}: {first[reason].detail})"
        for reason, number in count.most_common(3)
    ) + (f"; {some(len(count) - 3, 'other reason')}" if len(count) > 3 else "")


def limited(grouped: dict[str, list[Row]], config: LoadConfig) -> dict[str, list[Row]]:
    if not config.limit:
        return grouped
    drawn = sorted(grouped, key=lambda name: lot(config.seed, "limit", name))[: config.limit]
    return {name: grouped[name] for name in drawn}


def splits(grouped: dict[str, list[Row]], config: LoadConfig) -> dict[str, str]:
    """The split of each prompt: the source's own word, else by lot at the asked shares."""
    split: dict[str, str] = {}
    for name, rows in grouped.items():
        said = {row.split for row in rows if row.split}
        unknown = said - set(SPLITS)
        if unknown or len(said) > 1:
            raise UserError(
                f"{rows[0].origin}: split {', '.join(sorted(said))} of one prompt; it must be one "
                f"of {', '.join(SPLITS)}. Name another column with load.columns.split."
            )
        if said:
            split[name] = said.pop()
    unsaid = grouped.keys() - split.keys()
    open_to = sorted(unsaid, key=lambda name: lot(config.seed, "split", name))
    test = round(config.test_share * len(open_to))
    seed = round(config.seed_share * len(open_to))
    for place, name in enumerate(open_to):
        split[name] = "test" if place < test else "seed" if place < test + seed else "pool"
    return split


def prompt_row(name: str, rows: list[Row], split: str, notices: Counter[str]) -> dict[str, Any]:
    """Rows of one prompt as one: their responses pooled, exact repeats collapsed and counted.

    Responses are put in the order of author and text, so the order of the source changes nothing.
    """
    pooled = [given for row in rows for given in row.given]
    distinct = sorted(set(pooled), key=given_order)
    if len(rows) > 1:
        notices["repeated_prompt"] += len(rows) - 1
    if len(distinct) < len(pooled):
        notices["repeated_response"] += len(pooled) - len(distinct)
    scores: dict[str, set[float | None]] = {}
    for given in distinct:
        scores.setdefault(given.text, set()).add(given.score)
    notices["contradicting_scores"] += any(len(score) > 1 for score in scores.values())
    first = min(rows, key=lambda row: row.origin)
    return {
        "prompt_id": name,
        "prompt": list(first.prompt),
        "given": [
            {
                **vars(given),
                "criteria": criteria.as_rows(given.criteria) or None,
                "rationale": given.rationale or None,
            }
            for given in distinct
        ],
        "topic": first.topic,
        "reference": first.reference,
        "split": split,
        "source": first.origin,
    }


def given_order(given: Given) -> tuple[Any, ...]:
    score = -1.0 if given.score is None else given.score
    return given.author, given.text, score, given.criteria, given.rationale

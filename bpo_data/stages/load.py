"""Read prompts, preference pairs or many responses a prompt; one row per distinct prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import compress
from typing import Any

import pyarrow as pa

from bpo_data import stopping
from bpo_data.artifacts import Draft
from bpo_data.components import kinds, pooling, sources
from bpo_data.components.pooling import GIVEN, RATED
from bpo_data.components.rows import Rejected
from bpo_data.components.splits import SPLITS, Draw, draw
from bpo_data.errors import UserError, plain, some
from bpo_data.runtime import Runtime
from bpo_data.spill import Spill
from bpo_data.tables import ID, MSG, columns, maybe, prompt_id

VERSION = 2
TOGETHER = 2**22
"""Bytes of rows set aside that are held before they go to their file."""
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
    """Nothing is held but what is under way, so memory does not grow with the rows: they go to disk
    parted by the beginning of their prompt's id, and come back a part at a time, in that order."""
    with draft.scratch() as folder:
        spill = Spill(folder / "rows")
        with draft.writing_beside("rejected.parquet", REJECTED) as write:
            found = Found(SetAside(write))
            source = config.source()
            if isinstance(source, sources.Files | sources.Hub):
                source.scratch = folder
            found.read(draft, source, spill)
        if found.rows == found.set_aside.rows:
            raise UserError(
                f"load: none of {some(found.rows, 'row')} can be used. The reasons: "
                f"{found.set_aside.reasons() or 'the source is empty'}. Check load.path and "
                f"load.columns."
            )
        drawn = draw(
            spill,
            folder / "prompts",
            seed=config.seed,
            limit=config.limit,
            test_share=config.test_share,
            seed_share=config.seed_share,
        )
        if drawn.rated:
            place = draft.schema.get_field_index("given")
            draft.schema = draft.schema.set(place, draft.schema.field(place).with_type(RATED))
        with draft.writing() as write:
            for bucket in spill.buckets():
                stopping.check()
                write(found.table(bucket, drawn, draft.schema))
    found.tell(draft, drawn)


class SetAside:
    """Rows that cannot be used: they go to their file, how many there are of each reason stays."""

    def __init__(self, write: Callable[[pa.Table], None]) -> None:
        self.write = write
        self.held: list[Rejected] = []
        self.size = self.rows = 0
        self.by_reason: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """Where each reason stood first, and its particulars."""

    def add(self, row: Rejected) -> None:
        self.rows += 1
        self.by_reason[row.reason] += 1
        self.first.setdefault(row.reason, f"{row.origin}: {row.detail}")
        self.held.append(row)
        self.size += 1024 + len(row.raw)
        if self.size > TOGETHER:
            self.put_in_file()

    def put_in_file(self) -> None:
        self.write(pa.Table.from_pylist([vars(row) for row in self.held], schema=REJECTED))
        self.held, self.size = [], 0

    def reasons(self) -> str:
        """``wrong_type 3 (a.jsonl:4: ...)``: the commonest reasons, how often, and where first."""
        others = len(self.by_reason) - 3
        return "; ".join(
            f"{reason} {number} ({self.first[reason]})"
            for reason, number in self.by_reason.most_common(3)
        ) + (f"; {some(others, 'other reason')}" if others > 0 else "")


@dataclass
class Found:
    """What a source came to, counted while its rows pass by."""

    set_aside: SetAside
    rows: int = 0
    left_out: int = 0
    """Rows of prompts that the limit did not draw."""
    prompts: int = 0
    by_split: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    notices: Counter[str] = field(default_factory=Counter)

    def read(self, draft: Draft, source: sources.Source, spill: Spill) -> None:
        """Every row of the source, to the spill or set aside."""
        with draft.bar(0, "rows") as bar:
            for row in source.rows():
                stopping.check()
                self.rows += 1
                bar.update(1)
                if isinstance(row, Rejected):
                    self.set_aside.add(row)
                else:
                    spill.add(pooling.packed(prompt_id(row.prompt), self.rows, row))
                    self.notices.update(row.notices)
        self.set_aside.put_in_file()
        draft.facts["columns"] = named(getattr(source, "seen", ()))

    def table(self, bucket: Iterable[bytes], drawn: Draw, schema: pa.Schema) -> pa.Table:
        """The rows of the prompts in a bucket that are kept, by id."""
        keeps = cache(drawn.keeps)
        kept = [keeps(line[pooling.NAME].decode()) for line in bucket]
        self.left_out += len(kept) - sum(kept)
        prompts = pooling.pooled(compress(bucket, kept))
        answers = [prompt.answers() for prompt in prompts]
        splits = [drawn.split(prompt.name, prompt.split) for prompt in prompts]
        self.prompts += len(prompts)
        self.by_split.update(splits)
        self.responses += sum(map(len, answers))
        for prompt, own in zip(prompts, answers, strict=True):
            self.notices.update(prompt.notices(own))
        firsts = [prompt.first for prompt in prompts]
        values = {
            "prompt_id": [prompt.name for prompt in prompts],
            "prompt": pooling.conversations(prompts),
            "given": pooling.given_column(answers, drawn.rated),
            "topic": [first.topic for first in firsts],
            "reference": [first.reference for first in firsts],
            "split": splits,
            "source": [first.origin for first in firsts],
        }
        return pa.table(values, schema=schema)

    def tell(self, draft: Draft, drawn: Draw) -> None:
        """Say what came to nothing, and note the counts."""
        aside = self.set_aside
        draft.note(aside.rows, self.rows, f"rows set aside in rejected.parquet: {aside.reasons()}")
        if not drawn.said:
            draft.note(self.by_split["test"], self.prompts, "prompts kept aside for evaluate")
            draft.note(self.by_split["seed"], self.prompts, "prompts kept aside for sft")
        if not self.responses and draft.facts.get("columns"):
            draft.say(
                f"no row carries a response; the columns are {', '.join(draft.facts['columns'])}. "
                f"Name those that hold responses with load.columns.chosen, .rejected or .response."
            )
        draft.facts |= {
            "result": some(self.prompts, "prompt")
            + (f" of {some(self.rows, 'row')}" if self.rows != self.prompts else ""),
            "rows_in": self.rows,
            "rows_rejected": aside.rows,
            "rejected_by_reason": dict(aside.by_reason),
            "rows_of_prompts_left_out_by_limit": self.left_out,
            "prompts": {name: self.by_split[name] for name in SPLITS},
            "responses_given": self.responses,
            "notices": dict(sorted(self.notices.items())),
        }


COLUMNS_NAMED = 50


def named(columns: Collection[str]) -> list[str]:
    """The names of a source's columns for people, the first of very many, and no endless ones."""
    shown = [plain(name)[:100] for name in sorted(columns)[:COLUMNS_NAMED]]
    return shown if len(columns) <= COLUMNS_NAMED else [*shown, f"and {len(columns):,} in all"]

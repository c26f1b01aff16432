"""One judge gives every response of the pool its points, the source's own responses too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import judges, kinds
from bpo_data.components.judging import Item, Judge, Verdict
from bpo_data.components.preference import preferred
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, maybe

VERSION = 1


@dataclass
class ScoreConfig:
    kind: str = "given"
    """A name in ``components.judges.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind: ``function`` of verifier, ``model`` and ``base_url`` of rubric ..."""

    def judge(self) -> Judge:
        """The judge these settings name. Raises UserError."""
        judge: Judge = kinds.build(judges.KINDS, self.kind, self.options, "score.kind")
        return judge

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(judges.KINDS, self.kind, self.options, "score.kind")


def ready(config: ScoreConfig) -> None:
    """Raise UserError when the judge lacks its key, before the stages ahead are made."""
    config.judge().ready()


def schema(config: ScoreConfig) -> pa.Schema:
    return columns(
        response_id=ID,
        judge=pa.string(),
        score=maybe(pa.float32()),
        state=pa.string(),
        reply=pa.string(),
    )


def run(
    draft: Draft, config: ScoreConfig, runtime: Runtime, *, prompts: pa.Table, responses: pa.Table
) -> None:
    judge = config.judge()
    usable = responses.filter(pc.equal(responses["state"], "ok"))
    items = items_of(prompts, usable)
    known = [item for item in items if item.given is not None]
    with draft.bar(len(items), "verdicts") as bar:
        verdicts = judge(items, known, runtime, lambda count: bar.update(count))
    rows = [
        {"response_id": response, "judge": judge.name, **vars(verdict)}
        for response, verdict in zip(usable["response_id"].to_pylist(), verdicts, strict=True)
    ]
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    readable = [verdict.score for verdict in verdicts if verdict.score is not None]
    without = len(verdicts) - len(readable)
    draft.note(without, len(verdicts), "responses have no points; they take no part in pairs")
    draft.facts |= {
        "judge": judge.name,
        "not_judged": responses.num_rows - usable.num_rows,
        "states": dict(sorted(Counter(verdict.state for verdict in verdicts).items())),
        "mean": round(sum(readable) / len(readable), 4) if readable else None,
        "agreement_with_given": agreement(items, verdicts) if judge.judges_new else None,
    }
    if not readable:
        columns_seen = ", ".join(draft.inputs["prompts"].facts.get("columns", ()))
        named = f" (the source has {columns_seen})" if columns_seen else ""
        raise UserError(
            f"score.kind={config.kind} gave no readable score for any of {len(items):,} responses. "
            f"Name the column of scores with load.columns.score{named}, or use another score.kind."
        )


def items_of(prompts: pa.Table, responses: pa.Table) -> list[Item]:
    """Each response with its prompt, reference and the source's own score of it."""
    needed = prompts.select(["prompt_id", "prompt", "given", "reference"])
    asked = pc.is_in(needed["prompt_id"], responses["prompt_id"].combine_chunks())
    owners = {row["prompt_id"]: row for row in needed.filter(asked).to_pylist()}
    items = []
    for row in responses.select(["prompt_id", "number", "text"]).to_pylist():
        owner = owners[row["prompt_id"]]
        given = owner["given"][row["number"]] if row["number"] < len(owner["given"]) else None
        items.append(
            Item(
                prompt=owner["prompt"],
                text=row["text"],
                group=row["prompt_id"],
                reference=owner["reference"],
                given=given["score"] if given else None,
            )
        )
    return items


def agreement(items: list[Item], verdicts: list[Verdict]) -> float | None:
    """Share of the source's own preferences that the judge shares, ties half; None without any."""
    shared: list[float] = []
    for better, worse in preferred(items):
        a, b = verdicts[better].score, verdicts[worse].score
        if a is not None and b is not None:
            shared.append(0.5 if a == b else float(a > b))
    return round(sum(shared) / len(shared), 4) if shared else None

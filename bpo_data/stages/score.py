"""One judge gives every response of the pool its points, the source's own responses too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import criteria, judges, kinds
from bpo_data.components.judging import Item, Judge, Judgement, Opinion, Verdict
from bpo_data.components.preference import preferred
from bpo_data.disk import folder_digests
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk, asking_problems
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, maybe
from bpo_data.work import HOW

VERSION = 4
SERVED = ("rubric", "pairwise")
"""Kinds whose model is a server's name, not a folder."""


@dataclass
class ScoreConfig:
    kind: str = "given"
    """A name in ``components.judges.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind: ``function`` of verifier, ``model`` and ``base_url`` of rubric ..."""

    mode: str = field(default="live", metadata=HOW)
    """``live``, or ``batch``: a judge's requests go through its server's batch endpoint."""

    retry: list[str] = field(default_factory=list)
    """States of a judge's replies to ask for again, such as ``[empty,http_error]``: each mention is
    one more round for the requests in that state."""

    def judge(self) -> Judge:
        """The judge these settings name. Raises UserError."""
        judge: Judge = kinds.build(judges.KINDS, self.kind, self.options, "score.kind")
        return judge

    @property
    def repeated(self) -> bool:
        """Whether the judge may say more than one thing of a pair; true where settings are bad."""
        return any(self.problems()) or said_again(self.kind, self.options)

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(judges.KINDS, self.kind, self.options, "score.kind")
        yield from asking_problems(self.mode, self.retry, "score")


def ready(config: ScoreConfig) -> None:
    """Raise UserError when the judge lacks its key, before the stages ahead are made."""
    config.judge().ready()


def outside(config: ScoreConfig) -> dict[str, str]:
    """Digests of the files of judges' models on this machine, so that a changed one is noticed."""
    return model_digests(config.kind, config.options)


def said_again(kind: str, options: Mapping[str, Any]) -> bool:
    """Whether a judge of this kind may say more than one thing of a pair of responses."""
    if kind == "panel":
        judges = options.get("judges", [])
        return len(judges) > 1 or any(
            said_again(entry["kind"], entry.get("options", {})) for entry in judges
        )
    return kind == "pairwise" or ":" in kind or options.get("repeats", 1) > 1


def model_digests(kind: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a judge's model folder; of a panel, of all its judges'."""
    if kind == "panel":
        return {
            f"judges[{number}]/{name}": digest
            for number, entry in enumerate(options["judges"])
            for name, digest in model_digests(entry["kind"], entry.get("options", {})).items()
        }
    return folder_digests("" if kind in SERVED else str(options.get("model", "")))


AGREES = 0.65
"""A judge that agrees less often with the source's own preferences is named. Our bound."""


def schema(config: ScoreConfig) -> pa.Schema:
    return columns(
        response_id=ID,
        judge=pa.string(),
        score=maybe(pa.float32()),
        spread=maybe(pa.float32()),
        opinions=pa.int32(),
        criteria=maybe(criteria.CRITERIA),
        rationale=maybe(pa.string()),
        state=pa.string(),
        reply=pa.string(),
    )


OPINIONS = columns(
    response_id=ID,
    judge=pa.string(),
    repeat=pa.int32(),
    against_id=maybe(ID),
    score=maybe(pa.float32()),
    state=pa.string(),
    level=pa.string(),
    reply=pa.string(),
)
"""``opinions.parquet``: all that was said, one row for each time a judge was asked."""


def run(
    draft: Draft, config: ScoreConfig, runtime: Runtime, *, prompts: pa.Table, responses: pa.Table
) -> None:
    from bpo_data.components.hygiene import hygiene

    judge = config.judge()
    usable = responses.filter(pc.equal(responses["state"], "ok"))
    if not usable.num_rows:
        states = ", ".join(sorted(set(responses["state"].to_pylist())))
        raise UserError(
            f"score: there is nothing to judge: all {responses.num_rows:,} responses are in state "
            f"{states}. Ask again with augment.retry=[{states.partition(',')[0]}], or use another "
            f"augment.model."
        )
    items = items_of(prompts, usable)
    known = [item for item in items if item.given is not None]
    with draft.bar(len(items), "verdicts") as bar:
        desk = Desk(
            *("score", runtime, config.mode, bar.update),
            retry=config.retry,
            spread=draft.in_parts,
            lines=draft.lines,
            shown=bar.set_postfix_str,
        )
        judgement = judge(items, known, desk)
    desk.tell()
    ids = usable["response_id"].to_pylist()
    draft.write(score_rows(judge.name, ids, judgement, draft.schema))
    draft.write_beside(opinion_rows(ids, judgement.opinions), "opinions.parquet")
    figures = hygiene(items, judgement, judge.scale)
    draft.write_beside(figures, "hygiene.parquet")
    verdicts = judgement.verdicts
    readable = [verdict.score for verdict in verdicts if verdict.score is not None]
    without = len(verdicts) - len(readable)
    draft.note(without, len(verdicts), "responses have no points; they take no part in pairs")
    draft.facts |= {
        "judge": judge.name,
        "not_judged": responses.num_rows - usable.num_rows,
        "states": tally(verdict.state for verdict in verdicts),
        "opinions": opinion_figures(judgement.opinions),
        "mean": round(sum(readable) / len(readable), 4) if readable else None,
        "agreement_with_given": agreement(items, verdicts) if judge.judges_new else None,
        "requests": desk.facts(),
        "flagged": figures.filter(figures["flag"])["note"].to_pylist(),
    }
    by_criterion = [verdict.criteria for verdict in verdicts if verdict.criteria]
    if by_criterion:
        told = draft.facts["criteria"] = criteria.figures(by_criterion)
        lacking = sum(len(own) < len(told) for own in by_criterion)
        draft.note(lacking, len(verdicts), "responses lack points for some of the criteria")
    agreed = draft.facts["agreement_with_given"]
    if agreed is not None and agreed < AGREES:
        draft.facts["flagged"].append(
            f"the judge agrees with the source's own preferences in {agreed:.1%} of the cases; "
            f"chance gives 50 %."
        )
    for note in draft.facts["flagged"]:
        draft.say(note)
    if not readable:
        columns_seen = ", ".join(draft.inputs["prompts"].facts.get("columns", ()))
        named = f" (the source has {columns_seen})" if columns_seen else ""
        raise UserError(
            f"score.kind={config.kind} gave no readable score for any of {len(items):,} responses. "
            f"Name the column of scores with load.columns.score{named}, or use another score.kind."
        )


def score_rows(judge: str, ids: list[str], judgement: Judgement, schema: pa.Schema) -> pa.Table:
    """One row a response: its verdict, and how many readable opinions it took part in."""
    heard: Counter[int] = Counter()
    for opinion in judgement.opinions:
        if opinion.score is not None:
            heard[opinion.item] += 1
            if opinion.against is not None:
                heard[opinion.against] += 1
    rows = [
        {
            **vars(verdict),
            "response_id": response,
            "judge": judge,
            "opinions": heard[row],
            "criteria": criteria.as_rows(verdict.criteria) or None,
        }
        for row, (response, verdict) in enumerate(zip(ids, judgement.verdicts, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def opinion_rows(ids: list[str], opinions: Sequence[Opinion]) -> pa.Table:
    """The opinions with the ids of the responses they are about."""
    rows = [
        {
            **vars(opinion),
            "response_id": ids[opinion.item],
            "against_id": None if opinion.against is None else ids[opinion.against],
        }
        for opinion in opinions
    ]
    return pa.Table.from_pylist(rows, schema=OPINIONS)


def opinion_figures(opinions: Sequence[Opinion]) -> dict[str, Any]:
    """For each judge: opinions, those without a score, and how the words were read."""
    judged: dict[str, list[Opinion]] = {}
    for opinion in opinions:
        judged.setdefault(opinion.judge, []).append(opinion)
    return {
        judge: {
            "count": len(own),
            "without_score": sum(opinion.score is None for opinion in own),
            "levels": tally(opinion.level for opinion in own if opinion.level),
        }
        for judge, own in sorted(judged.items())
    }


def tally(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def items_of(prompts: pa.Table, responses: pa.Table) -> list[Item]:
    """Each response with its prompt, reference and the source's own score of it."""
    needed = prompts.select(["prompt_id", "prompt", "given", "reference"])
    asked = pc.is_in(needed["prompt_id"], responses["prompt_id"].combine_chunks())
    owners = {row["prompt_id"]: row for row in needed.filter(asked).to_pylist()}
    items = []
    for row in responses.select(["prompt_id", "number", "text", "author"]).to_pylist():
        owner = owners[row["prompt_id"]]
        given = owner["given"][row["number"]] if row["number"] < len(owner["given"]) else None
        items.append(
            Item(
                prompt=owner["prompt"],
                text=row["text"],
                group=row["prompt_id"],
                reference=owner["reference"],
                given=given["score"] if given else None,
                author=row["author"],
                criteria=criteria.as_points(given.get("criteria")) if given else {},
                rationale=given.get("rationale") if given else None,
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

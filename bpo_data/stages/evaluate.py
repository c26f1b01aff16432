"""The trained policy against the SFT policy on prompts held out from both, by one judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import judges, kinds
from bpo_data.components.judging import Item, Judge
from bpo_data.components.wins import reasons_by_side, row_of, shown, topic_figures, win_figures
from bpo_data.generation import Sample
from bpo_data.llm.desk import Desk, asking_problems
from bpo_data.policy import Policy
from bpo_data.runtime import Runtime
from bpo_data.stages.score import ScoreConfig, items_of, model_digests
from bpo_data.statistics import Estimate, share_by_prompt
from bpo_data.tables import ID, columns, lot, maybe
from bpo_data.work import HOW

VERSION = 2


@dataclass
class EvaluateConfig:
    kind: str = ""
    """A judge of its own, a name in ``components.judges.KINDS`` or ``package.module:name``; empty
    is the judge of ``score``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind."""

    prompts: int = 0
    """Held-out prompts to use, drawn by lot; 0 uses all."""

    draws: int = 2
    """Responses of each policy per prompt; both sides of a draw share their random numbers."""

    temperature: float = 1.0
    """Sampling temperature of both policies; 0 compares greedy responses."""

    max_tokens: int = 512
    """Tokens a response may have."""

    batch: int = 256
    """Responses sampled together."""

    dtype: str = "float32"
    """Both policies are loaded with it, so that rounding alone never tells them apart."""

    mode: str = field(default="live", metadata=HOW)
    """``live``, or ``batch``: a judge's requests go through its server's batch endpoint."""

    seed: int = 0
    """Draws prompts and responses."""

    def judge(self, score: ScoreConfig) -> Judge:
        """Its own judge, or else that of the score stage. Raises UserError."""
        if not self.kind:
            return score.judge()
        judge: Judge = kinds.build(judges.KINDS, self.kind, self.options, "evaluate.kind")
        return judge

    def problems(self) -> Iterator[str]:
        if self.kind:
            yield from kinds.problems(judges.KINDS, self.kind, self.options, "evaluate.kind")
        elif self.options:
            yield "evaluate.options without a judge that has them: name it in evaluate.kind."
        if self.prompts < 0:
            yield f"evaluate.prompts={self.prompts}: give a number of prompts, or 0 for all."
        if min(self.draws, self.max_tokens, self.batch) < 1:
            yield "evaluate.draws, evaluate.max_tokens and evaluate.batch must be at least 1."
        if self.dtype not in ("float32", "bfloat16"):
            yield f"evaluate.dtype={self.dtype}: choose float32 or bfloat16."
        if self.temperature < 0:
            yield f"evaluate.temperature={self.temperature}: use 0 or more."
        yield from asking_problems(self.mode, (), "evaluate")


def ready(config: EvaluateConfig) -> None:
    """Raise UserError when its own judge lacks its key, before the stages ahead are made."""
    if config.kind:
        config.judge(ScoreConfig()).ready()


def outside(config: EvaluateConfig) -> dict[str, str]:
    """Digests of its own judge's model files, as ``score`` has them of its own."""
    return model_digests(config.kind, config.options)


def schema(config: EvaluateConfig) -> pa.Schema:
    return columns(
        prompt_id=ID,
        draw=pa.int32(),
        text_sft=pa.string(),
        text_trained=pa.string(),
        state_sft=pa.string(),
        state_trained=pa.string(),
        score_sft=maybe(pa.float32()),
        score_trained=maybe(pa.float32()),
        winner=maybe(pa.string()),
    )


def run(
    draft: Draft,
    config: EvaluateConfig,
    runtime: Runtime,
    *,
    prompts: pa.Table,
    responses: pa.Table,
    dataset: pa.Table,
) -> None:
    from bpo_data.policy import load_policy, policy_location

    policies = {}
    for side, table in (("sft", "policy"), ("trained", "trained")):
        model, revision = policy_location(draft.inputs[table].folder)
        policies[side] = load_policy(
            model, revision, runtime.torch_device(spread=True), config.dtype
        )
    asked = held_out(prompts, config)
    judge = config.judge(ScoreConfig(**draft.inputs["scores"].manifest["settings"]))
    if not asked:
        draft.facts["why_no_win_rate"] = (
            "no prompt is held out; raise load.test_share or give the source more prompts"
        )
    elif not judge.judges_new:
        draft.facts["why_no_win_rate"] = (
            f"the judge {judge.name} knows the source's own responses only, so new responses "
            f"have no points"
        )
        asked = []
    samples = {side: answers(draft, policy, asked, config) for side, policy in policies.items()}
    known = [item for item in items_of(prompts, responses) if item.given is not None]
    with draft.bar(2 * len(asked), "verdicts") as bar:
        desk = Desk("evaluate", runtime, config.mode, bar.update, bar.set_postfix_str)
        points, reasons = judged(judge, asked, samples, known, desk)
    desk.tell()
    rows = [
        row_of(prompt["prompt_id"], place % config.draws, place, samples, points)
        for place, prompt in enumerate(asked)
    ]
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    draft.facts |= win_figures(rows)
    draft.facts["by_topic"] = topic_figures(rows, asked)
    draft.facts["reasons"] = reasons
    draft.facts["requests"] = desk.facts()
    draft.facts["pair_accuracy"] = shown(pair_accuracy(policies, dataset))
    draft.note(draft.facts["without_verdict"], len(rows), "comparisons have no verdict")


def held_out(prompts: pa.Table, config: EvaluateConfig) -> list[dict[str, Any]]:
    """The test prompts to use, each as often as there are draws."""
    rows = prompts.filter(pc.equal(prompts["split"], "test")).to_pylist()
    rows.sort(key=lambda row: lot(config.seed, "evaluate", row["prompt_id"]))
    used = rows[: config.prompts or len(rows)]
    used.sort(key=lambda row: row["prompt_id"])
    return [row for row in used for _ in range(config.draws)]


def answers(
    draft: Draft, policy: Policy, asked: list[dict[str, Any]], config: EvaluateConfig
) -> list[Sample]:
    """A response of this policy for each row; a row's seed is the same for both policies."""
    from bpo_data.generation import sample

    seeds = [
        int(lot(config.seed, "draw", f"{row['prompt_id']}/{place % config.draws}")[:8], 16)
        for place, row in enumerate(asked)
    ]
    with draft.bar(len(asked), "responses") as bar:
        return sample(
            policy,
            [row["prompt"] for row in asked],
            seeds,
            max_new_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=1.0,
            batch_rows=config.batch,
            progress=bar,
        )


WRITTEN = ("ok", "truncated", "empty")
"""States of responses that a policy wrote; others were never sampled and cannot win or lose."""


def judged(
    judge: Judge,
    asked: list[dict[str, Any]],
    samples: dict[str, list[Sample]],
    known: list[Item],
    desk: Desk,
) -> tuple[dict[str, list[float | None]], dict[str, dict[str, int]]]:
    """The points of both sides' responses, and ``reasons_by_side`` of what was said of them.

    All are judged in one call: the same text gets the same points.
    """
    written = [
        (side, place, Item(row["prompt"], drawn.text, row["prompt_id"], row["reference"]))
        for side in samples
        for place, (row, drawn) in enumerate(zip(asked, samples[side], strict=True))
        if drawn.state in WRITTEN
    ]
    points: dict[str, list[float | None]] = {side: [None] * len(asked) for side in samples}
    if not written:
        return points, {}
    judgement = judge([item for _, _, item in written], known, desk)
    for (side, place, _), verdict in zip(written, judgement.verdicts, strict=True):
        points[side][place] = verdict.score
    return points, reasons_by_side(judgement, [side for side, _, _ in written])


def pair_accuracy(policies: dict[str, Policy], dataset: pa.Table) -> Estimate | None:
    """Share of held-out pairs in which training moved the chosen response up against the rejected.

    That is DPO's implicit reward accuracy: log-ratio to the SFT policy, chosen above rejected.
    """
    from bpo_data.likelihood import log_probs

    rows = dataset.filter(pc.equal(dataset["split"], "test")).to_pylist()
    if not rows:
        return None
    ratio = {}
    for side in ("chosen", "rejected"):
        conversations = [(row["prompt"], row[side][0]["content"]) for row in rows]
        trained, sft = (log_probs(policies[name], conversations) for name in ("trained", "sft"))
        ratio[side] = trained - sft
    right = (ratio["chosen"] > ratio["rejected"]).astype(float)
    return share_by_prompt(
        (row["prompt_id"], float(value)) for row, value in zip(rows, right, strict=True)
    )

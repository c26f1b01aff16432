"""The trained policy against another on prompts held out from both, by one judge.

The other, called ``sft`` in the table, is the SFT policy, or what ``evaluate.against`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import judges, kinds
from bpo_data.components.judging import Judge
from bpo_data.components.wins import shown, topic_figures
from bpo_data.evaluation import opponent
from bpo_data.evaluation.contest import DECODINGS, Contest, hold
from bpo_data.evaluation.divergence import divergence, divergence_figures
from bpo_data.evaluation.ranking import pair_accuracy, reference_ranking
from bpo_data.llm.desk import Desk, asking_problems
from bpo_data.policy import Policy, load_policy, policy_location
from bpo_data.runtime import Runtime
from bpo_data.stages.score import ScoreConfig, items_of, model_digests
from bpo_data.tables import ID, columns, lot, maybe
from bpo_data.work import HOW

VERSION = 4


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

    decoding: str = "sampled"
    """``sampled``, ``greedy`` (one response of each policy a prompt), or ``both``: then the greedy
    ones stand in ``greedy.parquet``."""

    against: str = ""
    """An earlier run's ``train-...`` folder, whose policy takes the SFT policy's seat; empty is the
    SFT policy of this run. The prompts are held out from that run too if it read the same ones with
    the same ``load.test_share`` and ``load.seed``; nothing checks that."""

    kl: bool = True
    """Measure how far the trained policy has moved from the SFT policy, on its own samples."""

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
        if self.decoding not in DECODINGS:
            yield f"evaluate.decoding={self.decoding}: choose {', '.join(DECODINGS)}."
        yield from opponent.problems(self.against)
        yield from asking_problems(self.mode, (), "evaluate")


def ready(config: EvaluateConfig) -> None:
    """Raise UserError when its own judge lacks its key, before the stages ahead are made."""
    if config.kind:
        config.judge(ScoreConfig()).ready()


def outside(config: EvaluateConfig) -> dict[str, str]:
    """Digests of its own judge's model files, as ``score`` has them of its own, and of the policy
    that ``against`` names."""
    return model_digests(config.kind, config.options) | opponent.digests(config.against)


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
    policies = loaded(draft, config, runtime)
    seats = {"sft": policies.get("against", policies["sft"]), "trained": policies["trained"]}
    judge = config.judge(ScoreConfig(**draft.inputs["scores"].manifest["settings"]))
    asked = answerable(draft, judge, held_out(prompts, config))
    contests = {
        name: hold(draft, seats, asked, config, name) for name in DECODINGS[config.decoding]
    }
    known = [item for item in items_of(prompts, responses) if item.given is not None]
    with draft.bar(sum(2 * len(one.asked) for one in contests.values()), "verdicts") as bar:
        desk = Desk(
            *("evaluate", runtime, config.mode, bar.update, bar.set_postfix_str), lines=draft.lines
        )
        judged = {name: one.judged(judge, known, desk) for name, one in contests.items()}
    desk.tell()
    first, *others = contests
    draft.write(judged[first].table(draft.schema))
    draft.facts |= judged[first].figures(config.seed)
    draft.facts["by_topic"] = topic_figures(judged[first].rows, contests[first].asked)
    draft.facts["reasons"] = judged[first].reasons
    draft.facts["diversity"] = contests[first].varied()
    for name in others:
        draft.write_beside(judged[name].table(draft.schema), f"{name}.parquet")
        figures = judged[name].figures(config.seed)
        draft.facts[name] = {**figures, "diversity": contests[name].varied()}
        missing, rows = figures["without_verdict"], len(judged[name].rows)
        draft.note(missing, rows, f"{name} comparisons have no verdict")
    draft.facts |= {"decoding": first, "against": config.against}
    draft.facts["requests"] = desk.facts()
    draft.facts |= moved(policies, config, contests)
    accuracy = pair_accuracy(policies["sft"], policies["trained"], dataset)
    draft.facts["pair_accuracy"] = shown(accuracy)
    measured = draft.inputs["gradients"].table(["response_id", "log_prob", "tokens"])
    ranking = reference_ranking(dataset, draft.inputs["pairs"].table(), measured)
    draft.facts["reference_ranking"] = {name: shown(share) for name, share in ranking.items()}
    rows = len(judged[first].rows)
    draft.note(draft.facts["without_verdict"], rows, "comparisons have no verdict")


def loaded(draft: Draft, config: EvaluateConfig, runtime: Runtime) -> dict[str, Policy]:
    """The policies ``sft`` and ``trained``, and ``against`` where one is named."""
    device = runtime.torch_device(spread=True)
    found = {}
    for side, table in (("sft", "policy"), ("trained", "trained")):
        model, revision = policy_location(draft.inputs[table].folder)
        found[side] = load_policy(model, revision, device, config.dtype)
    if config.against:
        found["against"] = opponent.load_opponent(config.against, device, config.dtype)
    return found


def held_out(prompts: pa.Table, config: EvaluateConfig) -> list[dict[str, Any]]:
    """The test prompts to use, each as often as there are draws."""
    rows = prompts.filter(pc.equal(prompts["split"], "test")).to_pylist()
    rows.sort(key=lambda row: lot(config.seed, "evaluate", row["prompt_id"]))
    used = rows[: config.prompts or len(rows)]
    used.sort(key=lambda row: row["prompt_id"])
    return [row for row in used for _ in range(config.draws)]


def answerable(draft: Draft, judge: Judge, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows again; none, and the reason in the facts, when their answers cannot be judged."""
    if not asked:
        draft.facts["why_no_win_rate"] = (
            "no prompt is held out; raise load.test_share or give the source more prompts"
        )
    elif not judge.judges_new:
        draft.facts["why_no_win_rate"] = (
            f"the judge {judge.name} knows the source's own responses only, so new responses "
            f"have no points"
        )
        return []
    return asked


def moved(
    policies: Mapping[str, Policy], config: EvaluateConfig, contests: Mapping[str, Contest]
) -> dict[str, Any]:
    """``kl``, or why there is none: only what was sampled at temperature 1 is of the policy."""
    why = ""
    if not config.kl:
        why = "evaluate.kl is false"
    elif "sampled" not in contests or config.temperature != 1:
        why = "it needs responses sampled at evaluate.temperature=1"
    elif not contests["sampled"].asked:
        why = "nothing was sampled"
    if why:
        return {"kl": None, "why_no_kl": why}
    drawn = contests["sampled"]
    found = divergence(policies["trained"], policies["sft"], drawn.asked, drawn.samples["trained"])
    return {"kl": divergence_figures(found)}

"""The pointwise judge: a language model grades one response at a time by a rubric."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from bpo_data.components import rubric_criteria
from bpo_data.components.fields import check_template
from bpo_data.components.judging import Item, Judgement, Opinion, summed_up
from bpo_data.components.model_judge import SECTION, ModelJudge, Question, heard
from bpo_data.components.rubric import FIELDS, JSON_SCHEMA, TEMPLATE, read_score, rubric_messages
from bpo_data.llm.client import Reply
from bpo_data.llm.desk import Desk


@dataclass
class Rubric(ModelJudge):
    """A language model that gives each response 1 to 10 points by a rubric, one at a time.

    A response's points are the mean over ``repeats``. A reply without one clear score gives none.
    """

    criteria: dict[str, str | None] = field(default_factory=dict)
    """Criteria to give points for one by one, in one reply: name and what it means. The score is
    their mean then; a reply in which one is missing or off the scale gives nothing. A ``template``
    shows them at ``{criteria}``, and at ``{form}`` an example of the reply."""

    scale: ClassVar[tuple[float, float] | None] = (1.0, 10.0)
    fields: ClassVar[tuple[str, ...]] = FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        rubric_criteria.check_criteria(self.criteria, f"{SECTION}.criteria")
        # Settings that differ in order alone are the same work, so they have to ask the same.
        self.criteria = dict(sorted(self.criteria.items()))
        if self.criteria and self.template:
            shown = (rubric_criteria.CRITERIA,)
            check_template(self.template, f"{SECTION}.template", shown)

    def requests(self, items: Sequence[Item]) -> list[Question]:
        template, form, more = self.template or TEMPLATE, JSON_SCHEMA, {}
        if self.criteria:
            template = self.template or rubric_criteria.TEMPLATE
            form = rubric_criteria.json_schema(list(self.criteria))
            more = rubric_criteria.filled_in(self.criteria)
        return [
            self.question(rubric_messages(template, item.prompt, item.text, more), form, repeat)
            for item in items
            for repeat in range(self.repeats)
        ]

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        replies = self.ask(self.requests(items), items, desk)
        opinions = [
            self.opinion(reply, *divmod(place, self.repeats)) for place, reply in enumerate(replies)
        ]
        verdicts = [
            summed_up(opinions[start : start + self.repeats])
            for start in range(0, len(opinions), self.repeats)
        ]
        return Judgement(verdicts, opinions)

    def opinion(self, reply: Reply, row: int, repeat: int) -> Opinion:
        criteria: dict[str, float] = {}
        score: float | None
        if self.criteria:
            found, state, level, words = heard(reply, self.read_criteria)
            criteria = found or {}
            score = statistics.fmean(criteria.values()) if criteria else None
        else:
            score, state, level, words = heard(reply, read_score)
        reason = None if score is None else rubric_criteria.reason_of(words)
        told = (score, state, words, level, repeat)
        return Opinion(self.name, row, *told, criteria=criteria, rationale=reason)

    def read_criteria(self, words: str) -> tuple[dict[str, float] | None, str]:
        return rubric_criteria.read_criteria(words, list(self.criteria))

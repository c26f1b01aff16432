"""A command's settings with the artifacts it has found or made so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.budget import RUN
from bpo_data.llm import ledger
from bpo_data.llm.forecast import Forecast
from bpo_data.llm.store import RequestStore
from bpo_data.mirror import Mirror
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import costs
from bpo_data.pipelines.steps import Step, steps
from bpo_data.shelf import Shelf
from bpo_data.stages import STAGES, Stage
from bpo_data.tables import canonical
from bpo_data.work import Work, settings_of


class Command:
    """What one command line asks for, and what is there of it."""

    def __init__(self, asked: settings.Asked) -> None:
        self.asked = asked
        self.config = asked.config
        self.runtime = asked.config.runtime
        self.shelf = Shelf(self.runtime.folder)
        self.mirror = Mirror(self.runtime.mirror) if self.runtime.mirror else None
        self.steps = steps(asked.stages, asked.config)
        self.made: dict[str, Artifact] = {}
        """Artifacts by their step's key; those of a last round by their table too."""

    def section(self, step: Step) -> Any:
        """The settings of a step."""
        return step.section or getattr(self.config, step.stage)

    def keep(self, step: Step, artifact: Artifact) -> None:
        """Put a finished artifact among what the command has."""
        self.made[step.key] = artifact
        if step.round in (0, self.config.rounds.count):
            self.made[step.kind.makes] = artifact

    def inputs(self, step: Step) -> dict[str, Artifact]:
        """What a step reads, by the names it knows. Raises KeyError where it is not made yet."""
        return {name: self.made[key] for name, key in step.inputs.items()}

    def work(self, step: Step) -> Work:
        """What a step would do with the inputs made so far."""
        stage, section, inputs = step.kind, self.section(step), self.inputs(step)
        outside = getattr(stage.module, "outside", None)
        return Work(
            stage=step.stage,
            version=stage.module.VERSION,
            settings=settings_of(section),
            inputs={table: used.digest for table, used in inputs.items()},
            outside=outside(section) if outside else {},
            shown=shown_by(stage, section, inputs),
        )

    def expected(self, step: Step) -> list[Forecast]:
        """What a step is expected to ask of models at servers."""
        if step.stage not in STAGES or not costs.asks(step.stage, self.config):
            return []
        found = costs.expected(step.stage, self.config, self.tables(step))
        return [replace(one, round=step.round) for one in found]

    def tables(self, step: Step | None = None) -> dict[str, Any]:
        """What is made so far of the tables that forecasts need; the responses are the step's."""
        names = {"prompts": "prompts", "selection": "selection"}
        if step:
            names["responses"] = step.inputs.get("responses", "responses")
        return {
            name: self.made[key].table()
            for name, key in names.items()
            if key in self.made and self.made[key].folder.exists()
        }

    def account(self) -> Iterator[tuple[str, ledger.Spent, ledger.Spent]]:
        """(account, what it came to, what of that is under way elsewhere or was cut off by a
        kill), where there is a request store."""
        path, name = self.runtime.store_file(), self.runtime.budget.account
        if path.exists():
            with RequestStore(path) as store:
                spent = ledger.spent(store.connection, name)
                yield name, spent, ledger.left_over(store.connection, name, RUN)


def shown_by(stage: Stage, section: Any, inputs: dict[str, Artifact]) -> dict[str, str]:
    """Digests of what a stage's views show beside its inputs' rows."""
    views = getattr(stage.module, "views", None)
    found = views(section) if views else {}
    facts = {f"facts of {table}": digest_of(used.facts) for table, used in inputs.items()}
    return found | (facts if stage.facts else {})


def digest_of(facts: dict[str, Any]) -> str:
    """16 hex digits that change with an artifact's facts."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]


def account_line(name: str, spent: ledger.Spent, lost: ledger.Spent, priced: bool) -> str:
    """What an account has come to, in a line."""
    usd = f", {spent.usd:,.4f} US dollars" if priced else ""
    left = f"; {lost.requests:,} of them under way in other runs or when one was killed"
    if lost.requests and lost.usd:
        left += f", counted at the most they may cost: {lost.usd:,.4f}"
    return f"account {name}: {spent.requests:,} requests so far{usd}{left if lost.requests else ''}"

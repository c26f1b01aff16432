"""A command's settings with the artifacts it has found or made so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.budget import RUN
from bpo_data.llm import ledger
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import costs
from bpo_data.pipelines.outlook import inputs_of, needed
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
        self.stages = needed(asked.stages)
        self.made: dict[str, Artifact] = {}
        """Artifacts by the table they hold."""

    def work(self, name: str) -> Work:
        """What a stage would do with the inputs made so far."""
        stage, section = STAGES[name], getattr(self.config, name)
        outside = getattr(stage.module, "outside", None)
        inputs = {table: self.made[table] for table in inputs_of(stage)}
        return Work(
            stage=name,
            version=stage.module.VERSION,
            settings=settings_of(section),
            inputs={table: used.digest for table, used in inputs.items()},
            outside=outside(section) if outside else {},
            shown=shown_by(stage, section, inputs),
        )

    def tables_for(self, name: str) -> dict[str, Any]:
        """The tables that the forecast of a stage needs; none for a stage that asks nothing."""
        return self.tables() if costs.asks(name, self.config) else {}

    def tables(self) -> dict[str, Any]:
        """What is made so far of the tables that forecasts need."""
        needed_for_costs = ("prompts", "selection", "responses")
        return {name: self.made[name].table() for name in needed_for_costs if name in self.made}

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

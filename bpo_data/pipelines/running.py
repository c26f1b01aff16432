"""Bring stages up to date: find each artifact or make it, one line each."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bpo_data import faults, hub, stopping
from bpo_data.artifacts import Artifact, Draft
from bpo_data.budget import RUN
from bpo_data.engines import engine_of
from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.forecast import Forecast, over_rounds, table
from bpo_data.llm.replies import ANSWERED
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.command import Command, account_line
from bpo_data.pipelines.saying import Voice, say
from bpo_data.pipelines.steps import Step
from bpo_data.shelf import LATEST
from bpo_data.work import Work


class Run(Command):
    """One command: every stage asked for and all it needs, in order, kept or made."""

    def __init__(self, asked: settings.Asked, voice: Voice | None = None, words: str = "") -> None:
        super().__init__(asked)
        self.voice = voice or Voice()
        self.words = words
        """The command line, for the note on what used an artifact."""
        self.forecasts: list[Forecast] = []
        """What the stages made in this run were expected to ask."""
        self.engine = engine_of(self.runtime)
        self.round = 0
        """The online round under way."""
        self.using = ExitStack()
        """Locks on the artifacts that this run needs, so that nobody removes them."""

    def go(self) -> None:
        """Make what is missing."""
        self.make_folder()
        with self.using:
            try:
                for step in self.steps:
                    self.head(step)
                    self.bring(step)
            finally:
                self.tell_bills()

    def hand_over(self) -> None:
        """Say where the results are, and send them where that is asked for."""
        self.last_line()
        for line in pushed(self, dry_run=False):
            self.voice.line(line)

    def make_folder(self) -> None:
        """Raises UserError where there can be none."""
        try:
            self.shelf.folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # such as below /proc; other faults name themselves
            raise UserError(
                f"runtime.folder={self.shelf.folder} cannot be made: {error.strerror}. "
                f"Name another folder."
            ) from error

    def head(self, step: Step) -> None:
        """A line where an online round begins, and where the last is over."""
        if step.round != self.round:
            self.round, count = step.round, self.config.rounds.count
            where = f"round {step.round} of {count}" if step.round else f"after {count} rounds"
            self.voice.line(where)

    def bring(self, step: Step) -> None:
        """Find the step's artifact or make it, and print its line."""
        name = step.called
        stopping.check()
        stopping.doing = step.name
        work = self.work(step)
        artifact, verb = self.shelf.find(work), "kept"
        if artifact is None:
            with self.shelf.held(work, waiting=lambda who: say(name, f"waiting: {who} makes it")):
                artifact = self.shelf.find(work)  # whoever held it may have finished it
                if artifact is None and self.mirror:
                    artifact, verb = self.mirror.fetch(work.name, self.shelf.folder), "fetched"
                if artifact is None:
                    self.check_ready(step)
                    say(name, f"running: {self.shelf.why(work)}")
                    artifact, verb = self.make(step, work), "made"
        self.keep(step, artifact)
        if self.mirror and verb != "fetched":
            self.mirror.send(artifact)
        if lock := self.shelf.use(artifact, self.words):
            self.using.enter_context(lock)
        self.voice.line(result_line(name, verb, artifact))
        self.voice.add("stages", row_of(step, verb, artifact))
        stopping.doing = ""

    def check_ready(self, step: Step) -> None:
        """What later steps need from the environment is missed before this one is made.

        The stage itself is not asked: its replies may all be in the store, which needs no key.
        """
        self.engine.check()
        if self.runtime.device == "cuda" and self.runtime.engine != "ray":
            self.runtime.torch_device()
        for later in self.steps[self.steps.index(step) + 1 :]:
            ready = getattr(later.kind.module, "ready", None)
            if ready:
                ready(self.section(later))

    def make(self, step: Step, work: Work) -> Artifact:
        from threadpoolctl import threadpool_limits

        threadpool_limits(self.runtime.threads)  # for libraries that are loaded already
        stage, section, inputs = step.kind, self.section(step), self.inputs(step)
        self.forecasts += self.expected(step)

        def run(draft: Draft) -> None:
            tables = {table: inputs[table].table() for table in stage.needs}
            stage.module.run(draft, section, self.runtime, **tables)

        try:
            schema = stage.module.schema(section)
            return self.shelf.make(work, stage.makes, schema, inputs, run, self.engine)
        except UserError as error:
            raise UserError(located(step, str(error))) from error
        except Exception as error:  # rises whole, with what we know
            if fault := faults.known(error, self.shelf.folder, step.name):
                raise fault from error
            error.add_note(
                f"This happened in the stage {step.name}. What it had finished is in "
                f"{self.shelf.folder / work.name}.partial, and the same command goes on from it."
            )
            raise

    def tell_bills(self) -> None:
        """Print what the requests of this run came to, beside what was expected of them."""
        path = self.runtime.store_file()
        if not path.exists():
            return
        with RequestStore(path) as store:
            bills = ledger.bills(store.connection, RUN, ANSWERED)
        if not bills:
            return
        asked = {bill.stage for bill in bills}
        expected = over_rounds(one for one in self.forecasts if one.stage in asked)
        for line in table(expected, bills):
            self.voice.line(line)
        self.voice.note(bills=bills)
        for name, spent, lost in self.account():
            priced = bool(self.runtime.budget.prices)
            self.voice.line(account_line(name, spent, lost, priced))
            self.voice.note(accounts={name: spent})

    def last_line(self) -> None:
        """Where the results are, and what the evaluation says."""
        found = results(self.made)
        parts = [f"{name} {path}" for name, path in found.items()]
        if "wins" in self.made:
            kind = self.config.evaluate.kind or self.config.score.kind
            by = ", by a fitted ranker: a stand-in judge" if kind == "preference" else ""
            if against := self.config.evaluate.against:
                by = f" against {against}{by}"
            parts.append(verdict(self.made["wins"].facts, by))
        if parts:
            self.voice.line("   ".join(parts))
        self.voice.note(**found)
        if found:
            link(self.shelf.folder / LATEST, list(found.values()))


def pushed(command: Command, *, dry_run: bool) -> list[str]:
    """Send the finished export to the hub where that is asked for; lines that say what was sent."""
    section = command.config.export
    if not section.push_to_hub or "dataset" not in command.made:
        return []
    folder = command.made["dataset"].folder
    return hub.push(folder, section.push_to_hub, private=section.private, dry_run=dry_run)


def results(made: dict[str, Artifact]) -> dict[str, Path]:
    """What a run ends with for people to take away: name -> path."""
    found = {}
    if "dataset" in made:
        found["dataset"] = made["dataset"].folder / "dataset"
    if "figures" in made:
        found["report"] = made["figures"].folder / "report.html"
    return found


def link(folder: Path, found: list[Path]) -> None:
    """Links ``latest/dataset`` and ``latest/report.html``, for a path that stays the same; links
    to what another run ended with go."""
    with suppress(OSError):  # a convenience, which not every file system knows
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            if old.is_symlink() and old.name not in {path.name for path in found}:
                old.unlink()
        for path in found:
            new = folder / f".{path.name}.{os.getpid()}"
            new.symlink_to(os.path.relpath(path, folder))
            new.replace(folder / path.name)


def located(step: Step, text: str) -> str:
    """A fault that the user mends, with the stage it came up in, and the round."""
    name = step.stage
    if step.round:
        text = text.removeprefix(f"{name}: ")
    elif text.startswith((f"{name}:", f"{name} ", f"{name}.")):
        return text
    return f"{step.name}: {text}"


def result_line(name: str, verb: str, artifact: Artifact) -> str:
    seconds = artifact.manifest["seconds"]
    what = artifact.facts.get("result", f"{artifact.rows:,} rows")
    return f"{name:<10} {verb:<4}  {what:>22}  {seconds:>8,.1f} s  {artifact.folder}"


def row_of(step: Step, verb: str, artifact: Artifact) -> dict[str, Any]:
    """A stage's line for scripts."""
    return {
        "stage": step.stage,
        "name": step.name,
        "round": step.round,
        "verb": verb,
        "rows": artifact.rows,
        "seconds": artifact.manifest["seconds"],
        "bytes": artifact.size,
        "folder": artifact.folder,
        "digest": artifact.digest,
        "facts": artifact.facts,
    }


def verdict(facts: dict[str, Any], by: str) -> str:
    """The evaluation in a few words; ``by`` is said of a win rate."""
    for figure, words in (("win_rate", "win rate"), ("pair_accuracy", "held-out pair accuracy")):
        estimate = facts[figure]
        if estimate:
            interval = (
                f" [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
                if estimate["low"] is not None
                else ""
            )
            judged = by if figure == "win_rate" else ""
            share = f"{100 * estimate['mean']:.1f} %"
            return f"{words} {share}{interval} on {estimate['count']:,} prompts{judged}"
    return "nothing held out to evaluate on"

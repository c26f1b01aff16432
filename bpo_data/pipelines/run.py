"""Bring stages up to date: ``python -m bpo_data.pipelines.run stage=all recipe=NAME``."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpo_data import stopping
from bpo_data.artifacts import Artifact, Draft, Shelf
from bpo_data.budget import RUN
from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.forecast import Forecast, table
from bpo_data.llm.replies import ANSWERED
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import costs
from bpo_data.pipelines.manual import describe
from bpo_data.runtime import Runtime, quiet_libraries
from bpo_data.stages import MAKER, STAGES, Stage
from bpo_data.work import Work, settings_of

USAGE = """\
python -m bpo_data.pipelines.run stage=STAGES recipe=NAME section.key=value ...

  stage    all, or names with commas; each is brought up to date with what it needs.
           {stages}
  recipe   {recipes},
           or a path to a .yaml file; without one, {default}.
  plan     plan=true prints what would run and why, and does nothing.

  --help SECTION lists a section's settings: {sections}."""


DISK_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.ENOTDIR, errno.EEXIST),
)
"""What a user mends by making room or naming another folder."""


def main(arguments: Sequence[str]) -> int:
    """Run a command line; the exit status: 0 done, 2 something to put right, 130 stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in (
        "httpx",
        "httpx2",
        "openai",
        "datasets",
        "transformers",
        "faiss",
        "trl",
        "accelerate",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    stopping.install()
    try:
        if "--help" in arguments or "-h" in arguments:
            print(help_text([word for word in arguments if not word.startswith("-")]))
            return 0
        if settings.is_ablation(arguments):
            compare(arguments)
            return 0
        asked = settings.read(arguments)
        prepare(asked.config.runtime)
        Run(asked).go()
        return 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"bpo_data: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        where = f" in {stopping.doing}" if stopping.doing else ""
        stopping.tell(f"stopped{where}; the same command goes on from here.")
        return 130
    except BrokenPipeError:  # the reader of our lines, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        print(
            f"bpo_data: {error.strerror}: {error.filename or 'the runs folder'}. Make room or use "
            f"another runtime.folder; the same command goes on from here.",
            file=sys.stderr,
        )
        return 2


def compare(arguments: Sequence[str]) -> None:
    """Run the arms of an ablation; print its table and write its page."""
    from bpo_data.pipelines import ablation, ablation_page

    recipe = settings.recipe_word(arguments)
    asked, shared = ablation.read(recipe, arguments)
    total = len(asked.all_worlds()) * len(asked.arms) * len(asked.all_seeds())
    outcomes = []
    for one in ablation.run(asked, shared):
        outcomes.append(one)
        what = f"{one.world}, {one.arm}, seed {one.seed}: {one.points:.3f} points"
        say("ablation", f"{len(outcomes)} of {total}: {what}")
    for line in ablation_page.lines(asked, outcomes):
        print(line)
    folder = Path(shared.get("runtime.folder", Runtime().folder)) / "ablation" / Path(recipe).stem
    command = "python -m bpo_data.pipelines.run " + " ".join(arguments)
    page = ablation_page.write(folder, asked, shared, outcomes, command)
    print(f"page {page}   rows {folder / 'outcomes.parquet'}")


def help_text(words: list[str]) -> str:
    if words:
        return "\n\n".join(describe(word) for word in words)
    return USAGE.format(
        stages=", ".join(STAGES),
        recipes=", ".join(settings.recipes()),
        default=settings.DEFAULT_RECIPE,
        sections=", ".join(field.name for field in dataclasses.fields(settings.Config)),
    )


def prepare(runtime: Runtime) -> None:
    """Thread counts for libraries not loaded yet, and no pings from any of them."""
    quiet_libraries()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(runtime.threads)


class Run:
    """One command: every stage asked for and all it needs, in order, kept or made."""

    def __init__(self, asked: settings.Asked) -> None:
        self.asked = asked
        self.runtime = asked.config.runtime
        self.shelf = Shelf(self.runtime.folder)
        self.made: dict[str, Artifact] = {}
        self.expected: list[Forecast] = []
        """What the stages made in this run were expected to ask."""

    def go(self) -> None:
        stages = needed(self.asked.stages)
        if self.asked.plan:
            for name in stages:
                self.foretell(name)
            self.tell_costs(stages)
            return
        try:
            for name in stages:
                self.bring(name)
        finally:
            self.tell_bills()
        self.last_line()

    def work(self, name: str) -> Work:
        """What this stage would do with the inputs made so far."""
        stage, section = STAGES[name], getattr(self.asked.config, name)
        outside = getattr(stage.module, "outside", None)
        return Work(
            stage=name,
            version=stage.module.VERSION,
            settings=settings_of(section),
            inputs={table: self.made[table].digest for table in inputs_of(stage)},
            outside=outside(section) if outside else {},
        )

    def bring(self, name: str) -> None:
        """Find the stage's artifact or make it, and print its line."""
        stopping.check()
        stopping.doing = name
        work, stage = self.work(name), STAGES[name]
        artifact, verb = self.shelf.find(work), "kept"
        if artifact is None:
            with self.shelf.held(work, waiting=lambda who: say(name, f"waiting: {who} makes it")):
                artifact = self.shelf.find(work)  # whoever held it may have finished it
                if artifact is None:
                    self.check_ready(name)
                    say(name, f"running: {self.shelf.why(work)}")
                    artifact, verb = self.make(name, work), "made"
        self.made[stage.makes] = artifact
        print(result_line(name, verb, artifact), flush=True)

    def check_ready(self, name: str) -> None:
        """What later stages need from the environment is missed before this one is made.

        The stage itself is not asked: its replies may all be in the store, which needs no key.
        """
        stages = needed(self.asked.stages)
        if self.runtime.device == "cuda":
            self.runtime.torch_device()
        for later in stages[stages.index(name) + 1 :]:
            ready = getattr(STAGES[later].module, "ready", None)
            if ready:
                ready(getattr(self.asked.config, later))

    def make(self, name: str, work: Work) -> Artifact:
        from threadpoolctl import threadpool_limits

        threadpool_limits(self.runtime.threads)  # for libraries that are loaded already
        stage, section = STAGES[name], getattr(self.asked.config, name)
        inputs = {table: self.made[table] for table in inputs_of(stage)}

        self.expected += costs.expected(name, self.asked.config, self.tables_for(name))

        def run(draft: Draft) -> None:
            tables = {table: self.made[table].table() for table in stage.needs}
            stage.module.run(draft, section, self.runtime, **tables)

        return self.shelf.make(work, stage.makes, stage.module.schema(section), inputs, run)

    def foretell(self, name: str) -> None:
        """Print whether a stage would be kept or run, and why."""
        stage = STAGES[name]
        missing = [MAKER[table] for table in inputs_of(stage) if table not in self.made]
        if missing:
            print(f"{name:<10} would run: after {', '.join(missing)}")
            return
        work = self.work(name)
        like = self.shelf.nearest(work)
        took = f"  ({like.manifest['seconds']:,.1f} s before that change)" if like else ""
        artifact = self.shelf.find(work)
        if artifact is None:
            print(f"{name:<10} would run: {self.shelf.why(work)}{took}")
        else:
            self.made[stage.makes] = artifact
            print(result_line(name, "kept", artifact))

    def tables_for(self, name: str) -> dict[str, Any]:
        """The tables that the forecast of a stage needs; none for a stage that asks nothing."""
        return self.tables() if costs.asks(name, self.asked.config) else {}

    def tables(self) -> dict[str, Any]:
        """What is made so far of the tables that forecasts need."""
        needed_for_costs = ("prompts", "selection", "responses")
        return {name: self.made[name].table() for name in needed_for_costs if name in self.made}

    def tell_costs(self, stages: Sequence[str]) -> None:
        """Print what the stages that would run ask of language models."""
        tables, config = self.tables(), self.asked.config
        open_stages = [name for name in stages if STAGES[name].makes not in self.made]
        found = [one for name in open_stages for one in costs.expected(name, config, tables)]
        for line in (*table(found), *costs.unknown(open_stages, config, tables)):
            print(line)
        for line in costs.beyond(found, config):
            print(line)
        if found and not config.budget.prices:
            print("Money is unknown: name a file of prices with budget.prices=PATH.")

    def tell_bills(self) -> None:
        """Print what the requests of this run came to, beside what was expected of them."""
        path = self.runtime.store_file()
        if not path.exists():
            return
        with RequestStore(path) as store:
            bills = ledger.bills(store.connection, RUN, ANSWERED)
            account = ledger.spent(store.connection, self.runtime.budget.account)
            lost = ledger.left_over(store.connection, self.runtime.budget.account, RUN)
        if not bills:
            return
        asked = {bill.stage for bill in bills}
        for line in table([one for one in self.expected if one.stage in asked], bills):
            print(line)
        usd = f", {account.usd:,.4f} US dollars" if self.runtime.budget.prices else ""
        left = f"; {lost.requests:,} of them under way in other runs or when one was killed"
        if lost.requests and lost.usd:
            left += f", counted at the most they may cost: {lost.usd:,.4f}"
        print(
            f"account {self.runtime.budget.account}: {account.requests:,} requests so far{usd}"
            f"{left if lost.requests else ''}"
        )

    def last_line(self) -> None:
        """Where the results are, and what the evaluation says."""
        parts = []
        if "dataset" in self.made:
            parts.append(f"dataset {self.made['dataset'].folder / 'dataset'}")
        if "figures" in self.made:
            parts.append(f"report {self.made['figures'].folder / 'report.html'}")
        if "wins" in self.made:
            parts.append(verdict(self.made["wins"].facts))
        if parts:
            print("   ".join(parts))


def needed(stages: Sequence[str]) -> list[str]:
    """The stages and all they need, in order."""
    found: set[str] = set()
    waiting = list(stages)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [MAKER[table] for table in inputs_of(STAGES[name])]
    return [name for name in STAGES if name in found]


def inputs_of(stage: Stage) -> list[str]:
    """The tables a stage reads, in the order of the stages that make them."""
    order = list(MAKER)
    return sorted({*stage.needs, *stage.also}, key=order.index)


def say(name: str, text: str) -> None:
    print(f"{name:<10} {text}", file=sys.stderr, flush=True)


def result_line(name: str, verb: str, artifact: Artifact) -> str:
    seconds = artifact.manifest["seconds"]
    what = artifact.facts.get("result", f"{artifact.rows:,} rows")
    return f"{name:<10} {verb}  {what:>22}  {seconds:>8,.1f} s  {artifact.folder}"


def verdict(facts: dict[str, Any]) -> str:
    """The evaluation in a few words."""
    for figure, words in (("win_rate", "win rate"), ("pair_accuracy", "held-out pair accuracy")):
        estimate = facts[figure]
        if estimate:
            interval = (
                f" [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
                if estimate["low"] is not None
                else ""
            )
            return (
                f"{words} {100 * estimate['mean']:.1f} %{interval} on {estimate['count']:,} prompts"
            )
    return "nothing held out to evaluate on"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

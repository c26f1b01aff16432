"""Recipes against each other: equal pairs, equal updates, several seeds, every measurement shared.

A recipe with a section ``ablation`` names arms, each a few settings that differ from a base recipe,
and worlds to run them in, settings too. An arm is run like any command, so what two arms have in
common (policy, responses, scores, gradients) is made once and found again, and a run that was
stopped goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bpo_data import disk, stopping
from bpo_data.engines import processes
from bpo_data.errors import UserError
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import named_code
from bpo_data.pipelines.values import TYPES, typed

SEEDED = (
    *("load.options.seed", "load.seed", "embed.seed", "select.seed", "sft.seed", "augment.seed"),
    *("score.options.seed", "pair.seed", "cluster.seed", "allocate.seed", "export.seed"),
    *("train.seed", "evaluate.seed"),
)
"""Settings that take the seed of a run; options where their kind has a seed."""

SEEDED_KINDS = {"load.options.seed": "topics", "score.options.seed": "verifier"}

TEXTS = ("title", "about", "base", "against", "card")
GROUPS = ("arms", "worlds")
NAME = re.compile(r"[\w.+-]*\w[\w.+-]*")
"""What an arm or a world may be called: it becomes part of a file's name and of a table."""
KINDS = {"quick": bool, **dict.fromkeys(TEXTS, str), **dict.fromkeys(GROUPS, dict)}
"""Types of the settings of ``Ablation`` that are no whole numbers."""


@dataclass
class Ablation:
    """What to compare."""

    title: str = "Depth rules against each other"
    """What the page is called."""

    about: str = ""
    """What is compared and why, in words for the page."""

    base: str = "quickstart"
    """The recipe that every arm starts from."""

    seeds: int = 10
    """How often all is done, each time with data, policy and draws of its own; intervals are over
    these."""

    first_seed: int = 0
    """The first of them; a confirmation uses seeds that no choice was made on."""

    against: str = "uniform"
    """The arm that the others are compared with, seed by seed."""

    processes: int = 2
    """Seeds run at the same time, each in a process with one thread."""

    worlds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings that all arms of a world have, by its name; none is the base recipe's world alone.
    """

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of each arm by its name, such as ``uniform: {allocate.kind: uniform}``."""

    card: str = ""
    """A file ``name.md`` to write the page to as well, its figures beside it."""

    quick: bool = False
    """Two seeds in place of ``seeds``, the first world alone: to see that it runs, not what it
    says."""

    def problems(self) -> Iterator[str]:
        if len(self.arms) < 2:
            yield "ablation.arms holds fewer than 2 arms; there is nothing to compare."
        if self.against not in self.arms:
            yield f"ablation.against={self.against} is no arm; there are {', '.join(self.arms)}."
        if min(self.seeds, self.processes) < 1 or self.first_seed < 0:
            yield "ablation.seeds and ablation.processes are at least 1, first_seed 0 or more."
        if self.card and not self.card.endswith(".md"):
            yield f"ablation.card={self.card}: name a Markdown file, such as evidence.md."
        elif self.card and (why := disk.not_writable(Path(self.card).parent)):
            yield f"ablation.card={self.card} cannot be written: {why}."

    def all_seeds(self) -> range:
        seeds = min(self.seeds, 2) if self.quick else self.seeds
        return range(self.first_seed, self.first_seed + seeds)

    def all_worlds(self) -> dict[str, dict[str, Any]]:
        """Settings of each world by its name."""
        worlds = self.worlds or {Path(self.base).stem: {}}
        return dict(list(worlds.items())[: 1 if self.quick else None])

    def group_problems(self) -> Iterator[str]:
        """What is wrong with the shape of arms and worlds, and with their names."""
        for group in GROUPS:
            for name, own in getattr(self, group).items():
                where = f"ablation.{group}.{name}"
                if not NAME.fullmatch(name):
                    yield f"{where}: use letters, digits, and . _ + - in a name."
                if not isinstance(own, dict):
                    yield f"{where}={own}: give {TYPES[dict]}, or nothing."


@dataclass(frozen=True)
class Outcome:
    """What an arm came to in one world with one seed."""

    world: str
    arm: str
    seed: int
    points: float
    """Mean points of the trained policy's answers to held-out prompts."""
    win_rate: float
    """Against the SFT policy, ties half."""
    head: float
    """Mean points over the third of the topics that the pool asks most often ..."""
    tail: float
    """... and least often."""
    pairs: int
    """Pairs trained on, those of all rounds."""
    prompts: int
    """Prompts with a pair, of the last round."""
    judged: int
    """Responses that were judged to make the pairs."""
    updates: int
    chosen_is_longer: float
    """Share of the kept pairs, equal lengths half."""


def read(recipe: str, words: Sequence[str]) -> tuple[Ablation, dict[str, Any]]:
    """The ablation of a recipe, and the command line's settings for all its arms.

    Raises UserError with a line for each thing wrong, those of every arm included.
    """
    problems: list[str] = []
    other, given = settings.split_words(words, problems)
    for word in sorted(other.keys() - {"recipe", "format"}):
        problems.append(
            f"{word}= has no use with an ablation, which runs all it needs; leave it out."
        )
    from yaml import YAMLError

    values = settings.read_recipe(recipe)
    named_code.check(recipe, values, given)
    own = {key: value for key, value in values.items() if key.startswith("ablation.")}
    own |= {key: value for key, value in given.items() if key.startswith("ablation.")}
    shared = {key: value for key, value in values.items() if key not in own}
    shared |= {key: value for key, value in given.items() if key not in own}
    known = {one.name: one for one in dataclasses.fields(Ablation)}
    found = Ablation()
    for key, value in own.items():
        name = key.removeprefix("ablation.")
        if name not in known:
            problems.append(f"There is no setting {key}. There are {', '.join(known)}.")
            continue
        kind = KINDS.get(name, int)
        try:
            setattr(found, name, group(value) if name in GROUPS else typed(value, kind))
        except (ValueError, KeyError, YAMLError):
            problems.append(f"{key}={value}: give {TYPES[kind]}.")
    problems += found.group_problems()
    if problems:  # arms that are none say nothing of what is in them
        raise UserError("\n".join(dict.fromkeys(problems)))
    if found.base.endswith((".yaml", ".yml")):
        named_code.check(found.base, settings.read_recipe(found.base), given)
    problems += found.problems()
    for name, arm in product(found.all_worlds(), found.arms):
        where = f"world {name}, arm {arm}" if found.worlds else f"arm {arm}"
        problems += [f"{where}: {line}" for line in arm_problems(found, name, arm, shared)]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return found, shared


def group(value: Any) -> dict[str, Any]:
    """Arms or worlds by name; nothing below a name is no settings. Raises ValueError."""
    found = typed(value, dict)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(value)
    return {str(name): {} if own is None else own for name, own in found.items()}


def arm_problems(ablation: Ablation, name: str, arm: str, shared: Mapping[str, Any]) -> list[str]:
    try:
        arm_settings(ablation, name, arm, shared, ablation.first_seed)
    except UserError as error:
        return str(error).splitlines()
    return []


def arm_settings(
    ablation: Ablation, name: str, arm: str, shared: Mapping[str, Any], seed: int
) -> settings.Asked:
    """What an arm asks for: base recipe < seed < command line < world < arm."""
    values, told = settings.read_recipe(ablation.base), dict[str, Any]()
    for more in (shared, ablation.all_worlds()[name], ablation.arms[arm]):
        own = settings.flat_arm(more)
        values = {**settings.without_stale_options(values, own), **own}
        told |= own
    values |= {key: seed for key in SEEDED if takes_seed(key, values) and not tells(told, key)}
    problems: list[str] = []
    built = settings.build(values, problems)
    problems += built.problems()
    if built.export.push_to_hub:
        problems.append("export.push_to_hub has no use in an ablation: no arm is to be published.")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return settings.Asked(built, ("evaluate",), ablation.base, plan=False)


def takes_seed(key: str, values: Mapping[str, Any]) -> bool:
    """Options have a seed only where their kind does: the generated world, its judge."""
    kind = SEEDED_KINDS.get(key)
    return kind is None or values.get(key.replace("options.seed", "kind")) == kind


def tells(told: Mapping[str, Any], key: str) -> bool:
    """Whether settings give a seed themselves, by its full name or among the options of a kind."""
    section, _, name = key.rpartition(".")
    options = typed(told.get(section) or {}, dict)  # text, where the command line gives them
    return key in told or name in options


def run(ablation: Ablation, shared: Mapping[str, Any]) -> Iterator[Outcome]:
    """Every arm in every world; seeds side by side, all of a seed one after the other.

    Yields outcomes as they come. Raises the first error of any arm, named; what is made is kept.
    """
    seeds = list(ablation.all_seeds())
    context = multiprocessing.get_context("spawn")
    count = min(ablation.processes, len(seeds))
    pool = ProcessPoolExecutor(count, context, begin)
    waiting = [pool.submit(of_seed, ablation, dict(shared), seed) for seed in seeds]

    def pass_on() -> None:
        for future in waiting:
            future.cancel()
        stopping.pass_on(multiprocessing.active_children())

    try:
        with stopping.told(pass_on):
            for done in as_completed(waiting):
                if not done.cancelled():
                    yield from done.result()
        stopping.check()
    except BrokenProcessPool as error:
        stopping.check()
        raise UserError(
            "a process of the ablation was killed, most often for want of memory. Lower "
            "ablation.processes and run the same command again: what is made is kept."
        ) from error
    except KeyboardInterrupt:
        if not stopping.at_once():
            wait(waiting)
        else:
            processes.end_children()
        raise
    except BaseException:
        processes.end_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin() -> None:
    """Set up a process of the pool."""
    processes.end_with_parent()
    stopping.follow()


def of_seed(ablation: Ablation, shared: Mapping[str, Any], seed: int) -> list[Outcome]:
    """All worlds and arms with one seed, in a process of its own; they print to a log."""
    from bpo_data.pipelines.running import Run
    from bpo_data.runtime import prepare

    found = []
    for name, arm in product(ablation.all_worlds(), ablation.arms):
        asked = arm_settings(ablation, name, arm, shared, seed)
        what = f"world {name}, arm {arm}, seed {seed}"
        prepare(asked.config.runtime)
        log = Path(asked.config.runtime.folder) / "ablation" / f"seed-{seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as lines, said_to(lines):
            made = Run(asked, words=what)
            try:
                made.go()
            except UserError as error:
                raise UserError(f"{what}: {error}") from error
        wins = made.made["wins"].facts
        if not wins["win_rate"]:
            raise UserError(f"{what}: there is no win rate. {wins['why_no_win_rate']}")
        found.append(outcome(name, arm, seed, made.made))
    return found


@contextlib.contextmanager
def said_to(lines: Any) -> Iterator[None]:
    """Everything that is printed and logged goes to a file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=lines, force=True)
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
        yield


def outcome(name: str, arm: str, seed: int, made: Mapping[str, Any]) -> Outcome:
    """The figures of a finished run."""
    wins, dataset = (made[name].facts for name in ("wins", "dataset"))
    head, tail = head_and_tail(made["prompts"].table(["split", "topic"]).to_pylist(), wins)
    return Outcome(
        world=name,
        arm=arm,
        seed=seed,
        points=wins["score_trained"]["mean"],
        win_rate=wins["win_rate"]["mean"],
        head=head,
        tail=tail,
        pairs=sum(facts["pairs"] for facts in of_rounds(made, "dataset")),
        prompts=dataset["prompts"],
        judged=sum(sum(facts["states"].values()) for facts in of_rounds(made, "scores")),
        updates=sum(facts["updates"] for facts in of_rounds(made, "trained")),
        chosen_is_longer=dataset["lengths"]["kept"]["longer_share"],
    )


def of_rounds(made: Mapping[str, Any], table: str) -> list[Mapping[str, Any]]:
    """Facts of a table, of each online round where there are several."""
    several = [artifact.facts for key, artifact in made.items() if key.startswith(f"{table}.")]
    return several or [made[table].facts]


def head_and_tail(
    prompts: Sequence[Mapping[str, Any]], wins: Mapping[str, Any]
) -> tuple[float, float]:
    """Mean points over the third of the topics asked most, and asked least, in the pool."""
    count = dict.fromkeys(wins["by_topic"], 0)
    for row in prompts:
        if row["split"] == "pool" and row["topic"] in count:
            count[row["topic"]] += 1
    order = sorted(count, key=lambda topic: (-count[topic], topic))
    third = max(1, len(order) // 3)
    means = [
        sum(wins["by_topic"][topic]["trained"] for topic in part) / len(part)
        for part in (order[:third], order[-third:])
        if part
    ]
    return (means[0], means[1]) if means else (float("nan"), float("nan"))

"""The steps of a command: the stages in order, and those of online rounds once for each round.

With one round a step is a stage, and its inputs are the tables by their names. With more, the
tables of a round are told apart as ``trained.2``; a later round's policy is what the round before
it trained, and what its losses compare with is what ``rounds.reference`` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bpo_data.stages import EVERY, MAKER, STAGES, Stage
from bpo_data.stages.blend import BlendConfig
from bpo_data.stages.rounds import AFTER, PARTS

if TYPE_CHECKING:
    from bpo_data.pipelines.config import Config

REPEATED = ("augment", "score", "gradients", "pair", "cluster", "allocate", "export", "train")
"""The stages of a round."""
FOLLOWING = ("augment", "gradients", "train")
"""Stages that work with the policy of their round, not with the SFT policy."""
LAST = ("evaluate", "rounds", "report")
"""Stages after the rounds."""
LATER = (*REPEATED, *LAST)
OF_A_ROUND = (*(STAGES[name].makes for name in REPEATED), AFTER)


@dataclass(frozen=True)
class Step:
    """A stage, once."""

    stage: str
    inputs: Mapping[str, str]
    """What the stage calls an input -> the key of the artifact that it is."""
    key: str
    """Of the artifact it makes: the table, and the round where there are several."""
    round: int = 0
    """From 1; 0 outside rounds, and where there is only one."""
    section: BlendConfig | None = field(default=None, compare=False)
    """Its settings, where the command's have no section of them."""

    @property
    def called(self) -> str:
        """The stage; of a blend, what it is for."""
        return self.stage if self.stage in STAGES else self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """What it is called, with the round."""
        return f"{self.called} {self.round}" if self.round else self.called

    @property
    def kind(self) -> Stage:
        return EVERY[self.stage]


def inputs_of(stage: Stage) -> list[str]:
    """The tables a stage reads, in the order of the stages that make them."""
    order = list(MAKER)
    return sorted({*stage.needs, *stage.also}, key=order.index)


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


def steps(asked: Sequence[str], config: Config) -> list[Step]:
    """Everything that the stages asked for need, in the order in which it can be made."""
    names = needed(asked)
    if config.rounds.count == 1 or not set(names) & set(REPEATED):
        return [plain(name) for name in names]
    rounds = Rounds(config)
    found = [plain(name) for name in needed([*names, "train"]) if name not in LATER]
    for number in range(1, config.rounds.count + 1):
        last = number == config.rounds.count
        found += rounds.between(number)
        found += [rounds.step(name, number) for name in REPEATED if not last or name in names]
        if config.rounds.evaluate_each and not last and "evaluate" in names:
            found.append(rounds.step("evaluate", number))
    ends = {*names, *(["rounds"] if "report" in names else [])}
    return found + [rounds.step(name, 0) for name in LAST if name in ends]


def plain(name: str) -> Step:
    """A stage that reads tables by their own names."""
    stage = STAGES[name]
    return Step(name, {table: table for table in inputs_of(stage)}, stage.makes)


class Rounds:
    """The steps of several rounds."""

    def __init__(self, config: Config) -> None:
        self.settings = config.rounds
        two = "inpo" in config.train.loss.split("+")
        self.compared = ("gradients",) if two else ("gradients", "train")
        """Stages that are given the reference: a loss with two has it from the gradients stage, and
        whatever it is joined with compares with the round's policy."""
        self.always = two

    def policy(self, number: int) -> str:
        """Key of the policy that samples the round and that it trains."""
        if number == 1:
            return "policy"
        return f"start.{number}" if self.settings.extrapolate else f"trained.{number - 1}"

    def reference(self, number: int) -> str:
        """Key of what the round's losses compare with; empty where that is the round's policy."""
        kind = self.settings.reference
        if kind == "behaviour" or (number == 1 and not self.always):
            return ""
        return "policy" if kind == "sft" or number == 1 else f"reference.{number}"

    def between(self, number: int) -> Iterator[Step]:
        """What is made of policies before the round begins."""
        if number == 1:
            return
        before = f"trained.{number - 1}"
        if self.settings.extrapolate:
            older = "policy" if number == 2 else f"trained.{number - 2}"
            yield blended("start", number, before, older, 1 + self.settings.extrapolate)
        if self.settings.reference == "ema":
            older = "policy" if number == 2 else f"reference.{number - 1}"
            newer = self.policy(number)
            yield blended("reference", number, newer, older, 1 - self.settings.decay)

    def step(self, name: str, number: int) -> Step:
        """A stage of a round; ``number`` 0 is a stage after the last."""
        stage, at = EVERY[name], number or self.settings.count
        if name == "rounds":
            return Step(name, self.looked_at(), stage.makes)
        inputs = {
            table: f"{table}.{at}" if table in OF_A_ROUND else table for table in inputs_of(stage)
        }
        if name in FOLLOWING:
            inputs["policy"] = self.policy(at)
        if name in self.compared and self.reference(at):
            inputs["reference"] = self.reference(at)
        if name == "export" and at > 1:
            inputs |= self.past(at)
        if name == "report":
            before = {table: key for table, key in inputs.items() if table not in OF_A_ROUND}
            inputs = before | self.earlier() | inputs | {"rounds": "rounds"}
        key = f"{stage.makes}.{at}" if stage.makes in OF_A_ROUND else stage.makes
        return Step(name, inputs, key, number)

    def past(self, number: int) -> dict[str, str]:
        """What a round owes to those before it, for the card to tell."""
        found = {"trained": f"trained.{number - 1}"}
        if self.settings.extrapolate:
            found["start"] = self.policy(number)
        return found | ({"reference": key} if (key := self.reference(number)) else {})

    def earlier(self) -> dict[str, str]:
        """What rounds before the last made, for the page to count; "trained 1" by name."""
        keys: list[str] = []
        for number in range(1, self.settings.count):
            keys += [one.key for one in self.between(number)]
            keys += [self.step(name, number).key for name in REPEATED]
            keys += [f"{AFTER}.{number}"] if self.settings.evaluate_each else []
        return spaced([*keys, *(one.key for one in self.between(self.settings.count))])

    def looked_at(self) -> dict[str, str]:
        """What the table of rounds is made from."""
        tables = (*PARTS, AFTER) if self.settings.evaluate_each else PARTS
        return spaced(
            f"{table}.{number}" for number in range(1, self.settings.count + 1) for table in tables
        )


def spaced(keys: Iterable[str]) -> dict[str, str]:
    """Keys by the names that inputs of several rounds have: "trained 1"."""
    return {key.replace(".", " "): key for key in keys}


def blended(key: str, number: int, newer: str, older: str, share: float) -> Step:
    inputs = {"newer": newer, "older": older}
    return Step("blend", inputs, f"{key}.{number}", number, BlendConfig(share))


def direct(step: Step, steps: Sequence[Step]) -> list[str]:
    """Names of the steps that one waits for, less those that another of them waits for anyway."""
    makers = {one.key: one for one in steps}

    def before(one: Step) -> dict[str, Step]:
        found = (makers[key] for key in one.inputs.values() if key in makers)
        return {above.name: above for above in found}

    def all_before(one: Step) -> set[str]:
        found: set[str] = set()
        waiting = [one]
        while waiting:
            for name, above in before(waiting.pop()).items():
                if name not in found:
                    found.add(name)
                    waiting.append(above)
        return found

    above = before(step)
    further = set().union(*(all_before(one) for one in above.values())) if above else set()
    return [one.name for one in steps if one.name in above and one.name not in further]

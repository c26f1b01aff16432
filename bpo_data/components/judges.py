"""Who gives a response its points."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence

from bpo_data.components import kinds
from bpo_data.components.judging import Item, Judge, Judgement, Offline, Verdict, sole
from bpo_data.components.pairwise_judge import Pairwise
from bpo_data.components.panel import Panel
from bpo_data.components.preference import Preference
from bpo_data.components.reward_model import RewardModel
from bpo_data.components.rubric_judge import Rubric
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.tables import lot


class GivenScores(Offline):
    """The source's own scores, with its points by criterion and its reasons where it has them.

    A response without a score has neither.
    """

    name = "given"
    judges_new = False

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        desk.done(len(items))
        verdicts = [
            Verdict(None, "no_score", "")
            if item.given is None
            else Verdict(item.given, "ok", "", None, item.criteria, item.rationale)
            for item in items
        ]
        return sole(self.name, verdicts)


class Verifier(Offline):
    """A Python function ``(prompt, response, reference) -> (points, reason)``.

    It says that it cannot judge by raising ValueError; that response has no score then.

    With ``noise`` it rehearses an unsure judge: each response's points are off by a normal draw of
    that standard deviation, the same one for the same response, in the same ``seed``.
    """

    judges_new = True

    def __init__(
        self,
        function: str = "bpo_data.components.topics:verify",
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise={noise}: a standard deviation is 0 or more")
        self.name, self.noise, self.seed = function, noise, seed
        self.function = kinds.outside(function, "score.options.function")
        try:
            inspect.signature(self.function).bind("prompt", "response", "reference")
        except TypeError as error:
            raise UserError(
                f"score.options.function={function} cannot be called with (prompt, response, "
                f"reference): {error}. It returns (points, reason)."
            ) from error

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        verdicts = []
        for item in items:
            verdicts.append(self.verdict(item))
            desk.done(1)
        return sole(self.name, verdicts)

    def verdict(self, item: Item) -> Verdict:
        try:
            points, reason = self.function(item.prompt, item.text, item.reference)
            finite = math.isfinite(points)
        except ValueError as error:
            return Verdict(None, "verifier_failed", str(error))
        except Exception as error:  # the user's own code: let it rise, with what we know
            error.add_note(f"score.options.function={self.name}, prompt {item.group}")
            raise
        if not finite:
            return Verdict(None, "unreadable", str(reason))
        told = str(reason)
        return Verdict(float(points) + self.mistake(item), "ok", told, rationale=told or None)

    def mistake(self, item: Item) -> float:
        if not self.noise:
            return 0.0
        draw = random.Random(lot(self.seed, "judge", f"{item.group}/{item.text}"))
        return draw.gauss(0, self.noise)


KINDS: dict[str, Callable[..., Judge]] = {
    "given": GivenScores,
    "verifier": Verifier,
    "rubric": Rubric,
    "pairwise": Pairwise,
    "reward_model": RewardModel,
    "preference": Preference,
    "panel": Panel,
}

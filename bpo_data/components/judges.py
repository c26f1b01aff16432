"""Who gives a response its points."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

from bpo_data.components import kinds
from bpo_data.errors import UserError
from bpo_data.llm.endpoint import Endpoint
from bpo_data.runtime import Runtime
from bpo_data.tables import Message, canonical

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

STATES = ("ok", "no_score", "unreadable", "verifier_failed", "request_failed")


@dataclass(frozen=True)
class Item:
    """A response to be judged."""

    prompt: Sequence[Message]
    text: str
    group: str
    """The prompt's id: comparisons stay within a group."""
    reference: str | None = None
    given: float | None = None
    """The source's own score of this response."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one response."""

    score: float | None
    """Points on the judge's scale; None where it said nothing readable, never 0 for that."""
    state: str
    """One of ``STATES``."""
    reply: str
    """The judge's words, verbatim."""


class Judge(Protocol):
    name: str
    judges_new: bool
    """Whether it can judge a response that the source does not hold."""

    def ready(self) -> None:
        """Raise UserError when something it needs from the environment is missing."""

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        """A verdict for each item, in order; ``known`` are items to learn from, with given scores.

        ``done(n)`` is told of n more verdicts.
        """


class AlwaysReady:
    """A judge that needs nothing from the environment."""

    def ready(self) -> None:
        return


class GivenScores(AlwaysReady):
    """The source's own scores; a response without one has no score."""

    name = "given"
    judges_new = False

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        done(len(items))
        return [
            Verdict(item.given, "ok" if item.given is not None else "no_score", "")
            for item in items
        ]


class Verifier(AlwaysReady):
    """A Python function ``(prompt, response, reference) -> (points, reason)``.

    It says that it cannot judge by raising ValueError; that response has no score then.
    """

    judges_new = True

    def __init__(self, function: str = "bpo_data.components.topics:verify") -> None:
        self.name = function
        self.function = kinds.outside(function, "score.options.function")

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        verdicts = []
        for item in items:
            try:
                points, reason = self.function(item.prompt, item.text, item.reference)
                finite = math.isfinite(points)
                state = "ok" if finite else "unreadable"
                verdicts.append(Verdict(float(points) if finite else None, state, str(reason)))
            except ValueError as error:
                verdicts.append(Verdict(None, "verifier_failed", str(error)))
            except Exception as error:  # the user's own code: let it rise, with what we know
                error.add_note(f"score.options.function={self.name}, prompt {item.group}")
                raise
            done(1)
        return verdicts


class Rubric:
    """A language model that gives each response 1 to 10 points by a rubric, one at a time."""

    judges_new = True

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        key_variable: str = "OPENAI_API_KEY",
        template: str = "",
        temperature: float = 0.0,
        max_tokens: int = 512,
        json_schema: bool = True,
        max_failed: float = 0.01,
        seed: int = 0,
    ) -> None:
        from bpo_data.components.rubric import check_template

        if template:
            check_template(template, "score.options.template")
        self.name = model
        self.endpoint = Endpoint(base_url, key_variable, section="score.options")
        self.template = template
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.json_schema = json_schema
        self.max_failed = max_failed
        self.seed = seed

    def ready(self) -> None:
        self.endpoint.key()

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        from bpo_data.components.rubric import JSON_SCHEMA, TEMPLATE, read_score, rubric_messages
        from bpo_data.llm.client import Request, check_failures, complete
        from bpo_data.llm.store import RequestStore

        extra = {"response_format": JSON_SCHEMA} if self.json_schema else None
        requests = [
            (
                Request(
                    messages=rubric_messages(self.template or TEMPLATE, item.prompt, item.text),
                    model=self.name,
                    temperature=self.temperature,
                    top_p=1.0,
                    max_tokens=self.max_tokens,
                    seed=self.seed,
                    extra=extra,
                ),
                0,
            )
            for item in items
        ]
        with RequestStore(runtime.store_path()) as store:
            replies = complete(
                requests,
                endpoint=self.endpoint,
                store=store,
                concurrency=runtime.concurrency,
                on_done=lambda number, reply, fresh: done(1),
            )
        check_failures(replies, self.max_failed, "score.options")
        verdicts = []
        for reply in replies:
            if reply.state not in ("ok", "truncated"):
                verdicts.append(Verdict(None, "request_failed", reply.detail or reply.text))
                continue
            score, _ = read_score(reply.text)
            verdicts.append(Verdict(score, "ok" if score is not None else "unreadable", reply.text))
        return verdicts


class Preference(AlwaysReady):
    """A ranker fitted on the source's own preferences: TF-IDF words and length, Bradley-Terry.

    Logistic regression on the difference of two responses' features is Bradley and Terry's model
    (1952) with a linear strength. Prompts are dealt into ``folds``; each response is judged by a
    ranker that has not seen its prompt (with so few prompts that no other fold has a preference,
    by one that has seen all). Points are 1 + 9 * sigmoid(strength), so they rank within
    a prompt; their distance across prompts means little. A weak judge, but it needs no server.
    """

    name = "preference"
    judges_new = True

    def __init__(self, folds: int = 5, strength: float = 1.0, words: int = 20000) -> None:
        if folds < 2 or strength <= 0 or words < 1:
            raise ValueError("folds must be at least 2, strength above 0, words at least 1")
        self.folds = folds
        self.strength = strength
        self.words = words

    def __call__(
        self,
        items: Sequence[Item],
        known: Sequence[Item],
        runtime: Runtime,
        done: Callable[[int], None],
    ) -> list[Verdict]:
        import numpy as np
        from scipy.special import expit

        pairs = preferred(known)
        if not pairs:
            raise UserError(
                "score.kind=preference has no preference to learn from: the source's responses "
                "carry no scores that differ within a prompt. Use another score.kind."
            )
        # Words are learnt from ``known`` alone: a verdict must not depend on what else is judged.
        words = self.vectorizer().fit([item.text for item in known])
        learnt = features(words, [item.text for item in known])
        asked = features(words, [item.text for item in items])
        utility = np.zeros(len(items))
        folds = np.array([fold_of(item.group, self.folds) for item in items])
        for fold in range(self.folds):
            seen = [pair for pair in pairs if fold_of(known[pair[0]].group, self.folds) != fold]
            rows = np.flatnonzero(folds == fold)
            if len(rows):
                utility[rows] = asked[rows] @ self.fit(learnt, seen or pairs)
            done(len(rows))
        return [Verdict(float(points), "ok", "") for points in 1 + 9 * expit(utility)]

    def vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            token_pattern=r"(?u)\w+|[^\w\s]",
            ngram_range=(1, 2),
            sublinear_tf=True,
            max_features=self.words,
        )

    def fit(self, features: csr_matrix, pairs: list[tuple[int, int]]) -> Any:
        """The weights (words + 1,) under which the first of each pair is the stronger."""
        import numpy as np
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        better, worse = np.array(pairs).T
        difference = features[better] - features[worse]
        both = vstack([difference, -difference])
        labels = np.repeat([1, 0], len(pairs))
        model = LogisticRegression(C=self.strength, fit_intercept=False, max_iter=1000)
        return model.fit(both, labels).coef_[0]


def features(words: Any, texts: list[str]) -> csr_matrix:
    """(n, words + 1) TF-IDF of words and word pairs, and the log of the length in words."""
    import numpy as np
    from scipy.sparse import csr_matrix, hstack

    length = np.log1p([len(text.split()) for text in texts])[:, None]
    return hstack([words.transform(texts), csr_matrix(length)]).tocsr()


def preferred(known: Sequence[Item]) -> list[tuple[int, int]]:
    """(better, worse) row numbers of all pairs of a group whose given scores differ."""
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(known):
        if item.given is not None:
            groups.setdefault(item.group, []).append(row)
    found = []
    for rows in groups.values():
        for one, other in combinations(rows, 2):
            first, second = known[one].given, known[other].given
            if first is not None and second is not None and first != second:
                found.append((one, other) if first > second else (other, one))
    return found


def fold_of(group: str, folds: int) -> int:
    """A fold that belongs to the prompt."""
    return int(hashlib.sha256(canonical(["fold", group]).encode()).hexdigest()[:8], 16) % folds


KINDS = {"given": GivenScores, "verifier": Verifier, "rubric": Rubric, "preference": Preference}

"""Who gives a response its points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bpo_data.components import kinds
from bpo_data.components.judging import AlwaysReady, Item, Verdict
from bpo_data.components.preference import Preference
from bpo_data.llm.endpoint import Endpoint
from bpo_data.runtime import Runtime


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


KINDS = {"given": GivenScores, "verifier": Verifier, "rubric": Rubric, "preference": Preference}

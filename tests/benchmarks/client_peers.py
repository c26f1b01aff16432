"""Clients of other projects, called as their documents say; needs nothing but them.

Run by ``tests.benchmarks.client`` as a script, with the Python of the peers' environment.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

TOKENS = 256
"""Words of an answer, which are the stub's tokens."""


def prompt(number: int) -> str:
    """1 KB that no other request has."""
    return f"{number:8} " + "word " * 203


def used() -> float:
    """CPU seconds of this process and of its children that ended."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def report(before: float, **more: float) -> None:
    print(json.dumps({"cpu": used() - before, **more}), flush=True)


def curator(url: str, at_once: int, count: int) -> None:
    """bespokelabs-curator, its limits out of the way.

    Its count of tokens wants a file from the network; here a token is a word, which is quicker.
    """
    os.environ |= {"TELEMETRY_ENABLED": "false", "CURATOR_VIEWER": "0"}
    import tiktoken

    words = SimpleNamespace(encode=lambda text, **_: text.split())
    tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: words
    from bespokelabs import curator as peer

    with tempfile.TemporaryDirectory() as folder:
        model = peer.LLM(
            model_name="tiny",
            backend="openai",
            backend_params={
                "base_url": url,
                "api_key": "none",
                "max_concurrent_requests": at_once,
                "max_requests_per_minute": 10**9,
                "max_tokens_per_minute": 10**12,
                "max_retries": 1,
            },
            generation_params={"max_tokens": TOKENS},
        )
        model([prompt(-1)], working_dir=folder)
        before = used()
        answers = model([prompt(number) for number in range(count)], working_dir=folder)
        report(before)
        assert len(getattr(answers, "dataset", answers)) == count


def distilabel(url: str, at_once: int, count: int) -> None:
    """distilabel's pipeline: a batch at a time, as large as may be under way at once."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    def run(numbers: range) -> int:
        with tempfile.TemporaryDirectory() as folder, Pipeline(cache_dir=folder) as pipeline:
            rows = LoadDataFromDicts(
                data=[{"instruction": prompt(number)} for number in numbers], batch_size=at_once
            )
            model = OpenAILLM(
                model="tiny",
                base_url=url,
                api_key="none",
                generation_kwargs={"max_new_tokens": TOKENS},
            )
            rows >> TextGeneration(llm=model, input_batch_size=at_once)
            made = pipeline.run(use_cache=False)
            return sum(len(split) for split in made["default"].values())

    run(range(-1, 0))
    before = used()
    made = run(range(count))
    report(before)
    assert made == count


PEERS: dict[str, Callable[[str, int, int], None]] = {"curator": curator, "distilabel": distilabel}


if __name__ == "__main__":
    _, _, name, url, at_once, count = sys.argv
    PEERS[name](url, int(at_once), int(count))

"""What the stages of a run will ask of language models, told before any of it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.components.embedders import Server
from bpo_data.components.judging import Item, Offline, requests_of
from bpo_data.evaluation.contest import DECODINGS, rows_of
from bpo_data.llm import ledger
from bpo_data.llm.forecast import Asks, Forecast, forecasts
from bpo_data.llm.prices import read_prices
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines.config import Config
from bpo_data.stages import augment, embed, evaluate, score
from bpo_data.tables import Message, lookup

Tables = Mapping[str, pa.Table]
"""The tables that are made already, by name."""

LETTERS = 4
"""Bytes of a token, for responses that are not written yet."""


def asks(stage: str, config: Config) -> bool:
    """Whether a stage asks language models at a server, as it is set."""
    if stage == "embed":
        return config.embed.kind == "server"
    if stage == "augment":
        return config.augment.client == "openai"
    if stage not in ASKS:
        return False
    judge = config.score.judge()
    if stage == "evaluate":
        judge = config.evaluate.judge(config.score)
    return not isinstance(judge, Offline)


def expected(stage: str, config: Config, tables: Tables) -> list[Forecast]:
    """The forecast of a stage; empty for a stage that asks nothing."""
    found = ASKS[stage](config, tables) if asks(stage, config) else None
    if found is None or not found.requests:
        return []
    prices = read_prices(config.budget.prices)
    path = config.runtime.store_file()
    if not path.exists():
        return list(forecasts(stage, found, None, config.runtime, prices))
    with RequestStore(path) as store:
        return list(forecasts(stage, found, store, config.runtime, prices))


def embed_asks(config: Config, tables: Tables) -> Asks | None:
    embedder = config.embed.embedder()
    if "prompts" not in tables or not isinstance(embedder, Server):
        return None
    requests = embedder.requests(list(embed.pool_texts(tables["prompts"]).values()))
    return Asks([(embedder.endpoint, request, 0) for request in requests])


def augment_asks(config: Config, tables: Tables) -> Asks | None:
    kept, guess = kept_prompts(config, tables)
    if kept is None:
        return None
    new = [row for row in augment.wanted_rows(kept, config.augment) if not row["given"]]
    requests = augment.requests_of(config.augment, new)
    return Asks(requests, config.augment.mode, config.augment.longer, guess)


def score_asks(config: Config, tables: Tables) -> Asks | None:
    judge = config.score.judge()
    if "responses" in tables:
        responses = tables["responses"]
        usable = responses.filter(pc.equal(responses["state"], "ok"))
        items = score.items_of(tables["prompts"], usable)
        return Asks(requests_of(judge, items), config.score.mode)
    kept, guess = kept_prompts(config, tables)
    if kept is None:
        return None
    size = LETTERS * config.augment.max_tokens // 2
    rows = augment.wanted_rows(kept, config.augment)
    items = [placeholder(row["prompt"], row["prompt_id"], n, size) for n, row in enumerate(rows)]
    guess = guess or f"responses are not made yet: taken as {size:,} bytes each"
    return Asks(requests_of(judge, items), config.score.mode, guess=guess)


def evaluate_asks(config: Config, tables: Tables) -> Asks | None:
    judge = config.evaluate.judge(config.score)
    if "prompts" not in tables or not judge.judges_new:
        return None
    asked = evaluate.held_out(tables["prompts"], config.evaluate)
    size = LETTERS * config.evaluate.max_tokens // 2
    requests = []
    for decoding in DECODINGS[config.evaluate.decoding]:
        rows = rows_of(asked, config.evaluate.draws, decoding)
        items = [
            placeholder(row["prompt"], row["prompt_id"], number, size)
            for number, row in enumerate(row for row in rows for _ in ("sft", "trained"))
        ]
        requests += requests_of(judge, items)
    guess = f"responses are not made yet: taken as {size:,} bytes each"
    return Asks(requests, config.evaluate.mode, guess=guess)


ASKS: dict[str, Callable[[Config, Tables], Asks | None]] = {
    "embed": embed_asks,
    "augment": augment_asks,
    "score": score_asks,
    "evaluate": evaluate_asks,
}
"""The stages that may ask a language model."""


def kept_prompts(config: Config, tables: Tables) -> tuple[pa.Table | None, str]:
    """The prompts to widen, and what is assumed of them while ``select`` is not made."""
    if "prompts" in tables and "selection" in tables:
        selection = tables["selection"]
        ids = selection.filter(selection["kept"])["prompt_id"]
        return lookup(tables["prompts"], "prompt_id", ids), ""
    if not config.select.keep:
        return None, ""
    nothing: list[Message] = [{"role": "user", "content": ""}]
    rows: list[dict[str, Any]] = [
        {"prompt_id": f"{number:016x}", "prompt": nothing, "given": []}
        for number in range(config.select.keep)
    ]
    guess = (
        f"prompts are not selected yet: taken as select.keep={config.select.keep:,} without words "
        f"and without responses of their own; stage=select makes them and asks nothing"
    )
    return pa.Table.from_pylist(rows), guess


def placeholder(prompt: Sequence[Message], group: str, number: int, size: int) -> Item:
    """A response that is not written yet; no two are the same."""
    text = f"{number} "
    return Item(prompt, text + "x" * max(0, size - len(text)), group)


def beyond(found: Sequence[Forecast], config: Config) -> Iterator[str]:
    """Caps that the run is expected to reach before its end."""
    budget, path = config.budget, config.runtime.store_file()
    so_far = ledger.Spent(0, 0.0)
    if path.exists():
        with RequestStore(path) as store:
            so_far = ledger.spent(store.connection, budget.account)
    usd = so_far.usd + sum(one.expected.usd or 0.0 for one in found)
    calls = so_far.requests + sum(one.expected.calls for one in found)
    words = "may stop the run: with what the account stands at, it is expected to come to"
    if budget.usd is not None and usd > budget.usd:
        yield f"budget.usd={budget.usd:g} {words} {usd:,.4f} US dollars."
    if budget.requests is not None and calls > budget.requests:
        yield f"budget.requests={budget.requests:,} {words} {calls:,}."


def unknown(stages: Sequence[str], config: Config, tables: Tables) -> Iterator[str]:
    """What cannot be reckoned yet, and what would make it known."""
    asking = [name for name in ("augment", "score") if name in stages and asks(name, config)]
    if asking and kept_prompts(config, tables)[0] is None:
        yield (
            f"How many requests {' and '.join(asking)} will send depends on the prompts: run "
            f"stage=select first, which sends none of them, or set select.keep."
        )

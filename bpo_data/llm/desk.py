"""Where a stage hands in its requests to language models."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bpo_data import disk
from bpo_data.engines import Spread, directly
from bpo_data.engines.lines import OpenLines, no_lines
from bpo_data.errors import UserError, harmless_json, nearest, plain, some
from bpo_data.llm import ledger
from bpo_data.llm.batch import complete_batch
from bpo_data.llm.client import Endpoint, Reply, Request, check_failures, complete
from bpo_data.llm.prices import read_prices
from bpo_data.llm.replies import ANSWERED, FAILED, STATES
from bpo_data.llm.requests import Askable
from bpo_data.llm.store import RequestStore
from bpo_data.llm.till import Account
from bpo_data.runtime import Runtime
from bpo_data.tables import lot

log = logging.getLogger("bpo_data")

MODES = ("live", "batch")
RETRIED = tuple(state for state in STATES if state not in ("ok", "budget_stop", "too_long"))
"""States that another try may change."""
MINUTE = 60.0  # seconds between two lines in the log
NEWER_NAME = "max_completion_tokens"
"""What some servers call ``max_tokens``; it comes in a request's extra fields."""
SHOWN = 500
"""Characters of a failed request that are written down."""
AGAIN = 1_000_000
"""Added to the draw of a request that is asked once more: a place of its own in the store."""


def nobody(count: int) -> None:
    """Told of progress that nobody watches."""


@dataclass
class Usage:
    """Tokens of a model's replies, as its server counted them."""

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Desk:
    """What a stage gives to whoever asks language models in its name."""

    stage: str
    """The stage's name, for messages and the account."""

    runtime: Runtime

    mode: str = "live"
    """``live``, or ``batch``: through the server's batch endpoint."""

    done: Callable[[int], None] = nobody
    """Told of n more items that are finished; a judge calls it once an item."""

    shown: Callable[[str], None] | None = None
    """Told now and then what is under way."""

    spread: Spread = directly
    """Has rows made in parts, for models that run in process."""

    lines: OpenLines = no_lines
    """Opens lines to processes that send requests."""

    retry: Sequence[str] = ()
    """States of replies to ask for again, a round for each mention."""

    replies: list[Reply] = field(default_factory=list)
    """All that came of what was handed in, for the summary."""

    replaced: list[Reply] = field(default_factory=list)
    """First replies whose place another try took; they were paid for too."""

    paid: dict[str, Usage] = field(default_factory=dict)
    """What the server counted, by model, of all replies."""

    asked: int = 0
    """Requests whose first reply the store did not hold."""

    def __post_init__(self) -> None:
        self.failed: list[dict[str, Any]] = []
        """Requests that ended without an answer, for whoever wants to know why."""
        self.total = self.finished = 0
        self.told = time.monotonic()

    def complete(
        self,
        requests: Sequence[tuple[Askable, int]],
        endpoint: Endpoint,
        *,
        max_failed: float,
        section: str,
        on_done: Callable[[int], None] = nobody,
        longer: float = 0.0,
        retry: Sequence[str] | None = None,
    ) -> list[Reply]:
        """A reply for each (request, draw), in their order.

        A reply cut at its ``max_tokens`` is asked for once more with ``longer`` times as many (0:
        it stays cut). Then each state of ``retry`` is a round in which the rows that are in it are
        asked once more: with another seed where the server had answered, else as they were.
        Raises UserError when more than the share ``max_failed`` of ``section`` failed for good,
        as soon as that is sure, and when a cap of the budget was reached.
        """

        def seen(number: int, reply: Reply, fresh: bool) -> None:
            self.asked += fresh and reply.state != "budget_stop"
            self.finished += 1
            if reply.state in FAILED:
                self.failed.append(failure(number, requests[number][0], reply))
            on_done(1)

        try:
            replies = self.ask(requests, endpoint, max_failed, section, seen)
        except UserError as error:
            raise UserError(f"{error}{self.told_of_failures()}") from error
        if longer:
            cut = [row for row, reply in enumerate(replies) if reply.state == "truncated"]
            self.once_more(requests, replies, cut, endpoint, partial(stretched, factor=longer))
        for number, state in enumerate(self.retry if retry is None else retry):
            rows = [row for row, reply in enumerate(replies) if reply.state == state]
            factor = longer if state == "truncated" and longer else 1.0
            change = partial(redrawn, number=number, factor=factor)
            self.once_more(
                requests, replies, rows, endpoint, change if state in ANSWERED else unchanged
            )
        self.replies += replies
        self.count(
            (request.model, reply) for (request, _), reply in zip(requests, replies, strict=True)
        )
        try:
            self.check_budget(replies)
            check_failures(replies, max_failed, section)
        except UserError as error:
            self.tell()
            raise UserError(f"{error}{self.told_of_failures()}") from error
        return replies

    def told_of_failures(self) -> str:
        """A sentence that names the file in which each failed request stands with its reason."""
        if not self.failed:
            return ""
        path = Path(self.runtime.folder) / "failed" / f"{self.stage}.jsonl"
        lines = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in self.failed)
        disk.write_bytes(harmless_json(lines).encode(), path)
        return f" Each failure and its reason: {path}"

    def once_more(
        self,
        requests: Sequence[tuple[Askable, int]],
        replies: list[Reply],
        rows: list[int],
        endpoint: Endpoint,
        change: Callable[[Askable, int], tuple[Askable, int]],
    ) -> None:
        """Ask ``rows`` again as changed; what is answered takes the first reply's place."""
        if not rows:
            return

        section = endpoint.section
        changed = [change(*requests[row]) for row in rows]
        again = self.ask(changed, endpoint, 1.0, section, lambda number, reply, fresh: None)
        for row, reply in zip(rows, again, strict=True):
            if reply.state in ANSWERED or reply.state == "budget_stop":
                self.replaced.append(replies[row])
                self.count([(requests[row][0].model, replies[row])])
                replies[row] = replace(reply, attempts=replies[row].attempts + reply.attempts)

    def ask(
        self,
        requests: Sequence[tuple[Askable, int]],
        endpoint: Endpoint,
        max_failed: float,
        section: str,
        seen: Callable[[int, Reply, bool], None],
    ) -> list[Reply]:
        """One round, live or by batch."""
        self.total, self.finished = len(requests), 0
        settings: dict[str, Any] = {
            "endpoint": replace(endpoint, section=section),
            "account": self.account(),
            "on_done": seen,
            "shown": self.show,
            "max_failed": max_failed,
        }
        with RequestStore(self.runtime.store_path()) as store:
            if self.mode == "batch":
                return complete_batch(requests, store=store, **settings)
            limits = self.runtime.limits(endpoint.base_url)
            return complete(requests, store=store, limits=limits, lines=self.lines, **settings)

    def show(self, status: str) -> None:
        """What is under way: to whoever watches, and in the log once a minute."""
        if self.shown:
            self.shown(plain(status))
        now = time.monotonic()
        if now - self.told >= MINUTE:
            self.told = now
            log.info("%-10s %s of %s replies; %s", self.stage, self.finished, self.total, status)

    def account(self) -> Account:
        budget = self.runtime.budget
        caps = ledger.Caps(budget.account, budget.usd, budget.requests)
        return Account(self.stage, caps, read_prices(budget.prices))

    def check_budget(self, replies: Sequence[Reply]) -> None:
        """Raise UserError, saying what is missing, when a cap left requests unsent."""
        missing = sum(reply.state == "budget_stop" for reply in replies)
        if not missing:
            return
        budget = self.runtime.budget
        with RequestStore(self.runtime.store_path()) as store:
            spent = ledger.spent(store.connection, budget.account)
        usd = f", {spent.usd:,.4f} US dollars" if budget.prices else ""
        caps = ", ".join(
            f"budget.{name}={value:g}"
            for name, value in (("usd", budget.usd), ("requests", budget.requests))
            if value is not None
        )
        raise UserError(
            f"{self.stage}: the budget is used up ({caps}; account {budget.account} stands at "
            f"{some(spent.requests, 'request')}{usd}): {missing:,} of {len(replies):,} replies are "
            f"missing. Raise the cap and run the same command; it goes on from here."
        )

    def count(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Put replies on their models' count."""
        for model, reply in replies:
            usage = self.paid.setdefault(model, Usage())
            usage.replies += 1
            usage.tokens_in += reply.usage_prompt or 0
            usage.tokens_out += reply.usage_completion or 0

    def bill(self) -> dict[str, dict[str, Any]]:
        """By model: replies, tokens, and US dollars at today's prices, None where there is none.

        It is what the replies are worth, whichever run asked for them; what a run paid is on the
        account.
        """
        prices = read_prices(self.runtime.budget.prices)
        found = {}
        for model, usage in sorted(self.paid.items()):
            price = prices.of(model)
            usd = price.usd(usage.tokens_in, usage.tokens_out, self.mode) if price else None
            found[model] = {**vars(usage), "usd": usd}
        return found

    def facts(self) -> dict[str, Any]:
        """What came of the requests, for the manifest."""
        bill = self.bill()
        known = [one["usd"] for one in bill.values() if one["usd"] is not None]
        states = Counter(reply.state for reply in self.replies)
        paid = [*self.replies, *self.replaced]
        return {
            "replies": len(self.replies),
            "replaced": len(self.replaced),
            "states": {state: states[state] for state in STATES if states[state]},
            "attempts": sum(reply.attempts for reply in self.replies),
            "tokens_in": sum(reply.usage_prompt or 0 for reply in paid),
            "tokens_out": sum(reply.usage_completion or 0 for reply in paid),
            "models": bill,
            "usd": sum(known) if bill and len(known) == len(bill) else None,
            "prices": read_prices(self.runtime.budget.prices).date,
        }

    def tell(self) -> None:
        """Print the table of states; nothing where nothing was handed in."""
        if not self.replies:
            return
        rows: list[tuple[str, ...]] = [("reply", "requests", "share", "tokens in", "tokens out")]
        for state in STATES:
            of_state = [reply for reply in self.replies if reply.state == state]
            if of_state:
                rows.append(state_row(state, of_state, len(self.replies)))
        rows.append(state_row("all", self.replies, len(self.replies)))
        if self.replaced:
            rows.append(state_row("replaced", self.replaced, len(self.replies)))
        for name, *cells in rows:
            line = f"{name:<15}" + "".join(f"{cell:>12}" for cell in cells)
            log.info("%-10s %s", self.stage, line)
        unsent = sum(reply.state == "budget_stop" for reply in self.replies)
        held = len(self.replies) - self.asked - unsent
        log.info(
            "%-10s %s from the store, %s asked now", self.stage, f"{held:,}", f"{self.asked:,}"
        )


def failure(number: int, request: Askable, reply: Reply) -> dict[str, Any]:
    """A failed request: its place among those of the stage, what was asked, what came."""
    body = request.payload()
    messages = body.get("messages") or [{"content": body.get("input", "")}]
    return {
        "row": number,
        "model": request.model,
        "state": reply.state,
        "detail": reply.detail,
        "attempts": reply.attempts,
        "asked": str(messages[-1]["content"])[:SHOWN],
    }


def asking_problems(mode: str, retry: Sequence[str], section: str) -> Iterator[str]:
    """What is wrong with how a stage asks, found while settings are read."""
    if mode not in MODES:
        yield f"{section}.mode={mode}: choose {', '.join(MODES)}."
    for state in retry:
        if state not in RETRIED:
            yield (
                f"{section}.retry has {state}.{nearest(state, RETRIED)} "
                f"It may hold {', '.join(RETRIED)}."
            )


def state_row(name: str, replies: Sequence[Reply], total: int) -> tuple[str, ...]:
    sent = sum(reply.usage_prompt or 0 for reply in replies)
    written = sum(reply.usage_completion or 0 for reply in replies)
    share = f"{100 * len(replies) / total:.1f} %"
    return name, f"{len(replies):,}", share, f"{sent:,}", f"{written:,}"


def stretched(request: Askable, draw: int, factor: float) -> tuple[Askable, int]:
    """The same request with room for a longer answer."""
    if not isinstance(request, Request):
        return request, draw
    extra = dict(request.extra or {})
    if isinstance(extra.get(NEWER_NAME), int):
        extra[NEWER_NAME] = int(extra[NEWER_NAME] * factor)
    return replace(request, max_tokens=int(request.max_tokens * factor), extra=extra), draw


def redrawn(request: Askable, draw: int, number: int, factor: float) -> tuple[Askable, int]:
    """The same request with another seed and draw, for the round ``number`` of retries, and with
    ``factor`` times the room."""
    if not isinstance(request, Request):
        return request, draw
    seed = int(lot(request.seed, "retry", str(number))[:8], 16) >> 1
    longer, _ = stretched(replace(request, seed=seed), draw, factor)
    return longer, draw + AGAIN * (number + 1)


def unchanged(request: Askable, draw: int) -> tuple[Askable, int]:
    """The same request: it has no answer yet."""
    return request, draw

"""What requests will come to, reckoned before any is sent, and what they came to."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.ledger import Bill
from bpo_data.llm.limits import Limits
from bpo_data.llm.prices import Prices
from bpo_data.llm.replies import ANSWERED
from bpo_data.llm.requests import Askable, keyed
from bpo_data.llm.store import RequestStore
from bpo_data.runtime import Runtime
from bpo_data.words import lasting

FEWEST, LIKELY = 1 / 8, 1 / 4
"""Tokens in a byte of text that is sent: rarely fewer, and what English comes to."""
HALF = 0.5
"""Share of ``max_tokens`` that an answer is taken to have while none of the model was seen."""
TAIL = 1.2
"""Time is taken to be so many times the even share: at the end fewer requests run at once."""


@dataclass(frozen=True)
class Asks:
    """What a stage is going to ask, as far as that can be told beforehand."""

    requests: Sequence[tuple[Endpoint, Askable, int]]
    mode: str = "live"
    longer: float = 0.0
    """The factor of a second try for answers that were cut."""
    guess: str = ""
    """What had to be assumed, since an earlier stage is not made yet."""


@dataclass(frozen=True)
class Amount:
    """Requests and what they come to; None where it is not known."""

    calls: int
    tokens_in: float
    tokens_out: float
    usd: float | None
    seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """What a stage asks of one model: at least, as expected, and at most."""

    stage: str
    model: str
    held: int
    """Requests that the store answers already; they are not among the amounts."""
    least: Amount
    expected: Amount
    most: Amount
    """Without repeated attempts after failures."""
    guess: str = ""
    round: int = 0
    """The online round; 0 outside rounds, and for a sum over them."""

    @property
    def called(self) -> str:
        return f"{self.stage} {self.round}" if self.round else self.stage


@dataclass(frozen=True)
class Seen:
    """What the account knows of a model's answers in a stage."""

    tokens_out: float | None = None
    seconds: float | None = None


def forecasts(
    stage: str, asks: Asks, store: RequestStore | None, runtime: Runtime, prices: Prices
) -> Iterator[Forecast]:
    """A forecast for each model that a stage asks, in the order of its requests."""
    models: dict[tuple[Endpoint, str], list[tuple[Askable, int]]] = {}
    for endpoint, request, draw in asks.requests:
        models.setdefault((endpoint, request.model), []).append((request, draw))
    for (endpoint, model), requests in models.items():
        wanted = {key: request for key, request, _ in keyed(requests, endpoint)}
        held = store.get_many(wanted) if store else {}
        missing = [request for key, request in wanted.items() if key not in held]
        seen = seen_of(store.connection, stage, model, endpoint) if store else Seen()
        limits = runtime.limits(endpoint.base_url)
        yield forecast(stage, model, len(held), missing, asks, seen, limits, prices)


def forecast(
    stage: str,
    model: str,
    held: int,
    missing: Sequence[Askable],
    asks: Asks,
    seen: Seen,
    limits: Limits,
    prices: Prices,
) -> Forecast:
    calls = math.ceil(sum(1 / request.together for request in missing))
    sizes = [request.most_tokens() for request in missing]
    sent, written = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    answers = sum(size[1] > 0 for size in sizes)
    likely = HALF * written if seen.tokens_out is None else min(written, answers * seen.tokens_out)
    price = prices.of(model)

    def amount(calls: int, tokens_in: float, tokens_out: float) -> Amount:
        usd = price.usd(tokens_in, tokens_out, asks.mode) if price else None
        return Amount(calls, tokens_in, tokens_out, usd)

    expected = amount(calls, LIKELY * sent, likely)
    again = 1 if asks.longer and answers else 0
    return Forecast(
        stage=stage,
        model=model,
        held=held,
        least=amount(calls, FEWEST * sent, answers),
        expected=Amount(
            *(expected.calls, expected.tokens_in, expected.tokens_out, expected.usd),
            seconds_for(expected, seen, limits) if asks.mode == "live" else None,
        ),
        most=amount(calls * (1 + again), sent * (1 + again), written * (1 + again * asks.longer)),
        guess=asks.guess,
    )


def seconds_for(amount: Amount, seen: Seen, limits: Limits) -> float | None:
    """How long it takes, by the times seen and the limits; None while nothing was seen."""
    times = []
    if seen.seconds is not None:
        at_once = min(limits.at_once, max(1, amount.calls))
        times.append(TAIL * amount.calls * seen.seconds / at_once)
    if limits.requests_per_minute:
        times.append(60 * amount.calls / limits.requests_per_minute)
    if limits.tokens_per_minute:
        tokens = amount.tokens_in + amount.tokens_out
        times.append(60 * tokens / limits.tokens_per_minute)
    return max(times, default=None)


def seen_of(connection: sqlite3.Connection, stage: str, model: str, endpoint: Endpoint) -> Seen:
    """Means over what the model answered in this stage; nothing where it never did."""
    marks = ",".join("?" * len(ANSWERED))
    row = connection.execute(
        f"SELECT avg(1.0 * tokens_out / requests), avg(seconds) FROM attempts WHERE stage = ? AND "
        f"model = ? AND endpoint = ? AND mode = 'live' AND state IN ({marks})",
        (stage, model, endpoint.base_url, *sorted(ANSWERED)),
    ).fetchone()
    return Seen(*row)


def over_rounds(found: Iterable[Forecast]) -> list[Forecast]:
    """One forecast of each stage and model, as bills know no rounds."""
    sums: dict[tuple[str, str], Forecast] = {}
    for one in found:
        key = one.stage, one.model
        sums[key] = added(sums[key], one) if key in sums else one
    return list(sums.values())


def added(one: Forecast, other: Forecast) -> Forecast:
    """Two rounds of a stage as one."""
    return replace(
        one,
        held=one.held + other.held,
        least=sum_of(one.least, other.least),
        expected=sum_of(one.expected, other.expected),
        most=sum_of(one.most, other.most),
        guess=one.guess or other.guess,
        round=0,
    )


def sum_of(one: Amount, other: Amount) -> Amount:
    """The sum, of which is not known what of one is not."""

    def both(first: float | None, second: float | None) -> float | None:
        return None if first is None or second is None else first + second

    return Amount(
        one.calls + other.calls,
        one.tokens_in + other.tokens_in,
        one.tokens_out + other.tokens_out,
        both(one.usd, other.usd),
        both(one.seconds, other.seconds),
    )


HEAD = ("", "calls", "tokens in", "tokens out", "US dollars", "time")


def table(found: Iterable[Forecast], bills: Sequence[Bill] = ()) -> Iterator[str]:
    """Lines of a table: forecasts, and below each what it was where there is a bill."""
    rest = list(bills)
    rows: list[tuple[str, ...]] = []
    for one in found:
        held = f"; {one.held:,} more are in the store" if one.held else ""
        rows.append((f"{one.called}: {one.model}{held}",))
        named = (("at least", one.least), ("expected", one.expected), ("at most", one.most))
        rows += [cells(name, amount) for name, amount in named]
        for bill in [bill for bill in rest if (bill.stage, bill.model) == (one.stage, one.model)]:
            rest.remove(bill)
            rows += billed(bill)
            if bill.requests < one.least.calls:
                rows.append(("  fewer than forecast: what is asked twice is sent once",))
        if one.guess:
            rows.append((f"  {one.guess}",))
    for bill in rest:
        rows += [(f"{bill.stage}: {bill.model}",), *billed(bill)]
    if rows:
        yield line(HEAD)
        yield from map(line, rows)


def billed(bill: Bill) -> Iterator[tuple[str, ...]]:
    """What it was, and what of it is not sure."""
    mode = " (batch)" if bill.mode == "batch" else ""
    it_was = Amount(bill.requests, bill.tokens_in, bill.tokens_out, bill.usd, bill.seconds)
    yield cells(f"it was{mode}", it_was)
    if bill.failed:
        yield (f"  {bill.failed:,} of these calls brought no answer",)
    if bill.waiting:
        yield (f"  {bill.waiting:,} wait in batches at the server, counted at their most",)
    if bill.unsure > bill.waiting:
        unsure = f"{bill.unsure - bill.waiting:,}"
        yield (f"  {unsure} are counted at the most they may have cost: no usage came",)


def cells(name: str, amount: Amount) -> tuple[str, ...]:
    return (
        f"  {name}",
        f"{amount.calls:,}",
        f"{math.ceil(amount.tokens_in):,}",
        f"{math.ceil(amount.tokens_out):,}",
        "unknown" if amount.usd is None else f"{amount.usd:,.4f}",
        "" if amount.seconds is None else lasting(amount.seconds),
    )


def line(row: tuple[str, ...]) -> str:
    if len(row) == 1:
        return row[0]
    return f"{row[0]:<18}" + "".join(f"{cell:>14}" for cell in row[1:])

"""Refusals and limits over loopback: nobody sends into a cool-down, and whoever waits is shown."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast

import pytest
from asking import QUICK, ask, asking

from bpo_data.llm.client import Limits, Request
from bpo_data.llm.failures import asked_wait
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import Fault, Payload, StubServer, busy, message, refused

IN_THE_SOCKET = 0.1  # seconds that what was sent before a refusal takes to arrive, at most


pytestmark = pytest.mark.usefixtures("plain_environment")


def rows(count: int, **changes: Any) -> list[tuple[Request, int]]:
    return [(asking(number, **changes), 0) for number in range(count)]


def number_of(payload: Payload) -> int:
    return int(payload["messages"][1]["content"].split()[2])


def test_a_refusal_of_one_holds_all_16_until_the_server_lets_them(store: RequestStore) -> None:
    with StubServer(faults=[None] * 24 + [busy("1")], latency=0.05) as server:
        replies = ask(server, store, rows(80), concurrency=16)
    assert {reply.state for reply in replies} == {"ok"}
    assert sorted(reply.attempts for reply in replies) == [1] * 79 + [2]
    gap = max(later - sooner for sooner, later in itertools.pairwise(server.arrivals))
    assert 1 - IN_THE_SOCKET < gap < 2, f"nobody was to send for 1 s; it was {gap:.3f} s"


def test_after_a_refusal_fewer_are_under_way_and_answers_bring_them_back(
    store: RequestStore,
) -> None:
    under_way: list[int] = []

    def rule(payload: Payload, before: int) -> Fault | None:
        under_way.append(server.in_flight)
        return busy("0.5") if len(under_way) == 41 else None

    with StubServer(fault_rule=rule, latency=0.15) as server:
        ask(server, store, rows(250), concurrency=16)
    gaps = [later - sooner for sooner, later in itertools.pairwise(server.arrivals)]
    cool_down = gaps.index(max(gaps[40:])) + 1
    assert max(under_way[:40]) == 16
    # 8, and what the answers of the 15 others under way have added to it.
    assert max(under_way[cool_down : cool_down + 8]) <= 10
    assert max(under_way[-60:]) == 16


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_within_the_servers_own_limits_nothing_is_refused(store: RequestStore, kind: str) -> None:
    """Of a server that counts strictly, in windows shorter than a minute."""
    limit = {"requests_per_minute": 1200.0}
    if kind == "tokens":  # 60 such requests in 3 seconds; the stub counts words, we count bytes
        limit = {"tokens_per_minute": 1200 * 78.0}
    with StubServer(window=3, **limit) as server:
        begun = time.monotonic()
        replies = ask(server, store, rows(75), limits=Limits(16, **limit))
        seconds = time.monotonic() - begun
    assert server.refused == 0
    assert {reply.state for reply in replies} == {"ok"}
    assert 3 < seconds < 6, f"{seconds:.2f} s for 75 at 20 a second"


@pytest.mark.parametrize("hours", [-30, 0, 30])
def test_a_time_to_come_back_is_read_by_the_servers_own_clock(hours: int) -> None:
    """Ours may be wrong by hours, and would wait for them or give the request up."""
    now = time.time() + 3600 * hours
    headers = {
        "retry-after": formatdate(now + 7, usegmt=True),
        "date": formatdate(now, usegmt=True),
    }
    error = SimpleNamespace(response=SimpleNamespace(headers=headers))
    assert asked_wait(cast(BaseException, error)) == 7
    del headers["date"]
    assert asked_wait(cast(BaseException, error)) == pytest.approx(max(0, 3600 * hours + 7), abs=2)


def test_thirty_refusals_in_a_row_cost_no_attempt(store: RequestStore) -> None:
    with StubServer(faults=[busy("0.01")] * 30) as server:
        (reply,) = ask(server, store)
    assert (reply.state, reply.attempts) == ("ok", 31)
    assert QUICK.attempts == 4, "other failures are fewer"


def test_a_server_that_refuses_for_ever_is_given_up(store: RequestStore) -> None:
    patience = replace(QUICK, refused_for=0.5)
    begun = time.monotonic()
    with StubServer(fault_rule=lambda payload, before: busy("0.05")) as server:
        replies = ask(server, store, rows(3), concurrency=3, patience=patience)
    assert {reply.state for reply in replies} == {"http_error"}
    assert replies[0].detail == "429: Rate limit reached It asks to come back in 0 s."
    assert 0.5 < time.monotonic() - begun < 3


def test_what_is_under_way_and_what_waits_is_counted_right(store: RequestStore) -> None:
    def rule(payload: Payload, before: int) -> Fault | None:
        number = number_of(payload)
        if number < 12:
            return replace(message("Slow."), wait=1.3)
        if before:
            return None
        return busy("1.3") if number < 15 else refused(500, "Oops")

    shown: list[str] = []
    patience = replace(QUICK, first_wait=2.4, longest_wait=2.4)
    with StubServer(fault_rule=rule) as server:
        ask(server, store, rows(16), concurrency=16, patience=patience, shown=shown.append)
    first = re.sub(r"\(\d s\)", "(n s)", shown[0])
    assert first == "12 in flight, 3 waiting on 429 (n s), 1 retrying"


def test_who_waits_for_a_limit_of_our_own_is_shown(store: RequestStore) -> None:
    shown: list[str] = []
    with StubServer(latency=0.01) as server:
        ask(server, store, rows(6), limits=Limits(4, 240), shown=shown.append)
    assert shown[0] == "0 in flight, 4 waiting for the rate limit"

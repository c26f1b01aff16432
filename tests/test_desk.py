"""The desk: second tries, rounds of retries, the budget, and a summary whose totals add up."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import asking

from bpo_data.budget import Budget
from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.desk import Desk
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.replies import STATES, Reply
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import Fault, StubServer, message, refused
from bpo_data.runtime import Runtime

PRICES = "date: 2026-11-20\nmodels: {tiny: {prompt: 1000, completion: 10000}}\n"
"""So dear that a request of 64 tokens at most may cost more than half a dollar."""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    (tmp_path / "prices.yaml").write_text(PRICES)

    def make(concurrency: int = 4, **budget: Any) -> Desk:
        runtime = Runtime(folder=str(tmp_path / "runs"), concurrency=concurrency)
        if budget:
            budget = {"prices": str(tmp_path / "prices.yaml"), **budget}
        runtime.budget = Budget(**budget)
        return Desk("augment", runtime)

    return make


def complete(desk: Desk, server: StubServer, count: int = 1, **more: Any) -> list[Reply]:
    requests = [(asking(number), 0) for number in range(count)]
    settings = {"max_failed": 1.0, "section": "augment", **more}
    return desk.complete(requests, Endpoint(server.url), **settings)


def test_a_reply_cut_short_is_asked_once_more_with_more_room(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message("Fo", "length")]) as server:
        (reply,) = complete(desk(), server, longer=2)
        assert [body["max_tokens"] for body in server.payloads] == [64, 128]
        assert (reply.state, reply.attempts) == ("ok", 2)
        assert complete(desk(), server, longer=2) == [reply], "both are in the store"
        assert len(server.payloads) == 2


def test_a_reply_cut_twice_is_not_asked_a_third_time(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message("Fo", "length"), message("Four", "length")]) as server:
        (reply,) = complete(desk(), server, longer=2)
        assert (reply.state, reply.text) == ("truncated", "Four")
        complete(desk(), server, longer=2)
        assert len(server.payloads) == 2


def test_without_a_factor_a_cut_reply_stays(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message("Fo", "length")]) as server:
        (reply,) = complete(desk(), server)
        assert (reply.state, len(server.payloads)) == ("truncated", 1)


def test_retry_asks_for_the_rows_in_that_state_alone_and_with_another_seed(
    desk: Callable[..., Desk],
) -> None:
    with StubServer(faults=[message(""), message("I", refusal="No."), None]) as server:
        one = desk(concurrency=1)
        before = complete(one, server, 3)
        assert [reply.state for reply in before] == ["empty", "refused", "ok"]
        after = complete(one, server, 3, retry=["empty"])
        assert [reply.state for reply in after] == ["ok", "refused", "ok"]
        assert after[1:] == before[1:]
        assert len(server.payloads) == 4
        asked, again = server.payloads[0], server.payloads[3]
        assert {**again, "seed": asked["seed"]} == asked
        assert again["seed"] != asked["seed"]
        assert complete(one, server, 3, retry=["empty"]) == after, "a finished retry is free"
        assert len(server.payloads) == 4


def test_each_mention_of_a_state_is_one_more_round(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message("")] * 3) as server:
        (reply,) = complete(desk(), server, retry=["empty", "refused", "empty"])
        assert (reply.state, reply.attempts) == ("empty", 3)
        assert len({body["seed"] for body in server.payloads}) == 3
        (reply,) = complete(desk(), server, retry=["empty", "refused", "empty", "empty"])
        assert (reply.state, len(server.payloads)) == ("ok", 4)


def test_a_failure_is_retried_as_it_was(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[refused(400, "Hm.")]) as server:
        (reply,) = complete(desk(), server, retry=["http_error"])
        assert (reply.state, reply.attempts) == ("ok", 2)
        assert server.payloads[0] == server.payloads[1]


def test_what_is_cut_is_retried_with_the_room_of_the_second_try(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message("F", "length")] * 2) as server:
        (reply,) = complete(desk(), server, longer=2, retry=["truncated"])
        assert [body["max_tokens"] for body in server.payloads] == [64, 128, 128]
        assert reply.state == "ok"


def test_the_newer_name_of_max_tokens_is_stretched_too(desk: Callable[..., Desk]) -> None:
    request = asking(extra={"max_tokens": None, "max_completion_tokens": 64, "temperature": None})
    with StubServer(faults=[message("F", "length")]) as server:
        desk().complete(
            [(request, 0)], Endpoint(server.url), max_failed=1.0, section="augment", longer=1.5
        )
        sent = [body["max_completion_tokens"] for body in server.payloads]
    assert sent == [64, 96]
    assert all({"max_tokens", "temperature"}.isdisjoint(body) for body in server.payloads)


def test_replies_that_were_replaced_are_counted_since_they_were_paid_for(
    desk: Callable[..., Desk],
) -> None:
    with StubServer(faults=[message("Fo", "length")]) as server:
        one = desk(concurrency=1)
        complete(one, server, 3, longer=2)
    facts = one.facts()
    assert (facts["replies"], facts["replaced"], one.asked) == (3, 1, 3)
    assert (facts["tokens_in"], facts["tokens_out"]) == (4 * 11, 3 * 7 + 1)


def test_a_retry_that_fails_leaves_the_first_answer(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[message(""), refused(400, "Hm.")]) as server:
        (reply,) = complete(desk(), server, retry=["empty"])
        assert reply.state == "empty"


def test_the_table_names_each_state_and_its_totals_add_up(
    desk: Callable[..., Desk], caplog: pytest.LogCaptureFixture
) -> None:
    faults = [message(""), refused(400, "Hm."), message("Fo", "length"), None, None]
    with StubServer(faults=faults) as server, caplog.at_level(logging.INFO, "bpo_data"):
        one = desk(concurrency=1)
        complete(one, server, 6)
        one.tell()
    lines = [record.getMessage().split() for record in caplog.records]
    counts = {line[1]: int(line[2]) for line in lines if line[1] in (*STATES, "all")}
    assert counts == {"ok": 3, "truncated": 1, "empty": 1, "http_error": 1, "all": 6}
    assert lines[-1][1:] == ["0", "from", "the", "store,", "6", "asked", "now"]
    facts = one.facts()
    assert sum(facts["states"].values()) == facts["replies"] == 6


def test_the_cap_of_requests_is_kept_and_the_next_run_goes_on(desk: Callable[..., Desk]) -> None:
    with StubServer() as server:
        with pytest.raises(UserError) as caught:
            complete(desk(requests=7), server, 20)
        assert len(server.payloads) == 7
        assert "budget.requests=7" in str(caught.value)
        assert "13 of 20 replies are missing" in str(caught.value)
        with pytest.raises(UserError, match="8 of 20 replies are missing"):
            complete(desk(requests=12), server, 20)
        assert len(server.payloads) == 12, "what was asked before counts"
        assert {reply.state for reply in complete(desk(), server, 20)} == {"ok"}
        assert len(server.payloads) == 20


def test_a_cap_of_no_requests_replays_the_store(desk: Callable[..., Desk]) -> None:
    with StubServer() as server:
        first = complete(desk(), server, 3)
        assert complete(desk(requests=0), server, 3) == first
        with pytest.raises(UserError, match="1 of 4 replies are missing"):
            complete(desk(requests=0), server, 4)
        assert len(server.payloads) == 3


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cap_of_dollars_is_never_passed_and_nearly_used(
    desk: Callable[..., Desk], concurrency: int
) -> None:
    """A request may cost 0.74 dollars and costs 0.081: 11 tokens in, 7 out."""
    with StubServer() as server:
        one = desk(concurrency, usd=2.0)
        with pytest.raises(UserError, match=r"budget\.usd=2 ?;"):
            complete(one, server, 60)
        spent = account(one)
        assert spent.usd <= 2.0
        assert spent.usd == pytest.approx(0.081 * len(server.payloads))
        assert spent.usd > 2.0 - 0.75, "it stops only when one more might pass the cap"


def test_failed_attempts_are_on_the_account(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[refused(400, "Hm."), None, refused(400, "Hm.")]) as server:
        one = desk(concurrency=1, requests=10)
        complete(one, server, 3)
        assert account(one).requests == 3
        assert account(one).usd == pytest.approx(0.081), "a refusal costs nothing"


def test_a_lost_answer_is_counted_at_the_most_it_may_have_cost(desk: Callable[..., Desk]) -> None:
    with StubServer(faults=[Fault(body='{"choices"')]) as server:
        one = desk(concurrency=1, requests=10)
        (reply,) = complete(one, server)
    assert reply.state == "malformed"
    assert account(one).usd > 0.64


def test_an_attempt_whose_connection_the_server_dropped_is_counted_at_the_most(
    desk: Callable[..., Desk],
) -> None:
    """It may have been answered; over aiohttp it looks like a server that is not there."""
    with StubServer(faults=[Fault(drop=True)]) as server:
        one = desk(concurrency=1, requests=10)
        (reply,) = complete(one, server)
    assert (reply.state, reply.attempts) == ("ok", 2)
    assert account(one).usd > 0.64 + 0.08


def account(desk: Desk) -> ledger.Spent:
    with RequestStore(desk.runtime.store_path()) as store:
        return ledger.spent(store.connection, "all")


def test_every_reply_of_a_stopped_run_has_a_state(desk: Callable[..., Desk]) -> None:
    one = desk(requests=2)
    with StubServer() as server, pytest.raises(UserError):
        complete(one, server, 5)
    assert Counter(reply.state for reply in one.replies) == {"ok": 2, "budget_stop": 3}


def test_one_run_waits_for_what_another_has_set_aside(
    desk: Callable[..., Desk], tmp_path: Path
) -> None:
    """The other's requests cost far less than they may: what comes free is ours to use."""
    import threading

    one = desk(usd=1.6)
    caps = ledger.Caps("all", 1.6, None)
    path = one.runtime.store_path()
    with RequestStore(path) as store:
        attempt = ledger.Attempt("augment", "tiny", "u", "another run", 1.5)
        number = ledger.open_attempt(store.connection, caps, attempt)
    assert number is not None

    def settle() -> None:
        with RequestStore(path) as store:
            ledger.close_attempt(store.connection, number, ledger.Outcome("ok", 0.3, 1, 1, 0.01))

    timer = threading.Timer(0.3, settle)
    with StubServer() as server:
        timer.start()
        replies = complete(one, server, 3)
    assert {reply.state for reply in replies} == {"ok"}


def test_what_a_run_left_before_the_clock_was_set_back_is_not_waited_for(
    desk: Callable[..., Desk],
) -> None:
    """Until the clock comes to where it was, that attempt looks like one just sent."""
    one = desk(usd=1.6)
    with RequestStore(one.runtime.store_path()) as store:
        attempt = ledger.Attempt("augment", "tiny", "u", "a dead run", 1.5)
        ledger.open_attempt(store.connection, ledger.Caps("all", 1.6, None), attempt)
        store.connection.execute("UPDATE attempts SET sent = sent + 3600")
    started = time.monotonic()
    with StubServer() as server, pytest.raises(UserError, match="the budget is used up"):
        complete(one, server, 3)
    assert time.monotonic() - started < 30


def test_what_failed_stands_in_a_file_that_the_error_names(desk, tmp_path):
    """The failed request with its place, its words and the reason; the others are not in it."""
    with StubServer(faults=[None, refused(400, "No such thing."), None]) as server:
        with pytest.raises(UserError) as caught:
            complete(desk(concurrency=1), server, 3, max_failed=0.0)
        assert len(server.payloads) == 3
    path = tmp_path / "runs" / "failed" / "augment.jsonl"
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (row["row"], row["asked"]) == (1, "What is 1 + 1?")
    assert (row["state"], row["model"]) == ("http_error", "tiny")
    assert "No such thing." in row["detail"]


def test_a_bill_is_what_the_replies_are_worth_and_unknown_without_a_price(tmp_path):
    """Worked out by hand: 20 replies of writer, each its own count of tokens at 2 and 8 dollars."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("date: 2026-11-20\nmodels:\n  writer: {prompt: 2.0, completion: 8.0}\n")
    found = {}
    for name, path in (("priced", str(prices)), ("bare", "")):
        runtime = Runtime(folder=str(tmp_path / name))
        runtime.budget = Budget(prices=path)
        desk = Desk("augment", runtime)
        desk.count(
            ("writer", Reply("ok", usage_prompt=100, usage_completion=10)) for _ in range(20)
        )
        found[name] = desk.facts()
    assert found["priced"]["usd"] == pytest.approx(20 * (100 * 2 + 10 * 8) / 1e6)
    assert found["priced"]["prices"] == "2026-11-20"
    assert found["priced"]["models"]["writer"]["tokens_in"] == 2_000
    assert found["bare"]["usd"] is None
    assert Desk("augment", Runtime()).facts()["usd"] is None, "nothing was asked"

"""Requests by batch over loopback: one answer each, whatever becomes of the batch."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import QUICK, ask, asking

from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.batch import complete_batch
from bpo_data.llm.batch_lines import cut, input_line, read_line
from bpo_data.llm.batch_wire import Pace
from bpo_data.llm.client import EmbeddingRequest, Endpoint, Reply, Request
from bpo_data.llm.prices import Price, Prices
from bpo_data.llm.requests import keyed
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import BatchPlan, Fault, StubServer, default_reply, refused, written
from bpo_data.llm.till import Account

SECRET = "sk-live-0123456789abcdef"
BRISK = Pace(first_wait=0.01, longest_wait=0.05, settling=0.05)
NINE = [(asking(number), 0) for number in range(9)]


pytestmark = pytest.mark.usefixtures("plain_environment")


def batch(
    server: StubServer, store: RequestStore, requests: Sequence[Any] = NINE, **more: Any
) -> list[Reply]:
    settings = {"patience": QUICK, "pace": BRISK, **more}
    return complete_batch(requests, endpoint=Endpoint(server.url), store=store, **settings)


def made(server: StubServer) -> list[dict[str, Any]]:
    """The batches that the server has, in the order they were made."""
    return [one.shown for one in server.batches.batches.values()]


def at(numbers: Sequence[int], fault: Fault) -> Callable[[dict[str, Any], int], Fault | None]:
    """A fault for the requests with these numbers."""
    return lambda payload, before: fault if payload["seed"] in numbers else None


def once_each(requests: Sequence[tuple[Request, int]] = NINE) -> dict[str, int]:
    return {written(request.payload()): 1 for request, _ in requests}


def test_a_batch_brings_each_request_what_a_live_one_would(
    store: RequestStore, tmp_path: Path
) -> None:
    told: list[str] = []
    seen: list[tuple[int, bool]] = []
    plan = BatchPlan(polls=2)
    with StubServer(batch_plan=plan) as server, RequestStore(tmp_path / "other.sqlite") as other:
        replies = batch(
            *(server, store, [*NINE, NINE[0]]),
            shown=told.append,
            on_done=lambda index, reply, fresh: seen.append((index, fresh)),
        )
        assert server.answered() == once_each(), "equal requests are one line"
        assert [reply.text for reply in replies[:9]] == [
            default_reply(request.payload()) for request, _ in NINE
        ]
        assert replies[9] == replies[0]
        assert sorted(seen) == [(index, True) for index in range(10)]
        assert replies[:9] == ask(server, other, NINE)
        (one,) = made(server)
    assert one["endpoint"] == "/v1/chat/completions"
    assert one["completion_window"] == "24h"
    assert told == [
        "sending a batch of 9 requests",
        "batch 1 of 1: 0 of 9 done, in_progress for 0 min",
        "batch 1 of 1: 0 of 9 done, in_progress for 0 min",
    ]


def test_batch_and_live_find_each_others_replies(store: RequestStore) -> None:
    with StubServer() as server:
        first = ask(server, store, NINE[:4])
        both = batch(server, store)
        assert both[:4] == first
        assert [one["request_counts"]["total"] for one in made(server)] == [5]
        assert ask(server, store, NINE) == both
        assert batch(server, store) == both
        assert server.answered() == once_each()
        assert len(made(server)) == 1


def test_files_hold_one_model_and_no_more_lines_or_bytes_than_allowed(store: RequestStore) -> None:
    models = [(asking(n, model=("tiny", "large")[n % 2]), 0) for n in range(10)]
    told: list[str] = []
    with StubServer(batch_plan=BatchPlan(polls=1)) as server:
        batch(server, store, models, pace=replace(BRISK, lines=3), shown=told.append)
        counts = [one["request_counts"]["total"] for one in made(server)]
        assert sorted(counts) == [2, 2, 3, 3]
        for one in made(server):
            lines = server.batches.files[one["input_file_id"]].content.splitlines()
            assert len({json.loads(line)["body"]["model"] for line in lines}) == 1
        assert server.answered() == once_each(models)
    assert "batch 4 of 4: 0 of 2 done, in_progress for 0 min" in told
    wanted = keyed(NINE, Endpoint())
    size = max(len(input_line(9, text)) for _, _, text in wanted)
    groups = list(cut(wanted, 9, 4 * size))
    assert [len(group) for group in groups] == [4, 4, 1]
    assert [one for group in groups for one in group] == wanted


def test_an_expired_batch_keeps_what_was_done_and_the_rest_is_asked_again(
    store: RequestStore,
) -> None:
    with StubServer(batch_plan=BatchPlan(ends="expired", done=0.6)) as server:

        def heal(status: str) -> None:
            if status == "sending a batch of 2 requests":
                server.batches.plan = BatchPlan()

        replies = batch(server, store, shown=heal, account=account())
        assert {reply.state for reply in replies} == {"ok"}
        assert server.answered() == once_each()
        counts = [one["request_counts"] for one in made(server)]
    assert [(one["completed"], one["failed"]) for one in counts] == [(5, 4), (2, 2), (2, 0)]
    assert spent(store)[0] == 9, "what expired is off the account"


def test_a_batch_that_expires_with_nothing_done_is_not_made_again(store: RequestStore) -> None:
    with StubServer(batch_plan=BatchPlan(ends="expired", done=0.0)) as server:
        with pytest.raises(UserError, match=r"9 requests expired with nothing done.*mode=live"):
            batch(server, store, account=account())
        assert len(made(server)) == 1
        assert spent(store) == (0, 0.0)
        assert len(ask(server, store, NINE)) == 9


LINES = {
    "400": (refused(400, "top_p must be > 0"), "http_error", "400: top_p must be > 0"),
    "500": (refused(500, "Oops"), "http_error", "500: Oops"),
    "429": (refused(429, "Slow down"), "http_error", "429: Slow down"),
    "not JSON": (Fault(500, "<html>Down</html>"), "http_error", "500: <html>Down</html>"),
    "too long": (refused(400, "Long.", code="context_length_exceeded"), "too_long", "400: Long."),
    "vLLM": (refused(400, "The model's context length is 64.", code=400), "too_long", "is 64."),
    "prompt filtered": (refused(400, "No.", code="content_filter"), "filtered", "400: No."),
    "no choices": (Fault(body='{"choices": []}'), "malformed", "no choices"),
    "a string": (Fault(body="Hm"), "malformed", "no object"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_fails_has_the_state_of_a_live_failure(store: RequestStore, name: str) -> None:
    fault, state, detail = LINES[name]
    with StubServer(batch_plan=BatchPlan(fault_rule=at([2, 5], fault))) as server:
        replies = batch(server, store)
        assert [reply.state for reply in replies] == [
            state if number in (2, 5) else "ok" for number in range(9)
        ]
        assert detail in replies[2].detail
        again = batch(server, store)
        assert again == replies
        asked = [one["request_counts"]["total"] for one in made(server)]
    assert asked == ([9] if state == "filtered" else [9, 2]), "what failed is asked again"


def test_more_failures_than_allowed_end_the_run_after_all_answers_are_kept(
    store: RequestStore,
) -> None:
    plan = BatchPlan(fault_rule=at([2, 5], refused(500, "Oops")))
    failed = pytest.raises(UserError, match=r"augment: 2 of 9 requests failed.*500: Oops")
    with StubServer(batch_plan=plan) as server, failed:
        batch(server, store, max_failed=0.1)
    assert len(store) == 7


ODD = {
    "junk": b'{"custom_id": "0", "resp\n\xff\xfe\n[1]\n7\n',
    "unknown place": b'{"custom_id": "99", "response": {"status_code": 200, "body": {}}}\n',
    "no number": b'{"custom_id": "mine", "response": null, "error": {}}\n{}\n',
}


@pytest.mark.parametrize("name", ODD)
def test_lines_that_make_no_sense_are_counted_and_the_others_read(
    store: RequestStore, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    with StubServer() as server:
        add_file = server.batches.add_file

        def spoilt(content: bytes, file: str, purpose: str) -> Any:
            if file.endswith("_output.jsonl"):
                content = ODD[name] + content.split(b"\n", 1)[1]  # the line of the last request
            return add_file(content, file, purpose)

        monkeypatch.setattr(server.batches, "add_file", spoilt)
        # A file of the stub is text: what is no UTF-8 reaches the client as U+FFFD.
        replies = batch(server, store)
    assert [reply.state for reply in replies] == ["ok"] * 8 + ["no_reply"]
    assert "ended without a line for it" in replies[8].detail
    assert f"{len(ODD[name].splitlines())} line" in caplog.text
    assert "cannot be read" in caplog.text


def test_a_line_is_read_by_its_shape() -> None:
    def line(**fields: Any) -> bytes:
        return json.dumps({"custom_id": "3", **fields}).encode()

    expired = read_line(line(response=None, error={"code": "batch_expired"}), "none")
    assert expired is not None
    assert (expired.place, expired.reply) == (3, None)
    neither = read_line(line(response=None, error=None), "none")
    assert neither is not None
    assert neither.reply == Reply("no_reply", detail="a line with neither an answer nor an error")
    for odd in (b"", b"{", b"[]", b"3", b'{"custom_id": null}', b"[" * 99_999, b"\xff"):
        assert read_line(odd, "none") is None


def test_a_refused_batch_is_one_line_with_the_servers_words(store: RequestStore) -> None:
    with StubServer(batch_plan=BatchPlan(ends="failed")) as server:
        with pytest.raises(UserError) as caught:
            batch(server, store, account=account())
        text = str(caught.value)
        assert f"augment.base_url={server.url}: batch batch_" in text
        assert "9 requests was refused: Enqueued token limit reached. None of it is paid." in text
        assert "augment.mode=live" in text
        assert spent(store) == (0, 0.0)


def test_a_cancelled_batch_keeps_what_was_done_and_stops(store: RequestStore) -> None:
    with StubServer(batch_plan=BatchPlan(polls=99)) as server:

        def cancel(status: str) -> None:
            if "in_progress" in status:
                server.batches.cancel(made(server)[0]["id"])

        with pytest.raises(UserError, match=r"9 requests was cancelled\. What it had done is kept"):
            batch(server, store, shown=cancel)
        assert len(store) == 4
        server.batches.plan = BatchPlan()
        batch(server, store)
        assert server.answered() == once_each()


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_batches_is_named_with_the_way_out(
    store: RequestStore, status: int
) -> None:
    with StubServer(batch_faults=[refused(status, "no such path /v1/files")]) as server:
        endpoint = Endpoint(server.url, section="score.options")
        with pytest.raises(UserError) as caught:
            complete_batch(NINE, endpoint=endpoint, store=store, patience=QUICK)
    text = str(caught.value)
    assert f"score.options.base_url={server.url} has no batches ({status}: no such path" in text
    assert text.endswith("Use score.mode=live.")
    assert "\n" not in text


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("fault", ["500", "429", "drop", "cut", "html"])
def test_a_fault_of_any_call_is_waited_out_and_nothing_is_made_twice(
    store: RequestStore, before: int, fault: str
) -> None:
    """Calls: upload, make, look (in progress), look (over), fetch."""
    kinds = {
        "500": refused(500, "Oops"),
        "429": refused(429, "Busy", {"Retry-After": "0.05"}),
        "drop": Fault(drop=True),
        "cut": Fault(body='{"id": "x", "cust', cut=True),
        "html": Fault(body="<html>Sign in</html>", headers={"Content-Type": "text/html"}),
    }
    faults = [None] * before + [kinds[fault]]
    with StubServer(batch_faults=faults) as server:
        replies = batch(server, store)
        if (before, fault) == (4, "html"):  # a file of junk is a file
            assert {reply.state for reply in replies} == {"no_reply"}
            return
        assert {reply.state for reply in replies} == {"ok"}
        assert len(made(server)) == 1
        assert server.answered() == once_each()


def test_a_key_that_the_server_refuses_ends_the_run_and_is_shown_nowhere(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import traceback

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    said = ""
    for before in range(5):
        faults = [None] * before + [refused(401, "Wrong: {authorization}")]
        with StubServer(batch_faults=faults) as server, pytest.raises(UserError) as caught:
            batch(server, store)
        text = "".join(traceback.format_exception(caught.value))
        assert "answered 401: Wrong: Bearer [key]" in text
        said += text
    echo = {"custom_id": "0", "response": {"status_code": 400, "body": {"error": SECRET}}}
    found = read_line(json.dumps(echo).replace("s", "\\u0073").encode(), SECRET)
    assert found is not None
    said += repr(found) + caplog.text
    said += repr([path.read_bytes() for path in store.path.parent.iterdir()])
    assert SECRET[:12] not in said


def test_a_batch_that_is_gone_is_not_paid_for_again_unasked(store: RequestStore) -> None:
    with StubServer(batch_faults=[None, None, refused(401, "Who?")]) as server:
        with pytest.raises(UserError, match="401"):
            batch(server, store)
        gone = server.batches.batches.popitem()
        with pytest.raises(UserError) as caught:
            batch(server, store)
        text = str(caught.value)
        assert f"does not have batch {gone[0]} with 9 requests" in text
        assert "OPENAI_API_KEY, or use augment.mode=live to pay for these requests anew" in text
        assert len(ask(server, store, NINE)) == 9


PRICES = Prices(date="2026-11-20", models={"tiny": Price(prompt=1.0, completion=10.0, batch=0.5)})


def account(usd: float | None = None, requests: int | None = None) -> Account:
    return Account("augment", ledger.Caps("all", usd, requests), PRICES, "run")


def spent(store: RequestStore) -> tuple[int, float]:
    found = ledger.spent(store.connection, "all")
    return found.requests, round(found.usd, 12)  # sums of cents in binary


def test_an_answered_batch_costs_what_the_server_counts_at_its_price(store: RequestStore) -> None:
    plan = BatchPlan(fault_rule=at([2], refused(400, "No")))
    with StubServer(batch_plan=plan) as server:
        batch(server, store, account=account())
        payloads = [request.payload() for request, _ in NINE]
    usd = 0.5 * 8 * (11 * 1.0 + 7 * 10.0) / 1e6  # eight answers of 11 and 7 tokens
    assert spent(store) == (9, pytest.approx(usd))
    (bill,) = ledger.bills(store.connection, "run", frozenset({"ok"}))
    assert (bill.mode, bill.requests, bill.failed, bill.unsure) == ("batch", 9, 1, 0)
    assert (bill.tokens_in, bill.tokens_out, bill.usd) == (88, 56, pytest.approx(usd))
    assert len(payloads) == 9


@pytest.mark.parametrize("cap", ["requests", "usd"])
def test_a_cap_lets_through_as_many_as_fit_and_stops_the_others(
    store: RequestStore, cap: str
) -> None:
    most = PRICES.models["tiny"].usd(*asking().most_tokens(), mode="batch")
    caps = {"requests": 4} if cap == "requests" else {"usd": 4.5 * most}
    with StubServer(batch_plan=BatchPlan(polls=1)) as server:
        held: list[tuple[int, float]] = []
        replies = batch(
            *(server, store), account=account(**caps), shown=lambda _: held.append(spent(store))
        )
        assert [reply.state for reply in replies] == ["ok"] * 4 + ["budget_stop"] * 5
        assert held[0] == (4, pytest.approx(4 * most)), "set aside before anything is sent"
        assert spent(store)[1] < 4 * most
        batch(server, store, account=account())
        assert server.answered() == once_each()


def test_embeddings_are_not_asked_for_by_batch(store: RequestStore) -> None:
    with StubServer() as server, pytest.raises(ValueError, match="chat"):
        batch(server, store, [(EmbeddingRequest("Hi", "tiny"), 0)])


def test_a_missing_key_is_found_before_any_work(store: RequestStore) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        complete_batch(NINE, endpoint=Endpoint("https://example.invalid/v1"), store=store)


def test_a_server_that_is_not_there_is_named(store: RequestStore) -> None:
    with StubServer() as server:
        pass
    with pytest.raises(UserError, match=r"augment\.base_url=.* Connection error") as caught:
        batch(server, store, account=account())
    assert "\n" not in str(caught.value)
    assert spent(store) == (0, 0.0)


def test_a_server_lost_for_long_ends_the_run_and_the_next_collects(
    store: RequestStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bpo_data")
    told: list[str] = []
    faults = [None, None, *[refused(503, "Down")] * 5]
    with StubServer(batch_faults=faults) as server:
        with pytest.raises(UserError, match=r"503: Down Those under way go on at the server"):
            batch(server, store, pace=replace(BRISK, lost_for=0.0), shown=told.append)
        server.batch_faults.clear()
        assert {reply.state for reply in batch(server, store)} == {"ok"}
        assert len(made(server)) == 1
    assert "of 9 requests made" in caplog.text


def test_live_does_not_pay_for_what_a_batch_will_answer(store: RequestStore) -> None:
    with StubServer(batch_faults=[None, None, refused(401, "Who?")]) as server:
        with pytest.raises(UserError, match="401"):
            batch(server, store)
        sent = len(server.payloads)
        with pytest.raises(
            UserError, match=r"9 requests of 9 wait in a batch .*augment\.mode=batch"
        ):
            ask(server, store, NINE)
        assert len(server.payloads) == sent
        assert len(batch(server, store)) == 9
        assert len(server.payloads) == 9

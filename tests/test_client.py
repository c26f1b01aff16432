"""The client over loopback: every fault, what is stored, what is asked again, and what leaks."""

from __future__ import annotations

import email.utils
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_server import Fault, StubServer, busy, default_reply, echo_key, message, refused

from bpo_data.errors import UserError
from bpo_data.llm.client import Endpoint, Patience, Reply, Request, complete
from bpo_data.llm.replies import ANSWERED, STATES
from bpo_data.llm.store import RequestStore
from bpo_data.tables import Message

QUICK = Patience(attempts=4, first_wait=0.01, longest_wait=0.02, timeout=5.0)
SECRET = "sk-live-0123456789abcdef"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and no proxy between the client and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RequestStore]:
    with RequestStore(tmp_path / "requests.sqlite") as opened:
        yield opened


def asking(number: int = 0, system: str = "Be brief.", **changes: Any) -> Request:
    messages: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": f"What is {number} + {number}?"},
    ]
    request = Request(messages, "tiny", temperature=1, top_p=0.9, max_tokens=64, seed=number)
    return replace(request, **changes)


def ask(
    server: StubServer,
    store: RequestStore,
    requests: Sequence[tuple[Request, int]] = ((asking(), 0),),
    **more: Any,
) -> list[Reply]:
    settings = {"concurrency": 1, "patience": QUICK, **more}
    return complete(requests, endpoint=Endpoint(server.url), store=store, **settings)


def test_the_server_gets_every_sampling_setting_and_nothing_else(store: RequestStore) -> None:
    request = asking(3, extra={"max_tokens": None, "max_completion_tokens": 9, "min_p": 0.1})
    with StubServer() as server:
        (reply,) = ask(server, store, [(request, 0)])
    assert server.payloads == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 3 + 3?"},
            ],
            "model": "tiny",
            "temperature": 1.0,
            "top_p": 0.9,
            "seed": 3,
            "max_completion_tokens": 9,
            "min_p": 0.1,
        }
    ]
    assert reply == Reply("ok", default_reply(server.payloads[0]), "stop", 11, 7, 1, "")


def test_replies_come_in_the_order_of_requests_and_no_more_at_once_than_allowed(
    store: RequestStore,
) -> None:
    requests = [(asking(number), 0) for number in range(30)]
    with StubServer(lambda body: body["messages"][1]["content"], latency=0.01) as server:
        replies = ask(server, store, requests, concurrency=5)
    assert [reply.text for reply in replies] == [
        request.messages[1]["content"] for request, _ in requests
    ]
    assert 2 <= server.most_at_once <= 5


def test_going_from_8_to_12_draws_sends_4_more_a_prompt(store: RequestStore) -> None:
    def draws(count: int) -> list[tuple[Request, int]]:
        return [(asking(prompt, seed=draw), draw) for prompt in range(3) for draw in range(count)]

    with StubServer() as server:
        first = ask(server, store, draws(8), concurrency=4)
        server.payloads.clear()
        second = ask(server, store, draws(12), concurrency=4)
        prompts = Counter(body["messages"][1]["content"] for body in server.payloads)
        assert list(prompts.values()) == [4, 4, 4]
        assert {body["seed"] for body in server.payloads} == {8, 9, 10, 11}
        assert [reply for n, reply in enumerate(second) if n % 12 < 8] == first
        server.payloads.clear()
        assert ask(server, store, draws(12)) == second
        assert server.payloads == []


@pytest.mark.parametrize(
    "changes",
    [
        {"system": "Be brief!"},
        {"model": "tiny-2"},
        {"temperature": 0.9},
        {"top_p": 1.0},
        {"max_tokens": 65},
        {"seed": 1},
        {"extra": {"response_format": {"type": "json_object"}}},
        {"draw": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_change_of_anything_that_is_sent_asks_anew(
    store: RequestStore, changes: dict[str, Any]
) -> None:
    draw = changes.pop("draw", 0)
    with StubServer() as server:
        ask(server, store)
        ask(server, store)
        assert len(server.payloads) == 1
        ask(server, store, [(asking(**changes), draw)])
        assert len(server.payloads) == 2


def test_another_base_url_asks_anew(store: RequestStore) -> None:
    with StubServer() as first, StubServer() as second:
        ask(first, store)
        ask(second, store)
        assert len(first.payloads) == len(second.payloads) == 1


def test_an_equal_request_in_one_call_is_asked_once(store: RequestStore) -> None:
    with StubServer() as server:
        replies = ask(server, store, [(asking(), 0)] * 3, concurrency=3)
    assert len(server.payloads) == 1 and replies[0] == replies[1] == replies[2]


def test_on_done_sees_each_reply_once_and_after_it_is_stored(store: RequestStore) -> None:
    seen: list[tuple[int, bool]] = []

    def on_done(index: int, reply: Reply, fresh: bool) -> None:
        assert len(store) == len(seen) + 1 or not fresh
        seen.append((index, fresh))

    with StubServer() as server:
        ask(server, store, [(asking(n), 0) for n in range(3)], on_done=on_done)
        ask(server, store, [(asking(n), 0) for n in range(2)], on_done=on_done)
    assert sorted(seen[:3]) == [(0, True), (1, True), (2, True)]
    assert seen[3:] == [(0, False), (1, False)]


NULL = {"reasoning": "Let me think about this."}
ANSWERS = {
    "truncated": (message("Four, bec", "length"), "truncated", "Four, bec", "max_tokens"),
    "truncated in reasoning": (message(None, "length", **NULL), "truncated", "", "24 characters"),
    "null": (message(None, reasoning_content="Hm."), "empty", "", "3 characters of reasoning"),
    "blank": (message(" \n"), "empty", " \n", "no text"),
    "tool call": (message(None, "tool_calls"), "empty", "", "no text"),
    "refused": (message(None, refusal="I cannot."), "refused", "I cannot.", "refused"),
    "filtered": (message("Fo", "content_filter"), "filtered", "Fo", "filter"),
    "no finish": (message("Four.", None), "ok", "Four.", ""),
    "parts": (message([{"type": "text", "text": "Fo"}, {"text": "ur."}]), "ok", "Four.", ""),
    "half an emoji": (message("Four \ud83d"), "ok", "Four \ufffd", ""),
    "wrong content type": (
        replace(message("Four."), headers={"Content-Type": "text/html"}),
        "ok",
        "Four.",
        "",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_any_kind_has_its_state_and_is_paid_once(
    store: RequestStore, name: str
) -> None:
    fault, state, text, detail = ANSWERS[name]
    with StubServer(faults=[fault]) as server:
        (reply,) = ask(server, store)
        assert (reply.state, reply.text) == (state, text)
        assert detail in reply.detail and bool(detail) == bool(reply.detail)
        assert ask(server, store) == [reply]
        assert len(server.payloads) == 1


FAILURES = {
    "not JSON": (Fault(body='{"choices": [{"mess'), "malformed", "not JSON: {"),
    "HTML": (Fault(body="<html>Sign in</html>"), "malformed", "<html>Sign in"),
    "deep": (Fault(body="[" * 100_000), "malformed", "not JSON"),
    "a list": (Fault(body="[1]"), "malformed", "no choices"),
    "no choices": (Fault(body='{"choices": []}'), "malformed", "no choices"),
    "error in 200": (Fault(body='{"error": {"message": "GPU lost"}}'), "malformed", "GPU lost"),
    "no message": (Fault(body='{"choices": [{}]}'), "malformed", "no message"),
    "odd choice": (Fault(body='{"choices": [7], "usage": 3}'), "malformed", "no message"),
    "aborted": (message("Fou", "abort"), "malformed", "abort"),
    "bad request": (refused(400, "top_p must be > 0"), "http_error", "400: top_p must be > 0"),
    "unprocessable": (Fault(422, '{"detail": "seed"}'), "http_error", "422: {'detail': 'seed'}"),
    "too long": (refused(400, "Long.", code="context_length_exceeded"), "too_long", "Long."),
    "vLLM too long": (
        refused(400, "This model's maximum context length is 64 tokens.", code=400),
        "too_long",
        "64 tokens",
    ),
    "prompt filtered": (refused(400, "Policy.", code="content_filter"), "filtered", "Policy."),
    "must wait an hour": (busy("3600"), "http_error", "429: Rate limit reached"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_returned_at_once_and_asked_again_in_the_next_run(
    store: RequestStore, name: str
) -> None:
    fault, state, detail = FAILURES[name]
    with StubServer(faults=[fault]) as server:
        failed, fine = ask(server, store, [(asking(0), 0), (asking(1), 0)])
        assert (failed.state, failed.text, failed.attempts) == (state, "", 1)
        assert detail in failed.detail
        assert fine.state == "ok", "one failed row takes no other with it"
        assert [reply.state for reply in ask(server, store, [(asking(0), 0)])] == ["ok"]
        assert len(server.payloads) == 3


PASSING = {
    "429": busy(),
    "500": refused(500, "Oops"),
    "503": Fault(503, "<html>Down</html>"),
    "connection cut": Fault(body='{"choices"', cut=True),
    "408": refused(408, "Slow"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_is_waited_out(store: RequestStore, name: str) -> None:
    with StubServer(faults=[PASSING[name]] * 2) as server:
        (reply,) = ask(server, store)
    assert (reply.state, reply.attempts) == ("ok", 3)


def test_a_failure_that_does_not_pass_ends_after_the_last_attempt(store: RequestStore) -> None:
    with StubServer(faults=[refused(500, "Oops")] * 4) as server:
        failed, fine = ask(server, store, [(asking(0), 0), (asking(1), 0)])
    assert (failed.state, failed.attempts, failed.detail) == ("http_error", 4, "500: Oops")
    assert fine.state == "ok" and len(store) == 1


@pytest.mark.parametrize("fault", [Fault(body="{}", drip=1), Fault(body=" " * 99, drip=0.05)])
def test_a_slow_or_dripping_reply_meets_the_time_limit(store: RequestStore, fault: Fault) -> None:
    patience = replace(QUICK, timeout=0.3)
    with StubServer(faults=[fault]) as server:
        (reply,) = ask(server, store, patience=patience)
    assert (reply.state, reply.attempts) == ("ok", 2)


def test_nobody_at_the_address_is_an_http_error_of_each_row(store: RequestStore) -> None:
    with StubServer() as server:
        pass
    (reply,) = ask(server, store)
    assert (reply.state, reply.attempts, reply.detail) == ("http_error", 4, "Connection error.")


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_retry_after_is_honoured_in_every_form(store: RequestStore, form: str) -> None:
    date = email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    header = {
        "seconds": {"Retry-After": "0.4"},
        "milliseconds": {"Retry-After-Ms": "400"},
        "date": {"Retry-After": date},
    }[form]
    with StubServer(faults=[refused(429, "Busy", header)]) as server:
        (reply,) = ask(server, store)
    assert reply.state == "ok"
    waited = server.arrivals[1] - server.arrivals[0]
    assert 0.4 <= waited < 2.5, f"came back after {waited:.2f} s"


def test_default_waits_outlast_a_minute_of_refusals() -> None:
    patience = Patience()
    least = sum(min(patience.longest_wait, 2.0**n) / 2 for n in range(patience.attempts - 1))
    assert least > 55, f"{least} s: attempts are burnt in seconds"


def test_waiting_is_shown(store: RequestStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bpo_data"), StubServer(faults=[busy()] * 3) as server:
        ask(server, store)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "attempt 1 of 4" in line and "Rate limit reached" in line


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_what_no_request_can_pass_ends_the_run_in_one_line(
    store: RequestStore, status: int
) -> None:
    code = {"code": "insufficient_quota"} if status == 429 else {}
    faults = [None, refused(status, f"Words of {status}.", **code)]
    with StubServer(faults=faults) as server, pytest.raises(UserError) as caught:
        ask(server, store, [(asking(number), 0) for number in range(9)])
    text = str(caught.value)
    assert f"augment.base_url={server.url} answered {status}: Words of {status}." in text
    assert "\n" not in text and ("OPENAI_API_KEY" in text) == (status != 404)
    assert len(server.payloads) == 2, "the rest would fail alike"
    assert len(store) == 1, "what was paid for before is kept"


def test_a_missing_key_is_found_before_any_work(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint("https://example.invalid/v1", "MY_KEY", section="score")
    with pytest.raises(UserError, match=r"MY_KEY is not set and score\.base_url"):
        complete([(asking(), 0)], endpoint=endpoint, store=store, concurrency=1)
    monkeypatch.setenv("MY_KEY", "sk-\u2026")
    with pytest.raises(UserError, match="MY_KEY holds characters"):
        endpoint.key()


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]/v1"])
def test_a_server_on_this_machine_needs_no_key(url: str) -> None:
    assert Endpoint(url).key() == "none"


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"augment\.base_url="):
        Endpoint(url)


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@host/v1", f"https://host/v1?key={SECRET}"])
def test_a_secret_in_the_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UserError, match=r"augment\.base_url") as caught:
        Endpoint(url)
    assert SECRET not in str(caught.value)


ECHOES = {
    "401": echo_key(401),
    "400": echo_key(400),
    "500": echo_key(500),
    "cut by our limit": Fault(400, "x" * 285 + "{authorization}"),
    "malformed": Fault(body="x" * 285 + "{authorization}"),
    "answer": message("You sent {authorization}", "length"),
    "finish": message("Hm", "{authorization}"),
    "escaped": message("You sent Bearer " + SECRET.replace("s", "@")),
}


@pytest.mark.parametrize("name", ECHOES)
def test_a_key_that_the_server_sends_back_is_found_nowhere(
    store: RequestStore,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.INFO)
    fault = ECHOES[name]
    fault = replace(fault, body=fault.body.replace("@", "\\u0073"))
    with StubServer(faults=[fault] * 4) as server:
        try:
            said = repr(ask(server, store))
        except UserError as error:
            assert error.__suppress_context__ and error.__cause__ is None
            said = str(error)
    assert "[key]" in said
    left = [path.read_bytes() for path in store.path.parent.iterdir()]
    for text in [said, caplog.text, repr(left)]:
        assert SECRET[:12] not in text


RUN = """
import sys
from test_client import asking
from bpo_data.llm.client import Endpoint, complete
from bpo_data.llm.store import RequestStore
complete([(asking(n), 0) for n in range(80)], endpoint=Endpoint(sys.argv[1]),
         store=RequestStore(sys.argv[2]), concurrency=8)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_without_asking_for_a_stored_reply(
    tmp_path: Path, ending: signal.Signals
) -> None:
    path = tmp_path / "requests.sqlite"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    asked: Counter[str] = Counter()
    with StubServer(latency=0.05) as server:
        for stop_at in (9, 20, 31):
            with RequestStore(path) as store:
                held = len(store)
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, server.url, str(path)],
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            while len(server.payloads) < stop_at:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(ending)
            assert process.wait(timeout=30) == -ending
            before = stored(path)
            assert len(before) > held, "each run got somewhere"
            assert not before & (Counter(server.asked()) - Counter(dict.fromkeys(before, 1))).keys()
            asked += server.asked()
            server.payloads.clear()
        with RequestStore(path) as store:
            requests = [(asking(number), 0) for number in range(80)]
            replies = ask(server, store, requests, concurrency=8)
            held = len(before)
        assert len(server.payloads) == 80 - held
        assert not before & server.asked().keys()
        asked += server.asked()
    assert [reply.text for reply in replies] == [default_reply(r.payload()) for r, _ in requests]
    assert asked.total() <= 80 + 3 * 8, "only what was under way at a kill is asked twice"


def stored(path: Path) -> set[str]:
    """The payloads whose replies are in the store, as ``StubServer.asked`` writes them."""
    import json

    with RequestStore(path) as store:
        rows = store.connection.execute("SELECT request FROM replies").fetchall()
    return {json.dumps(json.loads(request)["payload"], sort_keys=True) for (request,) in rows}


def test_states_are_a_closed_set() -> None:
    assert len(set(STATES)) == len(STATES) and set(STATES) > ANSWERED

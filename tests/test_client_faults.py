"""The client over loopback against a server that fails in every way we have met."""

from __future__ import annotations

import email.utils
import importlib.util
import logging
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import openai
import pytest
from asking import QUICK, ask, asking
from helpers import ROOT

from bpo_data.errors import UserError
from bpo_data.llm.client import Patience
from bpo_data.llm.replies import ANSWERED
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import NAMED, Fault, StubServer, busy, echo_key, message, refused
from bpo_data.llm.stub.faults import HUGE

SECRET = "sk-live-0123456789abcdef"


pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(autouse=True, params=["aiohttp", "httpx2"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with aiohttp and, where that is not installed, without it."""
    if request.param == "httpx2":
        find = importlib.util.find_spec
        hidden = {"aiohttp": None}
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: hidden.get(name, name) and find(name)
        )
        monkeypatch.setattr(openai, "DefaultAioHttpClient", None)


@dataclass(frozen=True)
class Fate:
    """What comes of a request that meets a fault once, and proper answers from then on."""

    state: str = "ok"
    """Empty: the run ends with a UserError."""

    detail: str = ""
    """Words of the reply's detail, or of the error."""

    attempts: int = 1
    text: str | None = ""
    """None: the answer that the stub gives."""


AGAIN = Fate(attempts=2, text=None)
FATES = {
    "429": AGAIN,
    "429-plain": AGAIN,
    "429-ms": AGAIN,
    "429-date": AGAIN,
    "no-money": Fate("", "answered 429: You exceeded your quota. Pay in with that vendor"),
    "500": AGAIN,
    "503": AGAIN,
    "silent": AGAIN,
    "cut": AGAIN,
    "drop": AGAIN,
    "slow": AGAIN,
    "huge": Fate(text="x" * HUGE),
    "not-json": Fate("malformed", "not JSON: {"),
    "html": Fate("malformed", "not JSON: <html>"),
    "no-choices": Fate("malformed", "no choices"),
    "null": Fate("empty", "no text"),
    "reasoning": Fate("truncated", "24 characters of reasoning came instead"),
    "refusal": Fate("refused", "refused", text="I cannot help with that."),
    "filter": Fate("filtered", "filter"),
    "too-long": Fate("too_long", "maximum context length is 64 tokens"),
    "no-schema": Fate("http_error", "400: Unsupported parameter: 'response_format'"),
    "400": Fate("http_error", "400: Bad request"),
    "401": Fate("", "answered 401: Incorrect API key provided. Check the key"),
    "403": Fate("", "answered 403: You are not allowed"),
    "404": Fate("", "answered 404: The model does not exist. Check augment.base_url"),
    "echo-key": Fate("", "answered 401: Wrong credentials: Bearer none"),
}


def test_every_fault_of_the_stub_has_its_fate() -> None:
    assert FATES.keys() == NAMED.keys()


@pytest.mark.parametrize("name", FATES)
def test_a_fault_has_its_state_and_only_what_was_not_answered_is_asked_again(
    store: RequestStore, name: str
) -> None:
    fate = FATES[name]
    patience = replace(QUICK, timeout=0.4 if name in ("silent", "slow") else 10)
    with StubServer(faults=[NAMED[name]()]) as server:
        if not fate.state:
            with pytest.raises(UserError) as caught:
                ask(server, store, patience=patience)
            assert fate.detail in str(caught.value)
            assert len(store) == 0
        else:
            (reply,) = ask(server, store, patience=patience)
            proper = server.answer(server.payloads[0]).body
            assert (reply.state, reply.attempts) == (fate.state, fate.attempts)
            assert fate.detail in reply.detail
            assert reply.text in proper if fate.text is None else reply.text == fate.text
        sent = len(server.payloads)
        (later,) = ask(server, store, patience=patience)
        assert len(server.payloads) == sent + (fate.state not in ANSWERED)
        assert later.state == (fate.state if fate.state in ANSWERED else "ok")


BIG = """
import resource, sys
from asking import ask, asking
from bpo_data.llm.client import Endpoint, Limits, complete
from bpo_data.llm.store import RequestStore
from types import SimpleNamespace
with RequestStore(sys.argv[2]) as store:
    server = SimpleNamespace(url=sys.argv[1])
    assert ask(server, store)[0].text == "Four."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replies = ask(server, store, [(asking(number), 0) for number in range(1, 5)])
    assert [len(reply.text) for reply in replies] == [50 << 20, 5, 5, 5]
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_a_reply_of_50_mb_is_kept_and_costs_few_times_its_size(tmp_path: Path) -> None:
    four = message("Four.")
    faults = [four, message("x" * (50 << 20)), four, four, four]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with StubServer(faults=faults) as server:
        command = [sys.executable, "-c", BIG, server.url, str(tmp_path / "r.sqlite")]
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    megabytes = int(told.stdout)
    assert megabytes < 8 * 50, f"{megabytes} MB for a reply of 50"


NULL = {"reasoning": "Let me think about this."}
ANSWERS = {
    "truncated": (message("Four, bec", "length"), "truncated", "Four, bec", "max_tokens"),
    "truncated in reasoning": (message(None, "length", **NULL), "truncated", "", "24 characters"),
    "null": (message(None, reasoning_content="Hm."), "reasoning_only", "", "3 characters of"),
    "blank": (message(" \n"), "empty", " \n", "no text"),
    "tool call": (message(None, "tool_calls"), "empty", "", "no text"),
    "refused": (message(None, refusal="I cannot."), "refused", "I cannot.", "refused"),
    "filtered": (message("Fo", "content_filter"), "filtered", "Fo", "filter"),
    "prompt filtered": (refused(400, "No.", code="content_filter"), "filtered", "", "400: No."),
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
        assert detail in reply.detail
        assert bool(detail) == bool(reply.detail)
        assert ask(server, store) == [reply]
        assert len(server.payloads) == 1


FAILURES = {
    "not JSON": (Fault(body='{"choices": [{"mess'), "malformed", "not JSON: {"),
    "HTML": (Fault(body="<html>Sign in</html>"), "malformed", "<html>Sign in"),
    "deep": (Fault(body="[" * 100_000), "malformed", "not JSON"),
    "a list": (Fault(body="[1]"), "malformed", "no object"),
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
        (failed,) = ask(server, store)
        (fine,) = ask(server, store, [(asking(1), 0)])
    assert (failed.state, failed.attempts, failed.detail) == ("http_error", 4, "500: Oops")
    assert fine.state == "ok"
    assert len(store) == 1


@pytest.mark.parametrize("fault", [Fault(body="{}", drip=1), Fault(body=" " * 99, drip=0.05)])
def test_a_slow_or_dripping_reply_meets_the_time_limit(store: RequestStore, fault: Fault) -> None:
    patience = replace(QUICK, timeout=0.3)
    with StubServer(faults=[fault]) as server:
        (reply,) = ask(server, store, patience=patience)
    assert (reply.state, reply.attempts) == ("ok", 2)


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
    assert "1 waiting on 429" in line
    assert "after attempt 1 (Rate limit reached)" in line


@pytest.mark.parametrize(
    ("status", "answers"), [(401, 0), (401, 1), (429, 0), (429, 1), (403, 0), (404, 0)]
)
def test_what_no_request_can_pass_ends_the_run_in_one_line(
    store: RequestStore, status: int, answers: int
) -> None:
    code = "insufficient_quota" if status == 429 else None
    faults = [None] * answers + [refused(status, f"Words of {status}.", code=code)]
    with StubServer(faults=faults) as server, pytest.raises(UserError) as caught:
        ask(server, store, [(asking(number), 0) for number in range(9)])
    text = str(caught.value)
    assert f"augment.base_url={server.url} answered {status}: Words of {status}." in text
    assert "\n" not in text
    assert ("OPENAI_API_KEY" in text) == (status in (401, 403))
    assert len(server.payloads) == answers + 1, "the rest would fail alike"
    assert len(store) == answers, "what was paid for before is kept"


@pytest.mark.parametrize("status", [403, 404])
def test_once_something_was_answered_a_403_or_404_is_about_its_own_row(
    store: RequestStore, status: int
) -> None:
    """Some gateways refuse a flagged prompt so; a night's run must not sink with it."""
    with StubServer(faults=[None, refused(status, "Not this one.")]) as server:
        replies = ask(server, store, [(asking(number), 0) for number in range(9)])
    assert [reply.state for reply in replies] == ["ok", "http_error"] + ["ok"] * 7
    assert replies[1].detail == f"{status}: Not this one."


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
    caplog.set_level(logging.DEBUG)  # of the libraries too
    fault = ECHOES[name]
    fault = replace(fault, body=fault.body.replace("@", "\\u0073"))
    with StubServer(faults=[fault] * 4) as server:
        try:
            said = repr(ask(server, store))
        except UserError as error:
            said = "".join(traceback.format_exception(error))
    assert "[key]" in said
    left = [path.read_bytes() for path in store.path.parent.iterdir()]
    for text in [said, caplog.text, repr(left)]:
        assert SECRET[:12] not in text


def test_a_server_that_is_not_there_stops_the_run_after_one_row(store: RequestStore) -> None:
    """Hundreds of rows at a minute of attempts each would be a night lost."""
    with StubServer() as server:
        pass
    requests = [(asking(number), 0) for number in range(200)]
    with pytest.raises(UserError, match=r"augment\.base_url=.* does not answer after 3 attempts"):
        ask(server, store, requests, concurrency=2)
    assert len(store) == 0

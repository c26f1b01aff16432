"""The client over loopback: what is sent, what is asked once, and what a killed run leaves."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import ask, asking
from forking import fork

from bpo_data.errors import UserError
from bpo_data.llm.client import Endpoint, Limits, Reply, Request, complete
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import StubServer, default_reply, written

SECRET = "sk-live-0123456789abcdef"


pytestmark = pytest.mark.usefixtures("plain_environment")


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
    assert len(server.payloads) == 1
    assert replies[0] == replies[1] == replies[2]


def test_on_done_sees_each_reply_once_and_after_it_is_stored(store: RequestStore) -> None:
    seen: list[tuple[int, bool]] = []

    def on_done(index: int, reply: Reply, fresh: bool) -> None:
        assert len(store) > len(seen) or not fresh
        seen.append((index, fresh))

    with StubServer() as server:
        ask(server, store, [(asking(n), 0) for n in range(3)], on_done=on_done)
        ask(server, store, [(asking(n), 0) for n in range(2)], on_done=on_done)
    assert sorted(seen[:3]) == [(0, True), (1, True), (2, True)]
    assert seen[3:] == [(0, False), (1, False)]


def test_a_missing_key_is_found_before_any_work(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint("https://example.invalid/v1", "MY_KEY", section="score")
    with pytest.raises(UserError, match=r"MY_KEY is not set and score\.base_url"):
        complete([(asking(), 0)], endpoint=endpoint, store=store, limits=Limits(1))
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


def environment() -> dict[str, str]:
    """For a process that imports our helpers."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from asking import asking
from bpo_data.llm.client import Endpoint, Limits, complete
from bpo_data.llm.store import RequestStore
complete([(asking(n), 0) for n in range(80)], endpoint=Endpoint(sys.argv[1]),
         store=RequestStore(sys.argv[2]), limits=Limits(8))
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_without_asking_for_a_stored_reply(
    tmp_path: Path, ending: signal.Signals
) -> None:
    path = tmp_path / "requests.sqlite"
    requests = [(asking(number), 0) for number in range(80)]
    asked: Counter[str] = Counter()
    kept: set[str] = set()
    with StubServer(latency=0.05) as server:
        for stop_at in (9, 20, 31):
            process = fork(["-c", RUN, server.url, str(path)], environment())
            while len(server.payloads) < stop_at:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(ending)
            assert process.wait(timeout=30) == -ending
            assert not kept & server.asked().keys()
            assert stored(path) > kept, "each run got somewhere"
            kept = stored(path)
            asked += server.asked()
            server.payloads.clear()
        with RequestStore(path) as store:
            replies = ask(server, store, requests, concurrency=8)
        assert server.asked().keys() == {written(r.payload()) for r, _ in requests} - kept
        asked += server.asked()
    assert [reply.text for reply in replies] == [default_reply(r.payload()) for r, _ in requests]
    assert asked.total() <= 80 + 3 * 8, "only what was under way at a kill is asked twice"


def stored(path: Path) -> set[str]:
    """The payloads whose replies are in the store, as ``StubServer.asked`` writes them."""
    with RequestStore(path) as store:
        rows = store.connection.execute("SELECT request FROM replies").fetchall()
    return {written(json.loads(request)["payload"]) for (request,) in rows}


TWO = """
import os, sys, time
from asking import asking
from bpo_data.llm.client import Endpoint, Limits, complete
from bpo_data.llm.store import RequestStore
store = RequestStore(sys.argv[2])
requests = [(asking(n), 0) for n in range(int(sys.argv[3]))]
print("ready", flush=True)
while not os.path.exists(sys.argv[4]):
    time.sleep(0.001)
replies = complete(requests, endpoint=Endpoint(sys.argv[1]), store=store, limits=Limits(8))
print([reply.text for reply in replies])
"""


def test_two_runs_at_once_share_what_each_asks_and_go_on_with_the_same_answers(
    tmp_path: Path,
) -> None:
    count, path = 400, tmp_path / "requests.sqlite"
    answers = map(str, itertools.count())
    with StubServer(lambda payload: next(answers), latency=0.04) as server:
        words = ["-c", TWO, server.url, str(path), str(count), str(tmp_path / "go")]
        runs = [fork(words, environment()) for _ in range(2)]
        for run in runs:
            assert run.stdout.readline() == "ready\n"
        (tmp_path / "go").touch()
        first, second = (run.communicate(timeout=60)[0] for run in runs)
        assert [run.returncode for run in runs] == [0, 0]
    assert first == second, "to each request the first answer, in both"
    asked = server.asked()
    assert len(asked) == count
    assert max(asked.values()) <= 2
    twice = asked.total() - count
    assert twice < count / 2, f"{twice} of {count} were asked twice"


def test_a_store_that_is_copied_elsewhere_answers_everything(tmp_path: Path) -> None:
    requests = [(asking(number), 0) for number in range(20)]
    with StubServer() as server:
        with RequestStore(tmp_path / "requests.sqlite") as store:
            replies = ask(server, store, requests, concurrency=4)
            (tmp_path / "elsewhere").mkdir()
            # While it is open, so that some of it is in the write-ahead log alone.
            for name in ("requests.sqlite", "requests.sqlite-wal"):
                shutil.copy(tmp_path / name, tmp_path / "elsewhere")
        server.payloads.clear()
        with RequestStore(tmp_path / "elsewhere" / "requests.sqlite") as copied:
            assert ask(server, copied, requests) == replies
        assert server.payloads == []

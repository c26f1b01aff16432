"""Requests sent by processes of an engine: the same comes out, and what is lost is asked again."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import test_client_faults as faults
from asking import QUICK, ask, asking
from forking import fork
from sender_lines import HereLines, children, real, spread
from test_client import environment, stored

from bpo_data.budget import Budget
from bpo_data.engines import engine_of, lines
from bpo_data.engines.lines import Begin, Line, Lost
from bpo_data.errors import UserError
from bpo_data.llm import ledger, senders
from bpo_data.llm.client import Endpoint, Limits, Request
from bpo_data.llm.desk import Desk
from bpo_data.llm.failures import Failed
from bpo_data.llm.senders import Opening
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import Fault, Payload, StubServer, default_reply, written
from bpo_data.runtime import Runtime

SECRET = "sk-live-0123456789abcdef"


pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> HereLines:
    """Everything goes through two senders in this process."""
    found = HereLines()
    spread(monkeypatch, found, 2)
    return found


@pytest.fixture(scope="module", autouse=True)
def no_cluster_after() -> Iterator[None]:
    """Other tests of this process start clusters of their own."""
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def rows(count: int) -> list[tuple[Request, int]]:
    return [(asking(number), 0) for number in range(count)]


@pytest.mark.parametrize("name", faults.FATES)
def test_a_fault_has_the_same_fate_through_a_sender(
    here: HereLines, store: RequestStore, name: str
) -> None:
    faults.test_a_fault_has_its_state_and_only_what_was_not_answered_is_asked_again(store, name)
    assert here.opened


@pytest.mark.parametrize("name", ["unprocessable", "vLLM too long", "must wait an hour"])
def test_a_failure_is_the_same_through_a_sender(
    here: HereLines, store: RequestStore, name: str
) -> None:
    faults.test_a_failure_is_returned_at_once_and_asked_again_in_the_next_run(store, name)


@pytest.mark.parametrize(("status", "answers"), [(401, 1), (429, 0), (403, 0), (404, 0)])
def test_what_no_request_can_pass_ends_the_run_through_a_sender_too(
    here: HereLines, store: RequestStore, status: int, answers: int
) -> None:
    faults.test_what_no_request_can_pass_ends_the_run_in_one_line(store, status, answers)


def test_a_server_that_is_not_there_is_told_by_a_sender_too(
    here: HereLines, store: RequestStore
) -> None:
    faults.test_a_server_that_is_not_there_stops_the_run_after_one_row(store)


@pytest.mark.parametrize("name", faults.ECHOES)
def test_a_key_that_comes_back_to_a_sender_is_found_nowhere(
    here: HereLines,
    store: RequestStore,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults.test_a_key_that_the_server_sends_back_is_found_nowhere(store, name, monkeypatch, caplog)


def test_a_failure_is_the_same_after_the_way_between_processes() -> None:
    failed = Failed("Busy.", 429, "slow_down", wait=0.4, lost=True, nobody=True, unsent=True)
    came = pickle.loads(pickle.dumps(failed))
    assert (type(came), vars(came)) == (Failed, vars(failed))


def test_the_key_is_in_nothing_that_starts_a_sender() -> None:
    letter = Opening(Endpoint(), SECRET, 1.0)
    assert SECRET not in repr(letter)
    assert b"sk-" not in pickle.dumps(senders.Sender), "it is all that a process is started with"


def desk(folder: Path, engine: str, **more: Any) -> Desk:
    runtime = Runtime(folder=str(folder), concurrency=8, engine=engine, device="cpu")
    if engine != "local":
        runtime.processes = 2
    runtime.budget = Budget(**more)
    return Desk("augment", runtime, lines=engine_of(runtime).lines)


def complete(desk: Desk, server: StubServer, count: int) -> list[tuple[str, str, str]]:
    replies = desk.complete(rows(count), Endpoint(server.url), max_failed=1.0, section="augment")
    return [(reply.state, reply.text, reply.finish) for reply in replies]


ENGINES = ["processes", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engines_senders_bring_what_one_process_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The same answers for the same requests, each sent once, and no process is left."""
    already = set(children())
    with StubServer() as server:
        local = complete(desk(tmp_path / "local", "local"), server, 120)
        once = server.asked()
        assert set(once.values()) == {1}
    spread(monkeypatch, engine_of(Runtime()).lines, 2)
    with StubServer(latency=0.005) as server:
        found = complete(desk(tmp_path / "spread", engine), server, 120)
        assert found == local
        assert server.asked() == once
    assert set(children()) == already or engine == "ray"


def test_few_requests_start_no_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []

    def open_lines(here: bool) -> None:
        opened.append(here)

    one = desk(tmp_path, "local")
    one.lines = open_lines
    monkeypatch.setattr(senders, "WORTH", 10)
    with StubServer() as server:
        complete(one, server, 9)
        assert opened == []
        complete(one, server, 18)
        assert opened == [], "nine of them are held"
        complete(one, server, 28)
        assert opened == [True], "a server on this machine has its senders here"


@pytest.mark.parametrize("engine", ENGINES)
def test_senders_keep_one_rate(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Of a server that counts strictly, in windows of three seconds. On a busy machine one or two
    that are held up on the way come with others; with a rate each it would take half the time."""
    spread(monkeypatch, real(2, engine), 2)
    with StubServer(window=3, requests_per_minute=1200) as server:
        replies = ask(server, store, rows(75), limits=Limits(16, 1200))
        assert {reply.state for reply in replies} == {"ok"}
        assert server.refused <= 2
        took = server.arrivals[-1] - server.arrivals[0]
    assert 3.5 < took < 10, f"{took:.2f} s for 75 at 20 a second"


PRICES = "date: 2026-11-20\nmodels: {tiny: {prompt: 1000, completion: 10000}}\n"
"""A request may cost 0.74 dollars and costs 0.081: 11 tokens in, 7 out."""


@pytest.mark.parametrize("cap", [{"usd": 2.0}, {"requests": 23}])
def test_senders_keep_one_budget(here: HereLines, tmp_path: Path, cap: dict[str, Any]) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    one = desk(tmp_path, "local", prices=str(tmp_path / "prices.yaml"), **cap)
    one.lines = here
    with StubServer() as server, pytest.raises(UserError, match="the budget is used up"):
        complete(one, server, 60)
    with RequestStore(one.runtime.store_path()) as store:
        spent = ledger.spent(store.connection, "all")
    assert spent.requests == len(server.payloads)
    if "usd" in cap:
        assert 2.0 - 0.75 < spent.usd <= 2.0
    else:
        assert spent.requests == 23


def senders_of(engine: str) -> list[psutil.Process]:
    if engine == "processes":
        return children()
    workers = psutil.Process().children(recursive=True)
    return [worker for worker in workers if "ray::Office" in " ".join(worker.cmdline())]


def at_the(number: int, do: Callable[[], None]) -> Callable[[Payload], str]:
    """Answers by rule, and has something done when a request comes."""
    came = iter(range(1, 10_000))

    def reply(payload: Payload) -> str:
        if next(came) == number:
            do()
        return default_reply(payload)

    return reply


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sender_that_is_killed_costs_the_requests_it_had_under_way(
    store: RequestStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    spread(monkeypatch, real(2, engine), 2)
    stored_then: list[set[str]] = []
    came_then: list[int] = []

    def kill() -> None:
        stored_then.append(stored(store.path))
        came_then.append(len(server.payloads))
        senders_of(engine)[0].kill()

    with (
        caplog.at_level(logging.WARNING, "bpo_data"),
        StubServer(at_the(60, kill), latency=0.02) as server,
    ):
        replies = ask(server, store, rows(150), concurrency=8)
        asked = server.asked()
        later = Counter(map(written, server.payloads[came_then[0] :]))
        assert not stored_then[0] & later.keys(), "what was stored is not asked again"
        assert asked.total() <= 150 + 8, "only what was under way is"
        assert ask(server, store, rows(150)) == replies
        assert server.asked() == asked
    assert [reply.text for reply in replies] == [
        default_reply(request.payload()) for request, _ in rows(150)
    ]
    lost = sum(reply.attempts - 1 for reply in replies)
    assert 0 < lost <= 8
    how = "it was ended by SIGKILL" if engine == "processes" else "its worker process has died"
    (told,) = [line for line in caplog.messages if "a sender was lost" in line]
    assert how in told
    assert ledger.spent(store.connection, "all").requests == 150 + lost


def test_a_sender_that_stands_still_is_given_up(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Long before the time that a request may take is over."""
    monkeypatch.setattr(lines, "BEAT", 0.1)
    spread(monkeypatch, real())
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.extend(children())
        stopped[0].suspend()

    patience = replace(QUICK, timeout=300.0)
    with (
        caplog.at_level(logging.WARNING, "bpo_data"),
        StubServer(at_the(10, stop), latency=0.01) as server,
    ):
        replies = ask(server, store, rows(30), concurrency=4, patience=patience)
    assert {reply.state for reply in replies} == {"ok"}
    assert "a sender was lost: no sign of life" in caplog.text
    assert not stopped[0].is_running(), "it is ended too"


class Nowhere:
    """An engine whose processes end before they are of use."""

    count = 1

    def __call__(self, here: bool) -> Nowhere:
        return self

    async def open(self, begin: Begin) -> Line:
        await asyncio.sleep(0.05)
        raise Lost("memory was short")


def test_where_senders_cannot_live_the_command_sends_itself(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(senders, "WORTH", 0)
    with caplog.at_level(logging.WARNING, "bpo_data"), StubServer(latency=0.05) as server:
        replies = ask(server, store, rows(20), lines=Nowhere())
    assert {(reply.state, reply.attempts) for reply in replies} == {("ok", 1)}
    *lost, last = caplog.messages
    assert [line.strip() for line in lost] == ["a sender was lost: memory was short"] * 3
    assert "3 senders were lost in turn: none takes their place, this process goes on." in last


def test_a_machine_without_a_way_to_the_server_does_not_end_the_run(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As workers of a cluster whose head alone is let out. Nothing was asked there."""
    tried: list[object] = []

    async def serve(letter: Any) -> None:
        if isinstance(letter, Opening):
            return
        tried.append(letter)
        raise Failed("Connection error.", lost=True, nobody=True, unsent=True)

    monkeypatch.setattr(senders, "WORTH", 0)
    with caplog.at_level(logging.WARNING, "bpo_data"), StubServer() as server:
        replies = ask(server, store, rows(200), lines=HereLines(1, serve))
        assert server.asked().total() == 200
    assert {(reply.state, reply.attempts) for reply in replies} == {("ok", 1)}
    assert len(tried) == senders.TRIES
    assert f"it does not reach {server.url}, as this process does" in caplog.text


def test_a_bug_in_a_sender_rises_whole(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(letter: Any) -> None:
        if not isinstance(letter, Opening):
            raise ZeroDivisionError("a bug")

    spread(monkeypatch, HereLines(1, serve))
    with StubServer() as server, pytest.raises(ZeroDivisionError, match="a bug"):
        ask(server, store, rows(3))


def test_a_machine_that_slept_gives_no_sender_up() -> None:
    """Its clock has gone on for an hour when it looks again."""

    async def sleep() -> bool:
        line = await HereLines(serve=asyncio.sleep).open(lambda: asyncio.sleep)
        watched = asyncio.create_task(line.watch())
        await asyncio.sleep(0.02)
        time.sleep(4 * lines.BEAT * lines.SILENT)
        await asyncio.sleep(0.02)
        watched.cancel()
        return line.lost.done()

    lines.BEAT, beat = 0.01, lines.BEAT
    try:
        assert not asyncio.run(sleep())
    finally:
        lines.BEAT = beat


KEYED = """
import logging, os, sys, tempfile
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
import asking as words
from bpo_data.llm import senders
from bpo_data.llm.client import Endpoint, Limits, complete
from bpo_data.llm.store import RequestStore
from sender_lines import real
senders.WORTH = 0
if __name__ == "__main__":
    url, path, engine = sys.argv[1:]
    tempfile.tempdir = str(Path(path).parent)
    with RequestStore(path) as store:
        replies = complete([(words.asking(n), 0) for n in range(300)], endpoint=Endpoint(url),
                           store=store, limits=Limits(8), lines=real(1, engine))
        print(replies)
    for one in Path(path).parent.rglob("*"):
        if one.is_file() and os.environ["OPENAI_API_KEY"][8:].encode() in one.read_bytes():
            print("FOUND in", one)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_the_key_of_a_sender_is_in_no_file_and_in_nothing_that_is_said(
    engine: str,
) -> None:
    """Nor in a folder of Ray's, though the server sends it back in much of what it says."""
    echoes = [replace(one, body=one.body.replace("@", "\\u0073")) for one in faults.ECHOES.values()]

    def echo(payload: Payload, before: int) -> Fault | None:
        number = payload["seed"] % 40
        return echoes[number] if 1 < number < len(echoes) and not before else None

    with (
        StubServer(fault_rule=echo, latency=0.05) as server,
        TemporaryDirectory(dir="/tmp") as folder,  # the path of a socket of Ray's may not be long
    ):
        words = ["-c", KEYED, server.url, f"{folder}/r.sqlite", engine]
        status, out, error = ran(words, {**environment(), "OPENAI_API_KEY": SECRET}, engine)
    assert status == 0, error[-2000:]
    assert out.count("[key]") > 20, "the key did come back"
    assert "FOUND" not in out
    assert SECRET[8:] not in out + error


def ran(words: list[str], variables: dict[str, str], engine: str) -> tuple[int, str, str]:
    """A Python to its end; with Ray one that was not forked."""
    if engine == "processes":
        with fork(words, variables) as process:
            out, error = process.communicate(timeout=120)
        return process.wait(), out, error
    done = subprocess.run(
        [sys.executable, *words], env=variables, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


RUN = """
import os, signal, sys
import asking as words
from bpo_data import stopping
from bpo_data.llm import senders
from bpo_data.llm.client import Endpoint, Limits, complete
from bpo_data.llm.store import RequestStore
from sender_lines import real
senders.WORTH = 0
if __name__ == "__main__":
    try:
        with stopping.listening():
            complete([(words.asking(n), 0) for n in range(4000)], endpoint=Endpoint(sys.argv[1]),
                     store=RequestStore(sys.argv[2]), limits=Limits(8), lines=real())
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_senders_end_with_the_run_and_what_they_had_under_way_is_waited_for(
    tmp_path: Path, ending: signal.Signals
) -> None:
    """Ctrl-C goes to the whole group; a kill to one process, whose children hear nothing of it."""
    path = tmp_path / "requests.sqlite"
    with StubServer(latency=0.1) as server:
        process = fork(["-c", RUN, server.url, str(path)], environment(), start_new_session=True)
        end = time.monotonic() + 60
        ready: list[psutil.Process] = []
        while not any(child.net_connections("tcp") for child in ready):
            ready = children(process.pid)
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)
            assert process.wait(30) == 130
            assert stored(path) == server.answered().keys(), "what was under way is kept"
            assert set(server.answered().values()) == {1}
        else:
            process.send_signal(ending)
            assert process.wait(30) == -ending
        _, living = psutil.wait_procs(ready, timeout=10)
        assert not living

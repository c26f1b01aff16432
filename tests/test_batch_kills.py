"""Batches ended half-way: every request is answered once, and costs what one answer costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, fork

from bpo_data.llm import ledger
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import BatchPlan, Fault, StubServer, refused

LINES = 9
"""Requests of a run; the collector of these tests stores them four at a time."""

COST = 0.5 * (11 * 1.0 + 7 * 10.0) / 1e6
"""US dollars for an answer of the stub, at the prices in ``RUN``."""

RUN = """
import signal
from dataclasses import replace
from asking import QUICK, asking
from bpo_data.llm import batch_collect, ledger
from bpo_data.llm.till import Account
from bpo_data.llm.batch import complete_batch
from bpo_data.llm.batch_wire import Pace
from bpo_data.llm.client import Endpoint
from bpo_data.llm.prices import Price, Prices
from bpo_data.llm.store import RequestStore

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
batch_collect.AT_ONCE = 4
account = Account(prices=Prices(models={"tiny": Price(prompt=1.0, completion=10.0, batch=0.5)}))


def run(url, path, first=0, settling=0.05, **more):
    with RequestStore(path) as store:
        return complete_batch(
            [(asking(first + number), 0) for number in range(9)],
            endpoint=Endpoint(url),
            store=store,
            account=account,
            patience=replace(QUICK, timeout=30.0),
            pace=Pace(first_wait=0.01, longest_wait=0.05, settling=settling),
            **more,
        )

"""
STEPS = (
    RUN
    + """
import contextlib, os, sys
import aiohttp, openai.types, tenacity  # once, not in each child
from bpo_data.llm.batch_wire import BatchWire

url, folder = sys.argv[1:]
left = 0  # steps until the kill


def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def stepping(call):
    async def called(*arguments):
        step()
        found = await call(*arguments)
        step()
        return found

    return called


@contextlib.contextmanager
def transaction(store, whole=RequestStore.transaction):
    step()
    with whole(store) as connection:
        yield connection
        step()
    step()


RequestStore.transaction = transaction
for name in ("upload", "create", "look", "find"):
    setattr(BatchWire, name, stepping(getattr(BatchWire, name)))

number, killed = 0, True
while killed:
    number += 1
    ends = []
    for left in (number, 0):
        child = os.fork()
        if child == 0:
            replies = run(url, f"{folder}/{number}.sqlite", first=100 * number)
            os._exit(0 if {reply.state for reply in replies} == {"ok"} else 1)
        ends.append(os.waitpid(child, 0)[1])
    killed = ends[0] == signal.SIGKILL
    assert ends == [signal.SIGKILL * killed, 0], f"step {number}: {ends}"
print(number)
"""
)
ONCE = (
    RUN
    + """
import sys

run(*sys.argv[1:], shown=lambda line: print(line, flush=True))
"""
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and no proxy between the client and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))


@contextmanager
def started(server: StubServer, path: Path, code: str = ONCE) -> Iterator[Forked]:
    """A run in a process of its own."""
    with fork(["-c", code, server.url, str(path)], dict(os.environ)) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(server: StubServer, path: Path, code: str = ONCE) -> str:
    """What a run that ends well prints."""
    with started(server, path, code) as process:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def spent(path: Path) -> tuple[int, float]:
    with RequestStore(path) as store:
        found = ledger.spent(store.connection, "all")
        return found.requests, found.usd


def check_paid_once(server: StubServer, path: Path, batches: int = 1) -> None:
    """Each request was answered once, and the account stands at what these answers cost."""
    assert list(server.answered().values()) == [1] * LINES
    assert len(server.batches.batches) == batches
    assert spent(path) == (LINES, pytest.approx(LINES * COST))


def test_killed_at_any_step_the_next_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    """Steps: before each call of the server and after its answer has come; before each
    transaction, inside it when all is written, and after its commit."""
    with StubServer() as server:
        command = [sys.executable, "-c", STEPS, server.url, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        runs = int(result.stdout)
        assert runs > 25, "a batch of nine lines has that many steps"
        answered = server.answered()
        assert len(answered) == LINES * runs
        assert set(answered.values()) == {1}
        assert len(server.batches.batches) == runs, "no batch was made twice"
        for number in range(1, runs + 1):
            path = tmp_path / f"{number}.sqlite"
            assert spent(path) == (LINES, pytest.approx(LINES * COST)), f"step {number}"
            with RequestStore(path) as store:
                query = "SELECT count(*) FROM batch_lines"
                assert store.connection.execute(query).fetchone() == (0,)


@pytest.mark.parametrize("call", ["upload", "make", "look", "fetch"])
def test_killed_while_the_server_has_done_what_it_was_asked_and_not_said_so(
    tmp_path: Path, call: str
) -> None:
    path = tmp_path / "requests.sqlite"
    calls = ("upload", "make", "look", "look again", "fetch")
    faults: list[Fault | None] = [None] * calls.index(call) + [Fault(wait=60.0)]
    with StubServer(batch_faults=faults) as server:
        with started(server, path) as process:
            until(lambda: not server.batch_faults)
            until(lambda: server.batches.batches if call != "upload" else server.batches.files)
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=30) == -signal.SIGKILL
        finished(server, path)
        check_paid_once(server, path)


def test_a_batch_is_found_on_the_servers_list_though_late_and_far_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests.sqlite"
    with StubServer(batch_faults=[None, Fault(wait=60.0)]) as server:
        with started(server, path) as process:
            until(lambda: server.batches.batches)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        for number in range(250):
            others = server.batches.add_file(b"{}", f"{number}.jsonl", "batch")
            asked = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
            server.batches.create({"input_file_id": others["id"], **asked})
        listed = server.batches.listed
        pages = iter([lambda *_: {"object": "list", "data": [], "has_more": False}])
        monkeypatch.setattr(server.batches, "listed", lambda *asked: next(pages, listed)(*asked))
        finished(server, path)
        check_paid_once(server, path, batches=251)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_waits_it_says_that_the_batch_goes_on(
    tmp_path: Path, ending: signal.Signals
) -> None:
    path = tmp_path / "requests.sqlite"
    with StubServer(batch_plan=BatchPlan(polls=10**6)) as server:
        with started(server, path) as process:
            assert "sending a batch of 9 requests" in process.stdout.readline()
            assert "in_progress" in process.stdout.readline()
            start = time.monotonic()
            process.send_signal(ending)
            _, err = process.communicate(timeout=30)
            assert time.monotonic() - start < 5
        assert process.returncode == -signal.SIGINT
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert "9 requests in batches go on at the server; the same command collects" in err
        server.batches.plan = BatchPlan()
        assert "sending" not in finished(server, path)
        check_paid_once(server, path)


def test_a_run_that_wants_some_of_a_killed_runs_batch_collects_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    with StubServer(batch_plan=BatchPlan(polls=10**6)) as server:
        with started(server, path) as process:
            until(lambda: server.batches.batches)
            until(lambda: next(iter(server.batches.batches.values())).looks)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        server.batches.plan = BatchPlan()
        finished(server, path, ONCE.replace("range(9)", "range(5, 6)"))
        with RequestStore(path) as store:
            assert len(store) == LINES
            runs = store.connection.execute("SELECT DISTINCT run FROM attempts").fetchall()
            assert len(runs) == 1, "who collects has it on its bill"
        check_paid_once(server, path)


def test_two_processes_with_one_store_make_each_batch_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    with (
        StubServer(batch_plan=BatchPlan(seconds=1.0)) as server,
        started(server, path) as first,
        started(server, path) as second,
    ):
        outs = [process.communicate(timeout=60) for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], outs
        assert sum("sending" in out for out, _ in outs) == 1
        assert all("in_progress" in out for out, _ in outs), "both wait for the one batch"
        check_paid_once(server, path)


def test_what_one_process_holds_half_made_another_waits_for(tmp_path: Path) -> None:
    """Half-made, it looks like what a killed run leaves; the lock tells the two apart."""
    path = tmp_path / "requests.sqlite"
    with StubServer(batch_faults=[None, Fault(wait=1.0), None]) as server:
        with started(server, path) as first:
            until(lambda: server.batches.batches)
            assert "sending" not in finished(server, path)
            _, err = first.communicate(timeout=60)
            assert first.returncode == 0, err
        check_paid_once(server, path)


def test_a_run_ended_by_a_wrong_key_while_it_waits_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    with StubServer(batch_faults=[None, None, refused(401, "Who?")]) as server:
        with started(server, path) as process:
            _, err = process.communicate(timeout=60)
            assert "answered 401: Who?" in err
        with RequestStore(path) as store:
            (row,) = store.connection.execute("SELECT lines, remote FROM batches").fetchall()
        assert row == (LINES, next(iter(server.batches.batches)))
        finished(server, path)
        check_paid_once(server, path)

"""The request store: what it keeps, what it refuses, and who may use it at once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpo_data.errors import UserError
from bpo_data.llm.replies import ANSWERED, STATES, Reply
from bpo_data.llm.store import RequestStore, key_of, request_text
from bpo_data.llm.syncing import Syncer

REPLY = Reply("truncated", "Four, becau\u00e9\x00 \U0001f600", "length", 11, None, 3, "max_tokens")
URL = "http://localhost:1/v1"


def put(store: RequestStore, number: int, reply: Reply = REPLY) -> str:
    request = request_text(URL, {"seed": number}, 0)
    store.put(key_of(request), request, reply)
    return key_of(request)


def test_a_reply_comes_back_as_it_was_put(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "deep" / "requests.sqlite") as store:
        key = put(store, 1)
    with RequestStore(tmp_path / "deep" / "requests.sqlite") as store:
        assert store.get_many([key, "0" * 64, key]) == {key: REPLY}
        assert len(store) == 1


def test_each_row_holds_the_request_that_its_key_stands_for(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "requests.sqlite") as store:
        put(store, 1)
        ((key, request),) = store.connection.execute("SELECT key, request FROM replies")
    assert key == key_of(request)
    assert request == '{"draw":0,"endpoint":"http://localhost:1/v1","payload":{"seed":1}}'


def test_the_order_of_fields_and_a_last_slash_do_not_change_a_key() -> None:
    payload = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert request_text(URL, payload, 0) == request_text(URL + "/", other, 0)


def test_the_first_answer_to_a_key_stays_and_is_the_one_to_use(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "a.sqlite") as store, RequestStore(tmp_path / "a.sqlite") as other:
        key = put(store, 1)
        assert other.put(key, "{}", Reply("ok", "Another.")) == REPLY
        assert store.get_many([key]) == {key: REPLY}


@pytest.mark.parametrize("state", sorted(set(STATES) - ANSWERED))
def test_a_failure_is_never_stored_as_an_answer(tmp_path: Path, state: str) -> None:
    with RequestStore(tmp_path / "a.sqlite") as store:
        with pytest.raises(ValueError, match=state):
            put(store, 1, Reply(state))
        assert len(store) == 0


def test_a_state_outside_the_closed_set_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="sort of ok"):
        Reply("sort of ok")


def test_every_commit_reaches_the_disk_before_put_returns(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "a.sqlite") as store:
        assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"
        assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_other_files_are_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    text, foreign, newer = (tmp_path / name for name in ("notes.txt", "other.db", "newer.sqlite"))
    text.write_text("not a database, but long enough to be read as the header of one. " * 20)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE replies (key TEXT)")
    connection.close()
    with RequestStore(newer) as store:
        store.connection.execute("PRAGMA user_version = 7")
    for path in (text, foreign, newer, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(UserError, match=r"runtime\.store=") as caught:
            RequestStore(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.is_dir() or path.read_bytes() == before


WRITER = """
import sys
from bpo_data.llm.replies import Reply
from bpo_data.llm.store import RequestStore, key_of, request_text
from bpo_data.llm.syncing import Syncer
with RequestStore(sys.argv[1]) as store:
    for number in range(100):
        request = request_text("http://localhost:1/v1", {"seed": number}, 0)
        store.put(key_of(request), request, Reply("ok", sys.argv[2]))
"""


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    workers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0, 0]
    with RequestStore(path) as store:
        assert len(store) == 100


def test_twenty_thousand_replies_reopen_and_read_in_two_seconds(tmp_path: Path) -> None:
    texts = [request_text(URL, {"seed": number, "words": "x" * 500}, 0) for number in range(20_000)]
    with RequestStore(tmp_path / "requests.sqlite") as store:
        store.connection.execute("BEGIN")
        for text in texts:
            store.put(key_of(text), text, REPLY)
        store.connection.execute("COMMIT")
    start = time.perf_counter()
    with RequestStore(tmp_path / "requests.sqlite") as store:
        assert len(store.get_many(map(key_of, texts))) == len(texts)
    seconds = time.perf_counter() - start
    assert seconds < 2, f"{seconds:.2f} s for 20,000: 100,000 would pass 5 s"


def test_another_program_that_holds_the_file_delays_and_loses_nothing(tmp_path: Path) -> None:
    import threading

    from asking import ask, asking

    from bpo_data.llm.stub import StubServer

    path = tmp_path / "requests.sqlite"
    with RequestStore(path) as store, StubServer(latency=0.05) as server:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

        def hold() -> None:
            while not server.payloads:
                time.sleep(0.002)
            other.execute("BEGIN IMMEDIATE")
            time.sleep(1.0)
            other.execute("ROLLBACK")

        holder = threading.Thread(target=hold)
        holder.start()
        replies = ask(server, store, [(asking(number), 0) for number in range(12)], concurrency=4)
        holder.join()
        other.close()
        assert {reply.state for reply in replies} == {"ok"}
        assert len(server.payloads) == len(store) == 12, "each was sent once"


@pytest.mark.parametrize("count", [-5, 10**20, 2**31, 1.5, True, "7", None])
def test_counts_of_tokens_that_cannot_be_are_not_known(count: object) -> None:
    from bpo_data.llm.replies import read_completion

    body = {
        "choices": [{"message": {"content": "Four."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": count, "completion_tokens": 3},
    }
    reply = read_completion(json.dumps(body), 1)
    assert (reply.state, reply.usage_prompt, reply.usage_completion) == ("ok", None, 3)


def test_a_store_that_cannot_be_written_serves_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a name with % and ?" / "a.sqlite"
    with RequestStore(path) as store:
        key = put(store, 1)
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    monkeypatch.setattr("bpo_data.disk.not_writable", lambda folder: "it is read-only")
    with RequestStore(path) as store:
        assert store.get_many([key]) == {key: REPLY}
        with pytest.raises(UserError, match="readonly"), store.transaction():
            put(store, 2)
        with (
            pytest.raises(UserError, match=r"read-only.*lacks answers"),
            Syncer(store),
        ):
            pass
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before


def test_answers_beside_a_read_only_store_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RequestStore(tmp_path / "a.sqlite") as store:
        put(store, 1)
        for name in ("a.sqlite", "a.sqlite-wal"):
            (tmp_path / "copy").mkdir(exist_ok=True)
            shutil.copy(tmp_path / name, tmp_path / "copy")
    monkeypatch.setattr("bpo_data.disk.not_writable", lambda folder: "it is read-only")
    with pytest.raises(UserError, match=r"a\.sqlite-wal holds answers.*copy both files"):
        RequestStore(tmp_path / "copy" / "a.sqlite")

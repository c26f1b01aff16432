"""Senders on a Ray cluster of several nodes, one of which is lost.

A process that has used a Ray with a token, as one that it starts by itself has, can use none
without: of several such files in one run this one comes first, by its name.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from asking import ask, asking
from clusters import RUNTIME, processes_of, started, wait_for
from sender_lines import spread
from test_client import stored

from bpo_data.engines import engine_of
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import Payload, StubServer, default_reply, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]


def address() -> str:
    """One of this machine's that is not loopback, as a server's on another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # for documents alone; nothing is sent
        return str(probe.getsockname()[0])


def test_a_node_that_is_lost_costs_the_requests_its_sender_had_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    requests = [(asking(number), 0) for number in range(400)]
    path = tmp_path / "requests.sqlite"
    then: list[tuple[set[str], int]] = []
    with started() as nodes:
        lost, _ = nodes.add(num_cpus=1), nodes.add(num_cpus=1)
        wait_for(lambda: ray.cluster_resources().get("CPU") == 2)
        spread(monkeypatch, engine_of(RUNTIME).lines, 2)

        def reply(payload: Payload) -> str:
            if len(server.payloads) == 120:
                then.append((stored(path), 120))
                for process in processes_of(lost):
                    process.kill()
            return default_reply(payload)

        host = address()
        monkeypatch.setenv("NO_PROXY", host)
        with (
            caplog.at_level(logging.WARNING, "bpo_data"),
            StubServer(reply, latency=0.05, host=host) as server,
            RequestStore(path) as store,
        ):
            begun = time.monotonic()
            replies = ask(server, store, requests, concurrency=8)
            print(f"TOOK {time.monotonic() - begun:.1f} s")
            asked = server.asked()
            later = Counter(map(written, server.payloads[then[0][1] :]))
    assert [reply.text for reply in replies] == [
        default_reply(one.payload()) for one, _ in requests
    ]
    assert not then[0][0] & later.keys(), "what was stored is not asked again"
    assert 400 <= asked.total() <= 400 + 8
    assert any("a sender was lost" in line for line in caplog.messages)

"""Requests, settings and fixtures that the client's tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpo_data.engines.lines import OpenLines, no_lines
from bpo_data.llm.client import Endpoint, Limits, Patience, Reply, Request, complete
from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import StubServer
from bpo_data.tables import Message

QUICK = Patience(
    attempts=4, first_wait=0.01, longest_wait=0.02, refused_for=1.0, timeout=5.0, drain=5.0
)

LINES: OpenLines = no_lines
"""By which ``ask`` sends."""


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
    concurrency: int = 1,
    **more: Any,
) -> list[Reply]:
    settings = {"limits": Limits(concurrency), "patience": QUICK, "lines": LINES, **more}
    return complete(requests, endpoint=Endpoint(server.url), store=store, **settings)


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and no proxy between the client and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RequestStore]:
    with RequestStore(tmp_path / "requests.sqlite") as opened:
        yield opened

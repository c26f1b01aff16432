"""The key is in nothing that a run leaves or says, though the server sends it back in everything.

``{authorization}`` in an answer of the stub becomes the header that the request came with.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forking import fork
from helpers import environment

from bpo_data.llm.stub import Fault, Payload, StubServer, echo_key, message, refused
from bpo_data.llm.stub.answers import digest

SECRET = "sk-proj-Zq9vK3mWx7TtR2yLbN4c"
TELLING = ("Zq9vK3", "R2yLbN4c")
"""Parts of it that nothing else holds: half a key is too much as well."""

ECHO = "You came with {authorization}"


def echo(payload: Payload, before: int) -> Fault:
    """An answer of any kind, with the key in all of its parts."""
    drawn = int(digest(payload), 16)
    if payload["model"] == "judge":
        verdict = {"reason": ECHO, "score": 1 + drawn % 10}
        answer = message(json.dumps(verdict))
    else:
        answer = message(f"{drawn % 1000} {ECHO}")
    first = [
        refused(500, ECHO, code="{authorization}"),
        refused(400, ECHO, param="{authorization}"),
        Fault(body='{"choices": [{"mess {authorization}'),
        Fault(503, f"<html>{ECHO}</html>", {"Content-Type": "text/html"}),
        message(ECHO, "{authorization}"),
        message(ECHO, "length"),
        message(None, refusal=ECHO),
        message(None, reasoning=ECHO),
        # As a server may write it in JSON that it escapes to the last letter.
        replace(answer, body=answer.body.replace("{authorization}", escaped(f"Bearer {SECRET}"))),
    ]
    number = drawn // 10 % 16
    return first[number] if number < len(first) and not before else answer


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bpo_data.policy import save_policy
    from bpo_data.scratch import Scratch, make_policy

    folder = tmp_path_factory.mktemp("policy")
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer 17"}]
    save_policy(make_policy([talk], Scratch(width=16, layers=1, heads=2, hidden=16), 0), folder)
    return folder


LOUD = """
import logging, sys
from bpo_data.pipelines import run

set_up = run.set_up_logging

def aloud():
    set_up()
    for name in ("openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG)

run.set_up_logging = aloud
sys.exit(run.main(sys.argv[1:]))
"""
"""What ``OPENAI_LOG=debug`` does, and more: the transport's own lines too."""


def run_with_key(folder: Path, policy: Path, url: str, stage: str) -> tuple[int, str, str]:
    """A run from prompts alone, with the libraries' own logging turned on to the full.

    Its status, and what it wrote to stdout and stderr.
    """
    source = folder / "prompts.jsonl"
    source.write_text("\n".join(json.dumps({"prompt": f"question {n}?"}) for n in range(14)))
    arguments = [
        f"stage={stage}", "recipe=own_data", f"load.path={source}", f"runtime.folder={folder}/runs",
        "load.test_share=0.3", "select.share=1", "sft.kind=given", f"sft.model={policy}",
        "augment.client=openai", "augment.model=writer", f"augment.base_url={url}",
        "augment.responses=4", "augment.max_failed=0.5", "score.kind=rubric",
        "score.options.model=judge", f"score.options.base_url={url}",
        "score.options.max_failed=0.5", "gradients.rank=2", "gradients.dim=16", "train.steps=2",
        "evaluate.max_tokens=8",
    ]  # fmt: skip
    variables = {"OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
    with fork(["-c", LOUD, *arguments], {**environment(), **variables}) as process:
        out, error = process.communicate(timeout=240)
    return process.wait(), out, error


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file below ``folder``, as it stands and, where it is packed, unpacked."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        yield path, path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield path, str(pq.ParquetFile(path).read().to_pylist())
            yield path, str(pq.ParquetFile(path).schema_arrow.metadata)
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as connection:
                yield path, "\n".join(connection.iterdump())


def check(folder: Path, out: str, error: str) -> str:
    """Look for the key everywhere; all that was found there."""
    said = {"stdout": out, "stderr": error}
    found = [*said.items(), *contents(folder)]
    for part in TELLING:
        holding = [str(name) for name, text in found if part in text]
        assert not holding, f"a part of the key is in {', '.join(holding)}"
    return "".join(text for _, text in found)


def test_neither_a_refused_run_nor_a_whole_one_leaves_a_trace_of_the_key(
    tmp_path: Path, policy: Path
) -> None:
    with StubServer(faults=[echo_key(401)] * 40, fault_rule=echo) as server:
        status, out, error = run_with_key(tmp_path, policy, server.url, "augment")
        assert status == 2
        assert "answered 401: Wrong credentials: Bearer [key]" in " ".join(error.split())
        check(tmp_path, out, error)
        server.faults.clear()
        status, out, error = run_with_key(tmp_path, policy, server.url, "all")
    assert status == 0, error[-3000:]
    assert any((tmp_path / "runs").glob("report-*/report.html"))
    assert "Sending HTTP Request" in error, "the library did log"
    assert check(tmp_path, out, error).count("[key]") > 100, "the key did come back"
